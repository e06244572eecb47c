import copy
import io
import pickle

import pytest
import torch
from torch import nn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.utils.records import UnrecordedModules, hide_modules_from_records


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.second = nn.Linear(4, 2)
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x):
        return self.second(self.first(x)) + self.shift


def hidden():
    net = Net()
    hide_modules_from_records(net)
    return net


def generator():
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(6, 8, num_layers=1, num_heads=2, dropout=0.0)


EMBEDDINGS, LABELS = torch.linspace(-1, 1, 64).sin().reshape(8, 8), torch.tensor([0, 0, 1, 1, 2, 2, 5, 5])


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}


def is_hidden(module):
    """record-keeper follows attributes that are modules or dicts."""
    return not [name for name, value in vars(module).items() if name == "_modules" and isinstance(value, dict)]


def test_it_is_hidden():
    assert not is_hidden(Net())
    assert is_hidden(hidden())
    assert is_hidden(generator())
    assert isinstance(hidden()._modules, UnrecordedModules)


def test_the_same_tree_in_the_same_order():
    plain, net = Net(), hidden()
    for listing in ("named_modules", "named_children", "named_parameters", "named_buffers"):
        assert [name for name, _ in getattr(net, listing)()] == [name for name, _ in getattr(plain, listing)()]
    assert list(net.state_dict()) == list(plain.state_dict())
    assert repr(net) == repr(plain)
    assert set(dir(net)) == set(dir(plain))
    assert net.get_submodule("first.1") is net.first[1]


def test_the_same_values_and_gradients():
    x = torch.randn(5, 3)
    results = []
    for net in (Net(), hidden()):
        y = net(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in net.parameters()], list(net.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_state_goes_both_ways():
    plain, net = Net(), hidden()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1)
    assert net.load_state_dict(plain.state_dict()) == ([], [])
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    assert plain.load_state_dict(net.state_dict()) == ([], [])
    missing = net.state_dict()
    del missing["first.0.weight"]
    with pytest.raises(RuntimeError, match=r"first\.0\.weight"):
        net.load_state_dict(missing)


def test_modes_and_dtypes_reach_the_children():
    net = hidden()
    assert not any(module.training for module in net.eval().modules())
    assert all(module.training for module in net.train().modules())
    net.double()
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert net(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    assert all(p.device.type == "meta" for p in net.to("meta").parameters())
    seen = []
    net.apply(seen.append)
    assert len(seen) == len(list(net.modules())) == 5
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_gradients_are_cleared():
    net = hidden()
    net(torch.randn(4, 3)).sum().backward()
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [hidden, generator])
def test_copies(way, make):
    module = make()
    copied = COPIES[way](module)
    assert is_hidden(copied)
    assert list(copied.state_dict()) == list(module.state_dict())
    for (name, a), b in zip(module.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr(), name
    with torch.no_grad():  # the copy's children are its own
        for parameter in copied.parameters():
            parameter.zero_()
    assert all((p != 0).any() for p in module.parameters() if p.ndim > 1)


def test_children_can_be_replaced_added_and_deleted():
    net = hidden()
    net.second = nn.Identity()
    assert [name for name, _ in net.named_children()] == ["first", "second"]
    assert torch.equal(net.eval().second(torch.ones(2)), torch.ones(2))
    assert isinstance(net.get_submodule("second"), nn.Identity)
    net.third = nn.Linear(2, 2)
    net.add_module("fourth", nn.Linear(2, 2))
    assert [name for name, _ in net.named_children()] == ["first", "second", "third", "fourth"]
    del net.third
    assert not hasattr(net, "third")
    net.fourth = None
    assert [name for name, _ in net.named_children()] == ["first", "second"]
    with pytest.raises(TypeError, match="second"):
        net.second = "no module"
    with pytest.raises(AttributeError, match="fifth"):
        _ = net.fifth
    assert is_hidden(net)


def test_a_replaced_child_of_the_generator_is_used():
    made, other = generator(), generator()
    with torch.no_grad():
        other.propagation.edge_coefficients.weight.zero_()
        other.propagation.edge_coefficients.bias.zero_()
    made.propagation = other.propagation
    assert torch.all(made.correlate(EMBEDDINGS, LABELS).coefficients == 0.5)
    assert sum(1 for _ in made.parameters()) == sum(1 for _ in other.parameters())


def test_functional_call():
    made = generator()
    zeros = {name: torch.zeros_like(p) for name, p in made.named_parameters()}
    before = {name: p.clone() for name, p in made.named_parameters()}
    torch.manual_seed(0)
    called = torch.func.functional_call(made.eval(), zeros, (EMBEDDINGS, LABELS))
    torch.manual_seed(0)
    zero = copy.deepcopy(made)
    zero.load_state_dict(zeros, strict=False)
    torch.testing.assert_close(called.embeddings, zero(EMBEDDINGS, LABELS).embeddings)
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())


def test_gradients_by_functional_call():
    net = hidden().eval()
    x = torch.randn(4, 3)
    gradients = torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,)).square().sum())(
        dict(net.named_parameters())
    )
    net(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("training", [False, True])
def test_the_propagation_compiles_into_one_graph(training):
    made = generator().train(training)
    expected = copy.deepcopy(made).propagation(EMBEDDINGS, LABELS)
    torch.compiler.reset()
    compiled = torch.compile(made.propagation, backend="eager", fullgraph=True)(EMBEDDINGS, LABELS)
    torch.testing.assert_close(compiled.coefficients, expected.coefficients)
    torch.testing.assert_close(compiled.node_logits, expected.node_logits)
    assert made.propagation.edge_norm.num_batches_tracked == int(training)


def test_a_hidden_module_compiles():
    torch.compiler.reset()
    net = hidden().eval()
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_hiding_twice_changes_nothing():
    net = hidden()
    hide_modules_from_records(net)
    assert is_hidden(net)
    assert list(net.state_dict()) == list(Net().state_dict())
