"""Training steps under torch.compile: only the loss stays outside of graphs; values equal those without compiling."""

import copy
import warnings

import pytest
import torch
from helpers.compared import GENERATORS
from pytorch_metric_learning import losses
from torch import nn

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 15, 8
LABELS = [[3, 7, 3, 0, 11, 3, 7, 0, 3, 7], [0, 1] * 5, [2] * 9 + [4], [5, 6, 7, 8, 9] * 2]
FAMILIES = {
    "tuple": losses.ContrastiveLoss,
    "triplet": lambda: losses.TripletMarginLoss(swap=True),
    "joint tuple": losses.ThresholdConsistentMarginLoss,
    "labelled": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
    "n-pairs": losses.NPairsLoss,
    "nca": losses.NCALoss,
    "angular": losses.AngularLoss,
    "multiple": lambda: losses.MultipleLosses([losses.MultiSimilarityLoss(), losses.NPairsLoss()]),
}


def gca(**kwargs):
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, **kwargs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


class Backend:
    """A compiler backend that counts graphs and runs them unchanged."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return module


class Step:
    """A network, a loss, a miner and an optimizer: one training step."""

    def __init__(self, loss, miner=None):
        self.net = nn.Sequential(nn.Linear(5, SIZE), nn.Tanh())
        self.loss = HardNegativeGenerationLoss(*loss)
        self.loss.levels.metric.value.fill_(3.0)
        self.loss.levels.generator.value.fill_(14.0)
        self.miner = miner and GlobalCorrelationMiner(self.loss.generator, output="pairs")
        self.optimizer = torch.optim.SGD([*self.net.parameters(), *self.loss.parameters()], lr=0.01)
        self.forward = self.plain

    def plain(self, x, y):
        z = self.net(x).relu() + 0.1
        return 2 * self.loss(z, y, self.miner and self.miner(z, y))

    def with_backward(self, x, y):
        value = self.plain(x, y)
        value.backward()
        return value.detach()

    def train(self):
        """Return the values of all steps, and the final gradients, parameters and buffers."""
        values = []
        for i, labels in enumerate(LABELS):
            torch.manual_seed(i)
            self.optimizer.zero_grad()
            value = self.forward(torch.randn(len(labels), 5), torch.tensor(labels))
            if value.requires_grad:
                value.backward()
            self.optimizer.step()
            values.append(value.detach())
        parameters = [*self.net.parameters(), *self.loss.parameters()]
        return [*values, *(p.grad for p in parameters), *parameters, *self.loss.buffers()]


OF_PYTHON = "Guards may run slower on Python 3.13.0."  # what torch says there, of itself


def check(compiled, graphs, compile_it, rtol=0, atol=0):
    """Require the uncompiled results, no warnings, and this number of `graphs`."""
    plain = copy.deepcopy(compiled)
    plain.forward = plain.plain
    backend = Backend()
    compile_it(compiled, backend)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = compiled.train()
    assert [text for text in (str(w.message) for w in said) if not text.startswith(OF_PYTHON)] == []
    torch.testing.assert_close(found, plain.train(), rtol=rtol, atol=atol)
    assert backend.graphs == graphs


def step(made, backend):
    made.forward = torch.compile(made.plain, backend=backend)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_with_each_family_is_compiled_once_around_the_loss(family):
    check(Step((FAMILIES[family](), gca())), 2, step)


def test_a_step_that_mines():
    check(Step((losses.ContrastiveLoss(), gca()), miner=True), 3, step)


@pytest.mark.parametrize("name", [*GENERATORS, "global correlation", "global correlation, in parts"])
def test_a_step_that_calls_backward_with_each_generator(name):
    """Backward passes run while the compiler traces; it must not compile those of our functions."""

    def with_backward(made, backend):
        made.forward = torch.compile(made.with_backward, backend=backend)

    makers = {"global correlation": gca, "global correlation, in parts": lambda: gca(edge_chunk_size=16), **GENERATORS}
    check(Step((losses.NPairsLoss(), makers[name]())), 3, with_backward)


@pytest.mark.parametrize("way", ["compile", "assignment"])
def test_the_loss_itself_compiled(way):
    def the_loss(made, backend):
        if way == "compile":
            made.loss.compile(backend=backend)
        else:
            made.loss = torch.compile(made.loss, backend=backend)

    check(Step((losses.ContrastiveLoss(), gca())), 0, the_loss)


def test_a_compiled_propagation_in_a_compiled_step():
    def both(made, backend):
        made.loss.generator.propagation.compile(backend=backend)
        step(made, backend)

    check(Step((losses.ContrastiveLoss(), gca())), 3, both, rtol=1e-5, atol=1e-5)


def test_evaluation_in_a_compiled_step():
    made = Step((losses.ContrastiveLoss(), gca()))
    made.loss.eval()
    check(made, 2, step)


def test_a_generator_on_its_own():
    generator, backend = gca(), Backend()
    z, y = torch.randn(10, SIZE), torch.tensor(LABELS[0])
    compiled = torch.compile(lambda: generator(2 * z, y).embeddings.square().sum(), backend=backend)
    for _ in range(3):
        found = []
        for call in (compiled, lambda: generator(2 * z, y).embeddings.square().sum()):
            torch.manual_seed(1)
            found.append(call())
        torch.testing.assert_close(*found, rtol=0, atol=0)
    assert backend.graphs == 2


def test_fullgraph_error_names_the_loss():
    made = Step((losses.ContrastiveLoss(), gca()))
    made.forward = torch.compile(made.plain, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"HardNegativeGenerationLoss\.forward"):
        made.train()
    assert made.loss.metric_level == 3.0
