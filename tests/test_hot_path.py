"""What would make a device wait or a compiler recompile: counted without a device."""

import contextlib
import copy
import math

import pytest
import torch
from helpers.compared import generate
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch.utils._python_dispatch import TorchDispatchMode

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss, SyntheticNegatives
from pml_gca.correlation.blocks import ScaleBatchNorm
from pml_gca.generators.batch import HostValues
from pml_gca.losses import SyntheticBatch, synthetic_loss
from pml_gca.losses.levels import synthetic_weight
from pml_gca.utils.host import HostCopy, together_to_device

SIZE, NUM_CLASSES = 8, 9
LABELS = torch.tensor([2, 5, 2, 0, 5, 2, 1, 1, 8])  # merging, plain negatives, and two skipped anchors


def make(**kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, **{"num_heads": 2, "dropout": 0.0, **kwargs})
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def batch(count, seed=0, num_classes=3):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=source).requires_grad_(), torch.arange(count) % num_classes


# Compilation.


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


fresh_compiler = pytest.mark.usefixtures("_fresh_compiler")


class Backend:
    """Counts graphs, and runs them as they are, or as another backend makes them."""

    def __init__(self, name="eager"):
        self.graphs = 0
        self._compile = torch._dynamo.lookup_backend(name)

    def __call__(self, module, inputs):
        self.graphs += 1
        return self._compile(module, inputs)


def everything(propagation, z, y):
    found = propagation(z, y)
    total = found.coefficients.square().sum() + found.node_logits.cos().sum()
    parameters = list(propagation.parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    return found.node_logits, found.coefficients, *torch.autograd.grad(total, [z, *parameters], **options)


@fresh_compiler
def test_one_graph_without_a_break_whatever_the_labels_and_it_equals_eager():
    backend, propagation = Backend("aot_eager"), make(num_layers=1).propagation.double()
    twin = copy.deepcopy(propagation)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    z = batch(9)[0].detach().double().requires_grad_()
    for labels in (LABELS, LABELS.flip(0), torch.arange(9), torch.zeros(9).long(), torch.arange(9) % 4):
        for a, b in zip(everything(compiled, z, labels), everything(propagation, z, labels), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    for a, b in zip(twin.buffers(), propagation.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert backend.graphs == 1


@fresh_compiler
def test_batch_sizes_share_a_dynamic_graph():
    backend = Backend()
    propagation = make(num_layers=1, dropout=0.4).propagation
    compiled = torch.compile(propagation, backend=backend, fullgraph=True)
    for count in (9, 12, 7, 20, 33):
        found = []
        for module in (compiled, propagation):
            torch.manual_seed(count)
            found.append(module(*batch(count)).coefficients)
        torch.testing.assert_close(*found)
    assert backend.graphs <= 2


@fresh_compiler
@pytest.mark.parametrize("way", ["compile", "assignment"])
def test_a_loss_with_a_compiled_propagation(way):
    values = []
    for compiled in (False, True):
        loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), make(num_layers=1).double())
        loss.levels.metric.value.fill_(3.0)
        loss.levels.generator.value.fill_(14.0)
        parameters = list(loss.parameters())
        if compiled and way == "compile":
            loss.generator.propagation.compile(backend="eager")
        elif compiled:
            loss.generator.propagation = torch.compile(loss.generator.propagation, backend="eager")
        z = batch(9)[0].detach().double().requires_grad_()
        torch.manual_seed(1)
        value = loss(z, LABELS)
        value.backward()
        values.append([value, z.grad, *(p.grad for p in parameters), *loss.buffers()])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# Waiting for a device. Tensors on the meta device have no values, so that whoever asks for one fails, just where a
# GPU would make the host wait. Labels are planned with on the host, where they are copied early; that is let through.


@pytest.fixture
def meta(monkeypatch):
    """Let a step run on the meta device: `host` is what the copies of tensors to the host contain."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def no_autocast(device, *args, **kwargs):
        return contextlib.nullcontext() if device == "meta" else autocast(device, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", no_autocast)  # which that device lacks
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: "meta" not in device and is_enabled(*device))
    copied = []

    class Copy:
        ready = False

        def __init__(self, tensor):
            copied.append(tensor)

        def wait(self):
            return torch.cat([LABELS, torch.zeros(3).long()])

    monkeypatch.setattr("pml_gca.generators.batch.HostCopy", Copy)
    return copied


class DotLoss(BaseMetricLossFunction):
    """A loss that waits for nothing: PML's own look for pairs, whose number depends on the labels."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        same = labels[:, None] == ref_labels
        value = (embeddings @ ref_emb.t()).masked_fill(same, 0.0).mean()
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}

    def _sub_loss_names(self):
        return ["loss"]


@synthetic_loss.register(DotLoss)
def _(loss, batch):
    return (batch.embeddings[batch.negatives.anchors] * batch.negatives.embeddings).sum(dim=1).exp().mean()


def meta_step(loss):
    z = torch.empty(len(LABELS), SIZE, device="meta", requires_grad=True)
    loss = loss.to("meta")
    optimizer = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
    value = loss(z, LABELS.to("meta"))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return z, value


@pytest.mark.parametrize(("chunk", "level_momentum"), [(None, 0.99), (20, None)])
def test_a_step_waits_for_no_device(meta, level_momentum, chunk):
    generator = make(dropout=0.1, edge_chunk_size=chunk)
    loss = HardNegativeGenerationLoss(DotLoss(), generator, level_momentum=level_momentum)
    z, value = meta_step(loss)
    assert value.device == z.grad.device == torch.device("meta")
    assert all(p.grad.shape == p.shape for p in loss.parameters())
    assert [t.device.type for t in meta] == ["meta"]  # labels and check, once
    with pytest.raises(RuntimeError, match="meta"):
        loss.logs()  # the values to log are on the device until they are asked for


@fresh_compiler
def test_a_compiled_step_waits_for_no_device_and_its_graphs_take_nothing_from_the_host(meta):
    devices = []

    def backend(module, inputs):
        devices.append({x.device.type for x in inputs if isinstance(x, torch.Tensor)})
        return module

    generator = make(dropout=0.1, num_layers=1).to("meta")
    generator.compile(backend=backend, fullgraph=True)
    z, _ = meta_step(HardNegativeGenerationLoss(DotLoss(), generator))
    assert z.grad.is_meta
    assert generator(z, LABELS.to("meta"), metric_level=2.0).embeddings.is_meta  # a level that is known on the host
    assert devices == [{"meta"}] * 2


@pytest.mark.parametrize("merging", ["random", "mean", "hardest"])
def test_evaluation_and_generation_alone_wait_for_no_device(meta, merging):
    generator, z = make(merging=merging).to("meta"), torch.empty(9, SIZE, device="meta")
    for training in (False, True):
        with torch.no_grad():
            negatives = generator.train(training)(z, LABELS.to("meta"))
        assert negatives.embeddings.shape == (7 * 4, SIZE)
        assert negatives.num_skipped_anchors == 2


def test_waits_are_found(meta):
    loss = HardNegativeGenerationLoss(DotLoss(), make(), collect_stats=True)
    with pytest.raises(RuntimeError, match="meta"):
        meta_step(loss)


WAITS = [
    lambda x: x.sum().item(),
    lambda x: bool(x.any()),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: x.unique(),
    lambda x: torch.equal(x, x),
    lambda x: x.repeat_interleave(x.long()),
]


@pytest.mark.parametrize("wait", WAITS)
def test_the_meta_device_refuses_whatever_waits(wait):
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.ones(3, device="meta"))


@pytest.mark.parametrize("level_momentum", [None, 0.99])
def test_levels_are_followed_on_the_device(level_momentum):
    loss = HardNegativeGenerationLoss(DotLoss(), make(), level_momentum=level_momentum).to("meta")
    for level in loss.levels.children():
        level.observe(torch.empty((), device="meta"))
    loss.end_epoch()
    assert synthetic_weight(loss.generator_level, loss.synthetic_beta).is_meta
    assert loss.generator.interpolation_strength(loss.metric_level).is_meta


def synthetic_batch(num_skipped, anchors):
    rows = torch.empty(len(anchors), SIZE, device="meta", requires_grad=True)
    negatives = SyntheticNegatives(
        rows, torch.zeros(len(anchors), dtype=torch.long, device="meta"), anchors.to("meta"), {}, num_skipped
    )
    z = torch.empty(4, SIZE, device="meta", requires_grad=True)
    y = torch.tensor([0, 0, 1, 1], device="meta")
    return z, SyntheticBatch(z, y, z, y, negatives)


def test_the_n_pairs_loss_of_negatives_looks_for_skipped_anchors_only_where_there_are():
    z, whole = synthetic_batch(0, torch.arange(4))
    synthetic_loss(losses.NPairsLoss(), whole).backward()
    assert z.grad.shape == z.shape
    for unknown in (None, 1):
        with pytest.raises(NotImplementedError):
            synthetic_loss(losses.NPairsLoss(), synthetic_batch(unknown, torch.arange(4))[1])


@pytest.mark.parametrize("normalized", [True, False])
def test_n_pairs_without_skipped_anchors_are_those_with_the_count_unknown(normalized):
    z, _ = batch(6)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    found = []
    loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=normalized))
    for count in (0, None):
        made = generate(make(), z, y, 6, 2.0, draws=torch.full((6, 6), 0.5))
        negatives = SyntheticNegatives(made.embeddings, made.labels, made.anchors, {}, count)
        value = synthetic_loss(loss, SyntheticBatch(z, y, z, y, negatives))
        found.append((value, *torch.autograd.grad(value, z)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


# What is told late must have changed nothing.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_leaves_running_statistics_alone(bad):
    norm = ScaleBatchNorm(4)
    norm(torch.linspace(-1, 2, 24).view(6, 4))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(6, 4)
    x[2, 1] = bad
    norm(x)
    assert before["num_batches_tracked"] == 1
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_propagation_of_a_batch_that_is_not_finite_changes_nothing(bad, chunk):
    propagation = make(edge_chunk_size=chunk).propagation
    z, y = torch.randn(6, SIZE), torch.arange(6) % 3
    propagation(z, y)
    before = {name: value.clone() for name, value in propagation.state_dict().items()}
    z[1, 1] = bad
    propagation(z, y)
    assert all(torch.equal(value, before[name]) for name, value in propagation.state_dict().items())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_refused_batch_has_changed_nothing(bad, late, monkeypatch):
    """Told late, as by a device that is not waited for, a step has been computed in part; draws were made then."""
    if late:
        monkeypatch.setattr(HostCopy, "ready", False)
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), make(dropout=0.1))
    z, _ = batch(9)
    loss(z, LABELS).backward()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    gradients = [p.grad.clone() for p in loss.parameters()]
    state = torch.random.get_rng_state()
    broken = z.detach().clone()
    broken[3, 2] = bad
    with pytest.raises(ValueError, match="embeddings must be finite"):
        loss(broken.requires_grad_(), LABELS)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(loss.parameters(), gradients, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state) or late
    assert loss(z, LABELS).isfinite()


def test_a_check_says_what_it_saw_when_it_began(monkeypatch):
    z = torch.randn(3, SIZE)
    monkeypatch.setattr(HostCopy, "ready", False)
    check = values_of(z)
    z.fill_(math.nan)
    check.wait()
    check = values_of(z)
    z.zero_()
    with pytest.raises(ValueError, match="ref_emb must be finite, got 24 NaN and 0 infinite of 24 values"):
        check.wait()


def values_of(z):
    return HostValues(z, torch.zeros(3).long(), num_classes=1, largest=1e30, names=("ref_emb", "ref_labels"))


def test_the_host_waits_once_for_a_batch(monkeypatch):
    waits, wait = [], HostCopy.wait
    monkeypatch.setattr(HostCopy, "wait", lambda self: waits.append(self) or wait(self))
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), make())
    loss(batch(9)[0], LABELS)
    assert len(waits) == 1


class Waits(TorchDispatchMode):
    """Count what a device would be waited for: values that are read, and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "unique")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("wrapped", [losses.NPairsLoss, losses.ContrastiveLoss])
def test_a_memory_adds_no_wait(wrapped, monkeypatch):
    counts = []
    for module in ("utils.norms", "generators.synthesis"):
        monkeypatch.setattr(f"pml_gca.{module}.are_usual", lambda norms: False)  # as on a device
    for memory_size in (0, 20):
        loss = HardNegativeGenerationLoss(wrapped(), make(), memory_size=memory_size)
        for _ in range(2):
            loss(batch(9)[0], LABELS)
        with Waits() as waits:
            loss(batch(9)[0], LABELS)
        counts.append(waits.count)
    assert 0 < counts[1] <= counts[0]


def test_tensors_sent_together_arrive_as_they_were():
    sent = [
        torch.arange(6).view(2, 3),
        torch.tensor([True, False]),
        torch.zeros(0).long(),
        torch.tensor([[-1], [2**60]]),
    ]
    for found, wanted in zip(together_to_device(sent, torch.device("cpu")), sent, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
        assert found.untyped_storage().nbytes() == wanted.nbytes  # may be kept without the others


def test_a_copy_on_the_host():
    x = torch.randn(3, requires_grad=True)
    copied = HostCopy(x).wait()
    assert torch.equal(copied, x)
    assert not copied.requires_grad
    assert HostCopy(torch.zeros(0)).wait().shape == (0,)


def test_labels_out_of_range_are_refused_where_they_arrive():
    generator = make()
    for labels in (torch.tensor([0, 9]), torch.tensor([-1, 3], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, num_classes\)"):
            generator.batch(torch.randn(2, SIZE), labels).labels_on_host()
    small = generator.batch(torch.randn(2, SIZE), torch.tensor([3, 8], dtype=torch.uint8))
    assert small.labels_on_host().dtype == small.labels.dtype == torch.long
