"""States of modules and results of runs, compared to the last bit."""

import torch


def copied_state(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_unchanged(module, before):
    """The state of a module is what `copied_state` copied."""
    state = module.state_dict()
    assert list(state) == list(before)
    assert [name for name, value in state.items() if not torch.equal(value, before[name])] == []


def assert_bitwise_equal(found, expected, path=""):
    """Nested dicts, lists and tuples hold equal tensors and numbers, of the same types, in the same order."""
    assert type(found) is type(expected), path
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), path
    elif isinstance(found, dict):
        assert list(found) == list(expected), path
        for key in found:
            assert_bitwise_equal(found[key], expected[key], f"{path}.{key}")
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected), path
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_bitwise_equal(*pair, f"{path}[{i}]")
    else:
        assert found == expected, path
