"""`generator.compile()`: a step of the loss has the values and gradients that it has without, in few graphs."""

import contextlib
import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.generators.propagating import is_compiled

NUM_CLASSES, SIZE, COUNT = 9, 8, 8
DONATED = "donated_buffer"  # torch 2.4 has no such setting, and gives nothing away
LIMIT_SETTING = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
LABELS = [2, 5, 2, 0, 5, 2, 1, 1]  # merging, plain negatives, and an anchor that is skipped


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Backend:
    """Counts graphs and their runs, and runs them as they are, or as another backend makes them."""

    def __init__(self, name="eager"):
        self.runs = []  # of each graph
        self._compile = torch._dynamo.lookup_backend(name)

    def __call__(self, module, inputs):
        compiled, graph = self._compile(module, inputs), len(self.runs)
        self.runs.append(0)

        def run(*args):
            self.runs[graph] += 1
            return compiled(*args)

        return run


def make_loss(dtype=torch.float64, memory_size=0, wrapped=losses.TripletMarginLoss, **options):
    """A loss whose negatives are pulled and have a weight."""
    torch.manual_seed(0)
    options = {"num_layers": 0, "num_heads": 2, "dropout": 0.0, **options}
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, **options)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loss = HardNegativeGenerationLoss(wrapped(), generator, memory_size=memory_size)
    loss.levels.metric.value.fill_(3.0)
    loss.levels.generator.value.fill_(14.0)
    return loss.to(dtype)


def twins(backend, propagation=False, **options):
    """A loss as it is, and one whose generator is compiled; the propagation as well, as on a GPU, if asked for."""
    plain = make_loss(**options)
    compiled = copy.deepcopy(plain)
    compiled.generator.compile(backend=backend, fullgraph=True)
    if propagation:
        compiled.generator.propagation.compile(backend=backend, fullgraph=True)
    return plain, compiled


def rows(count=COUNT, dtype=torch.float64, seed=0):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step(loss, labels, z=None, phases=("all",), autocast=False, **references):
    """Values of one iteration: loss, gradients, buffers and logs."""
    z = (rows(len(labels), loss.generator.objective.classifier.weight.dtype) if z is None else z).clone()
    z.requires_grad_()
    loss.zero_grad()
    torch.manual_seed(1)
    found = []
    for phase in phases:
        with loss.phase(phase), torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            value = loss(z if phase != "generation" else z.detach(), torch.tensor(labels), **references)
        value.backward()
        found.append(value.detach())
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in (z, *loss.parameters())]
    logs = {name: torch.tensor(value) for name, value in loss.logs().items()}
    return [*found, *gradients, *(buffer.clone() for buffer in loss.buffers())], logs


def check(plain, compiled, *args, rtol=1e-9, atol=1e-12, **kwargs):
    for a, b in zip(step(plain, *args, **kwargs), step(compiled, *args, **kwargs), strict=True):
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol)


def test_any_batch_of_one_size_in_three_graphs():
    backend = Backend()
    plain, compiled = twins(backend, True)

    @settings(max_examples=5)
    @given(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=COUNT, max_size=COUNT), st.integers(0, 99))
    def run(labels, seed):
        check(plain, compiled, labels, rows(seed=seed))

    check(plain, compiled, LABELS)
    run()
    assert len(backend.runs) <= 3  # the propagation, and a step with one number of negatives and with any
    graphs, before = len(backend.runs), sum(backend.runs)
    for labels in (LABELS, LABELS[::-1]):
        check(plain, compiled, labels)
    assert len(backend.runs) == graphs
    assert sum(backend.runs) == before + 4


CASES = {
    "alternating": ({"collect_stats": True}, {"phases": ("embedding", "generation")}),
    "references": ({"merging": "mean"}, {"ref_emb": rows(5, seed=7), "ref_labels": torch.tensor([2, 7, 0, 5, 5])}),
    "bf16": (
        {"dtype": torch.float32, "wrapped": losses.NPairsLoss},
        {"z": rows(dtype=torch.bfloat16), "autocast": True, "rtol": 2e-2, "atol": 2e-2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step(name):
    options, given = CASES[name]
    backend = Backend()
    plain, compiled = twins(backend, name == "bf16", **options)
    for labels in (LABELS, [3] * COUNT):  # with negatives, and without
        check(plain, compiled, labels, **given)
    assert len(backend.runs) > 0
    assert min(backend.runs) > 0


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_lengths_whose_squares_leave_the_range(scale):
    plain, compiled = twins(Backend(), dtype=torch.float32)
    check(plain, compiled, LABELS, scale * rows(dtype=torch.float32), rtol=1e-4, atol=1e-7)


@torch._functorch.config.patch(**({"donated_buffer": False} if hasattr(torch._functorch.config, DONATED) else {}))
def test_more_than_one_backward_pass():
    """As docs/performance_log.md says."""
    _, compiled = twins(Backend("aot_eager"), True)
    z, labels = rows().requires_grad_(), torch.tensor(LABELS)
    compiled(z, labels).backward()  # the first one keeps nothing
    z.grad = None
    value = compiled(z, labels)
    value.backward(retain_graph=True)
    once = z.grad.clone()
    value.backward()
    torch.testing.assert_close(z.grad, 2 * once)


@torch._dynamo.config.patch(**{LIMIT_SETTING: 2})
def test_each_generator_may_be_compiled_as_often_as_any():
    for weight in range(4):
        _, compiled = twins("eager", similarity_weight=weight)
        step(compiled, LABELS)
    compiled.generator.merging = "mean"
    step(compiled, LABELS)
    compiled.generator.merging = "hardest"
    with pytest.raises(RuntimeError, match=r"as many sizes and settings as it may \(torch\._dynamo.* drop_last=True"):
        step(compiled, LABELS)


def test_a_generator_that_moved_after_it_was_compiled_is_told_of():
    generator = make_loss().generator
    generator.compile(backend="eager")
    generator._compiled_for = "cuda"  # in place of a move
    with pytest.warns(UserWarning, match="compiled on the device cuda and is on cpu now"):
        generator(rows().requires_grad_(), torch.tensor(LABELS), metric_level=2.0)


def test_a_memory():
    plain = make_loss(memory_size=COUNT + 2)
    step(plain, LABELS)
    compiled = copy.deepcopy(plain)
    compiled.generator.compile(backend=Backend(), fullgraph=True)
    check(plain, compiled, LABELS, rows(seed=1))


def test_traced_by_autograd_as_well():
    plain, compiled = twins(Backend("aot_eager"), merging="hardest", classify_among="batch", dtype=torch.float32)
    check(plain, compiled, LABELS, rtol=1e-5, atol=1e-6)


def test_other_computations_stay_as_they_are():
    backend = Backend()
    _, compiled = twins(backend, dtype=torch.float32)
    generator, z = compiled.generator, rows(dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        generator(z, torch.tensor(LABELS))
    with torch.autocast("cpu", torch.float16):
        generator(z, torch.tensor(LABELS), metric_level=2.0)
    generator(z, torch.tensor([1] * COUNT))
    generator.propagation.requires_grad_(False)
    generator(z.detach(), torch.tensor(LABELS))
    assert backend.runs == []
    generator(z, torch.tensor(LABELS), metric_level=2.0)
    assert backend.runs == [1]


def test_objectives_of_your_own_are_called():
    class Mine(GlobalCorrelationGenerator):
        def objectives(self, *args):
            return {"generation_loss": 2 * super().objectives(*args)["generation_loss"]}

    torch.manual_seed(0)
    plain = Mine(NUM_CLASSES, SIZE, num_layers=0)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="eager")
    found = []
    for generator in (plain, compiled):
        torch.manual_seed(1)
        found.append(generator(rows(dtype=torch.float32), torch.tensor(LABELS)).objectives)
    torch.testing.assert_close(*found)


def test_copies_and_pickles_are_not_compiled():
    _, compiled = twins("eager", True)
    generator = compiled.generator
    assert generator._compiled_step is not None
    for twin in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert twin._compiled_step is None
        assert not is_compiled(twin.propagation)
        assert twin.state_dict().keys() == generator.state_dict().keys() == make_loss().generator.state_dict().keys()


def test_the_propagation_is_compiled_where_that_helps_as_the_call_finds_it():
    generator = make_loss(edge_chunk_size=5).generator
    generator.compile(backend="eager")
    assert not is_compiled(generator.propagation)
    generator.to("meta")  # in place of a GPU
    assert not is_compiled(generator.propagation)
    generator.compile(backend="eager")
    assert is_compiled(generator.propagation)


def test_each_number_of_nodes_is_compiled_anew_unless_said_otherwise(monkeypatch):
    """Else inductor refuses the second backward pass through the propagation, from the second batch size on."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda function, *args, **kwargs: given.append(kwargs) or function)
    generator = make_loss().generator
    generator.propagation.compile(fullgraph=True)
    generator.propagation.compile(dynamic=True)
    generator.compile()
    generator.to("meta").compile(mode="reduce-overhead")
    of_propagation = {"mode": "reduce-overhead", "dynamic": False}
    wanted = [{"fullgraph": True, "dynamic": False}, {"dynamic": True}, {}, of_propagation, {"mode": "reduce-overhead"}]
    assert given == wanted


def compile_the_generator(generator):
    generator.compile(backend="eager")


def compile_the_propagation(generator):
    generator.propagation.compile(backend="eager")


def assign_a_compiled_propagation(generator):
    generator.propagation = torch.compile(generator.propagation, backend="eager")


@pytest.mark.parametrize("way", [compile_the_generator, compile_the_propagation, assign_a_compiled_propagation])
def test_second_derivatives_are_refused(way):
    """The backend "eager" would return wrong ones."""
    loss, z = make_loss(), rows().requires_grad_()
    way(loss.generator)
    value = loss(z, torch.tensor(LABELS))
    with pytest.raises(RuntimeError, match=r"no second derivatives \(create_graph=True\): do not compile"):
        torch.autograd.grad(value, z, create_graph=True)


def test_a_classified_generator_compiles_its_graph_and_says_so_if_it_does_not():
    backend = Backend()
    generator = ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE), num_layers=1)
    with pytest.warns(UserWarning, match="nothing is compiled on a CPU"):
        generator.compile(backend=backend)
    assert not is_compiled(generator.propagation)
    copy.deepcopy(generator).to("meta").compile(backend=backend)
    generator.propagation.compile(backend=backend)
    generator(rows(dtype=torch.float32), torch.tensor(LABELS)).objectives["node_classification_loss"].backward()
    assert backend.runs == [1]
