"""What the generators that GCA-HNG is compared with have in common, whatever their equations."""

import contextlib
import copy
import math
import warnings

import pytest
import torch
from helpers.compared import CLASSIFIED, GENERATORS, LEARNING, NUM_CLASSES, PER_CLASS, SIZE, inside, random_rows
from helpers.strategies import DEVICES, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import (
    BaseGenerator,
    ClassifiedGenerator,
    ConstantGenerator,
    EmbeddingExpansionGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
    SymmetricalSynthesisGenerator,
    SyntheticNegatives,
)
from pml_gca.losses import synthetic_loss
from pml_gca.utils.host import HostCopy

EVERY = GENERATORS | CLASSIFIED
every = pytest.mark.parametrize("name", sorted(EVERY))


def per_class(name):
    """Whether its negatives are one of each class, not of each sample."""
    return name.removesuffix(" through the graph").removesuffix(", classified") in PER_CLASS


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8])
def test_labels_of_any_integer_dtype(name, dtype):
    z, y = random_rows(7), torch.tensor([3, 1, 3, 0, 0, 2, 1])
    found = []
    for labels_given in (y, y.to(dtype)):
        torch.manual_seed(0)
        generator = EVERY[name]()
        negatives = generator(z, labels_given, 6)
        found.append([negatives.embeddings, negatives.labels, negatives.anchors, *negatives.objectives.values()])
    torch.testing.assert_close(*found, rtol=0, atol=0)
    with pytest.raises(ValueError, match=rf"labels must lie in .*got values from {NUM_CLASSES} to {NUM_CLASSES + 3}"):
        EVERY[name]()(z, (y + NUM_CLASSES).to(dtype))


@every
@settings(max_examples=12)
@given(
    labels(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(DEVICES),
    st.data(),
)
def test_any_composition_gives_labelled_finite_negatives(name, y, dtype, device, data):
    generator, z = EVERY[name](), random_rows(len(y), dtype=dtype, device=device)
    num_anchors = data.draw(st.integers(0, len(y)))
    negatives = generator(z, y, num_anchors, data.draw(st.sampled_from([0.0, 3.0, math.inf])))
    names = y.tolist()
    anchors = [i for i in range(num_anchors) if names.count(names[i]) > 1]
    others = [len(set(names)) - 1 if per_class(name) else sum(label != names[i] for label in names) for i in anchors]
    assert negatives.anchors.tolist() == [i for i, count in zip(anchors, others, strict=True) for _ in range(count)]
    assert negatives.num_skipped_anchors == num_anchors - len(anchors)
    assert negatives.embeddings.shape == (len(negatives), SIZE)
    assert negatives.embeddings.dtype == dtype
    assert negatives.labels.dtype == negatives.anchors.dtype == torch.long
    assert negatives.labels.device == negatives.anchors.device == negatives.embeddings.device == z.device
    found, own = negatives.labels.cpu(), y[negatives.anchors.cpu()]
    assert (found != own).all()
    assert set(found.tolist()) <= set(names)
    (negatives.embeddings.float().square().sum() + sum(negatives.objectives.values())).backward()
    assert z.grad is None or z.grad.isfinite().all()
    assert z.grad is None or not z.grad[num_anchors:].any()
    pulls_from_anchors = name.startswith(("constant", "random", "hardness-aware"))  # others take what may be references
    if len(negatives) and dtype == torch.float64 and (pulls_from_anchors or num_anchors == len(y)):
        assert z.grad[anchors].any()
    for parameter in generator.parameters():
        assert parameter.grad.isfinite().all()


TINY = torch.finfo(torch.float16).smallest_normal
DEGENERATE = {
    "empty": (torch.randn(0, SIZE), []),
    "one sample": (torch.randn(1, SIZE), [2]),
    "one class": (torch.randn(5, SIZE), [3] * 5),
    "singletons": (torch.randn(4, SIZE), [0, 1, 2, 3]),
    "duplicates": (torch.randn(1, SIZE).expand(6, SIZE), [0, 0, 1, 1, 2, 2]),
    "zeros": (torch.zeros(6, SIZE), [0, 0, 1, 1, 2, 2]),
    "one zero": (torch.eye(6, SIZE) - torch.eye(6, SIZE)[3] * torch.eye(6)[3][:, None], [0, 0, 1, 1, 2, 2]),
    "opposites": (torch.randn(1, SIZE) * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None], [0, 0, 1, 1, 2, 2]),
    "tiny": (torch.randn(6, SIZE) * TINY, [0, 0, 1, 1, 2, 2]),
    "huge constants": (torch.full((6, SIZE), 1e18), [0, 0, 1, 1, 2, 2]),
}


@every
@pytest.mark.parametrize("case", sorted(DEGENERATE))
@pytest.mark.parametrize("level", [1.0, math.inf])
def test_degenerate_batches_are_finite_with_a_graph(name, case, level):
    generator, (z, y) = EVERY[name](), DEGENERATE[case]
    z, y = z.clone().requires_grad_(), torch.tensor(y, dtype=torch.long)
    negatives = generator(z, y, None, level)
    per_anchor = 2 if per_class(name) else 4
    assert len(negatives) == (len(y) * per_anchor if len(y.unique()) == 3 else 0)
    total = negatives.embeddings.sum() + sum(negatives.objectives.values())
    total.backward()
    for tensor in (negatives.embeddings, total, z.grad, *(p.grad for p in generator.parameters())):
        assert torch.isfinite(tensor).all()


# In losses.

LOSSES = {
    "N-pairs": losses.NPairsLoss,
    "N-pairs, unnormalised": lambda: losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
    "multi-similarity": losses.MultiSimilarityLoss,
    "Proxy Anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
    "triplet": losses.TripletMarginLoss,
    "triplet, unnormalised": lambda: losses.TripletMarginLoss(distance=LpDistance(normalize_embeddings=False)),
    "contrastive": losses.ContrastiveLoss,
}
LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7])  # 4, 3, 2 and 1 samples, shuffled


@every
@pytest.mark.parametrize("loss_name", sorted(LOSSES))
def test_every_loss_learns_from_every_generator(name, loss_name):
    torch.manual_seed(0)
    loss = HardNegativeGenerationLoss(LOSSES[loss_name](), EVERY[name](), collect_stats=True)
    z = random_rows(10, dtype=torch.float32)
    if loss.generator.has_objective:
        loss.levels.generator.value.fill_(1e-3)  # the synthetic term counts fully
    value = loss(z, LABELS)
    value.backward()
    assert value.isfinite()
    assert loss.synthetic_weight == 1
    assert loss.synthetic_loss > 0
    assert value.item() == pytest.approx(loss.metric_loss + loss.synthetic_loss + loss.generator_loss, rel=1e-5)
    assert z.grad.isfinite().all()
    assert z.grad.any(dim=1).sum() >= 9  # the lone sample may be in no term
    assert inside(loss.generator).num_skipped_anchors == 1

    references = torch.cat([z.detach(), torch.randn(5, SIZE)]), torch.cat([LABELS, torch.tensor([11, 3, 2, 2, 0])])
    if "N-pairs" not in loss_name and "Proxy" not in loss_name:
        z.grad = None
        value = loss(z, LABELS, None, *references)
        value.backward()
        assert value.isfinite()
        assert z.grad.any(dim=1).all()
        assert inside(loss.generator).num_skipped_anchors == 0

    in_evaluation = loss.eval()(z, LABELS)
    torch.testing.assert_close(in_evaluation, loss.loss(z, LABELS))


@pytest.mark.parametrize("name", sorted(GENERATORS.keys() - LEARNING))
def test_without_parameters_negatives_count_fully_from_the_start(name):
    class Counts(torch.nn.Module):
        def forward(self, embeddings, labels):
            return (embeddings * 0).sum() + 3

    @synthetic_loss.register(Counts)
    def _(loss, batch):
        return (batch.negatives.embeddings * 0).sum() + 5

    generator = EVERY[name]()
    loss = HardNegativeGenerationLoss(Counts(), generator)
    assert not generator.has_objective
    assert not list(generator.parameters())
    assert not generator.state_dict()
    assert loss.parameter_groups(lr=1.0) == [{"params": [], "lr": 1.0}]
    for _ in range(2):
        assert loss(random_rows(6), torch.arange(6) % 3) == 8
    assert loss.generator_level == math.inf
    assert loss.metric_level == 3


def test_who_has_an_objective():
    learning = {name for name, make in GENERATORS.items() if make().has_objective}
    assert learning == LEARNING
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE)
    assert generator.has_objective
    assert generator.requires_grad_(False).has_objective  # frozen, it still has a loss whose level counts

    class Learns(BaseGenerator):
        has_objective = True

        def generate(self, batch, metric_level):
            return SyntheticNegatives(batch.embeddings + 1, (batch.labels + 1) % 3, torch.arange(batch.num_anchors))

    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), Learns(3, SIZE), collect_stats=True)
    with pytest.warns(UserWarning, match="Learns.has_objective is True, but it returns no objective 'generation_loss'"):
        loss(random_rows(6), torch.arange(6) % 3)
    assert loss.synthetic_weight == 0
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), ClassifiedGenerator(Learns(3, SIZE)))
    with pytest.warns(UserWarning, match=r"^Learns.has_objective is True.* set Learns.has_objective = False"):
        loss(random_rows(6), torch.arange(6) % 3)


@pytest.mark.parametrize("phase", ["all", "embedding"])
def test_a_generation_loss_that_is_not_declared_warns_once(phase):
    class Undeclared(BaseGenerator):
        def generate(self, batch, metric_level):
            labels, anchors = (batch.labels + 1) % 3, torch.arange(batch.num_anchors)
            return SyntheticNegatives(batch.embeddings + 1, labels, anchors, {"generation_loss": torch.ones(())})

    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), Undeclared(3, SIZE), collect_stats=True)
    message = "^Undeclared.has_objective is False, but it returns the objective 'generation_loss'"
    with loss.phase(phase):
        with pytest.warns(UserWarning, match=message):
            loss(random_rows(6), torch.arange(6) % 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(random_rows(6), torch.arange(6) % 3)
    assert loss.synthetic_weight == 1


def train_without_an_optimizer_for(generator):
    model = torch.nn.Linear(4, SIZE)
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model(torch.randn(6, 4)), torch.arange(6) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["hardness-aware", "random"])
def test_no_alarm_for_what_no_optimizer_needs_to_hold(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_without_an_optimizer_for(EVERY[name]())


def test_an_alarm_where_the_network_is_forgotten():
    with pytest.warns(UserWarning, match="Optimizers step, but so far none"):
        train_without_an_optimizer_for(GENERATORS["hardness-aware, reembedded"]())


# In use.


@every
def test_evaluation_generates_without_objectives_and_without_changing_anything(name):
    generator = EVERY[name]().eval()
    before = copy.deepcopy(generator.state_dict())
    negatives = generator(torch.randn(6, SIZE), torch.arange(6) % 3)
    assert len(negatives) == (12 if per_class(name) else 24)
    assert not negatives.objectives
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@every
def test_statistics(name):
    generator = EVERY[name]()
    generator.start_collecting_stats()
    negatives = generator(random_rows(10, dtype=torch.float32), LABELS)
    assert inside(generator).num_negatives == len(negatives)
    assert inside(generator).num_skipped_anchors == 1
    if generator.has_objective:
        terms, generator = negatives.objectives, inside(generator)
        assert generator.generation_loss == pytest.approx(terms["generation_loss"].item())
        assert generator.auxiliary_classification_loss == pytest.approx(terms["auxiliary_classification_loss"].item())


@pytest.mark.parametrize("name", sorted(GENERATORS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_negatives_as_they_are(name, dtype):
    torch.manual_seed(0)
    generator, z = EVERY[name](), random_rows(12, dtype=torch.float32)
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype, enabled=enabled):
            negatives = generator(z, torch.arange(12) % 4, None, 5.0)
        total = negatives.embeddings.square().sum() + sum(negatives.objectives.values())
        found.append((negatives.embeddings, *torch.autograd.grad(total, z)))
    torch.testing.assert_close(found[0], found[1])


@every
def test_in_half_precision_negatives_are_nearly_those_of_full(name):
    torch.manual_seed(0)
    generator, z = EVERY[name](), random_rows(12, dtype=torch.float16)
    found = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(1)
        found.append(generator(z.to(dtype), torch.arange(12) % 4, None, 5.0).embeddings.float())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.fixture
def meta(monkeypatch):
    """Let a step run on the meta device, which refuses whatever a GPU would have to be waited for, but for labels."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "autocast", lambda device, *a, **k: contextlib.nullcontext() if device == "meta" else autocast(device)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: "meta" not in device and is_enabled(*device))
    monkeypatch.setattr(torch, "_sample_dirichlet", torch.empty_like)  # which that device lacks, as it does autocast
    monkeypatch.setattr(HostCopy, "ready", False)
    monkeypatch.setattr(HostCopy, "wait", lambda self: torch.cat([LABELS, torch.zeros(3).long()]))
    monkeypatch.setattr(HostCopy, "__init__", lambda self, tensor: None)


@every
def test_a_step_waits_for_no_device(name, meta):
    generator, z = EVERY[name]().to("meta"), torch.empty(10, SIZE, device="meta", requires_grad=True)
    negatives = generator(z, LABELS.to("meta"), None, torch.empty((), device="meta"))
    (negatives.embeddings.sum() + sum(negatives.objectives.values())).backward()
    assert z.grad.is_meta
    assert all(p.grad.is_meta for p in generator.parameters())
    assert negatives.labels.is_meta
    assert negatives.anchors.is_meta
    assert negatives.num_skipped_anchors == 1


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_late_check_reports_non_finite_embeddings(name, bad, monkeypatch):
    """On a device that is not waited for all is computed first; no index may leave its range then."""
    monkeypatch.setattr(HostCopy, "ready", False)
    for broken in (slice(2, 3), slice(None)):
        z = torch.randn(10, SIZE)
        z[broken, 1] = bad
        with pytest.raises(ValueError, match="embeddings must be finite"):
            EVERY[name]()(z, LABELS)


@every
def test_bad_batches_are_named(name):
    generator, z, y = EVERY[name](), torch.randn(4, SIZE), torch.tensor([0, 0, 1, 1])
    for batch, error, message in [
        ((z[:, 1:], y), ValueError, "embeddings must have 8 channels"),
        ((z.long(), y), TypeError, "embeddings must be floating point"),
        ((z / 0, y), ValueError, "embeddings must be finite"),
        ((z, y.float()), TypeError, "labels must be integers"),
        ((z, y[1:]), ValueError, "labels must be as many as embeddings"),
        ((z, y + NUM_CLASSES), ValueError, r"labels must lie in \[0, num_classes\)"),
        ((z, y, 5), ValueError, "num_anchors must lie in"),
    ]:
        with pytest.raises(error, match=message):
            generator(*batch)


AT_LEAST_0 = "must be a finite number of at least 0"


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        *(
            (kind, arguments, error, message)
            for kind in (
                ConstantGenerator,
                EmbeddingExpansionGenerator,
                HardestNegativeGenerator,
                HardnessAwareGenerator,
                MixupGenerator,
                RandomGenerator,
                SymmetricalSynthesisGenerator,
            )
            for arguments, error, message in (
                ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
                ({"embedding_size": 8.0}, TypeError, "embedding_size must be an integer, got float"),
            )
        ),
        (ConstantGenerator, {"coefficient": 1.1}, ValueError, "coefficient must be at most 1, got 1.1"),
        (ConstantGenerator, {"coefficient": -0.1}, ValueError, f"coefficient {AT_LEAST_0}, got -0.1"),
        (ConstantGenerator, {"coefficient": "1"}, TypeError, "coefficient must be a number, got str"),
        (ConstantGenerator, {"alpha": -1}, ValueError, f"alpha {AT_LEAST_0}, got -1"),
        (EmbeddingExpansionGenerator, {"num_points": 0}, ValueError, "num_points must be at least 1, got 0"),
        (EmbeddingExpansionGenerator, {"num_points": 1.5}, TypeError, "num_points must be an integer, got float"),
        (EmbeddingExpansionGenerator, {"normalize": 1}, TypeError, "normalize must be a bool, got int"),
        (HardnessAwareGenerator, {"alpha": math.nan}, ValueError, f"alpha {AT_LEAST_0}, got nan"),
        (HardnessAwareGenerator, {"reembed": None}, TypeError, "reembed must be a bool, got NoneType"),
        (HardnessAwareGenerator, {"softmax_weight": -1}, ValueError, f"softmax_weight {AT_LEAST_0}, got -1"),
        (MixupGenerator, {"concentration": 0}, ValueError, "concentration must be above 0, got 0"),
        (MixupGenerator, {"concentration": math.inf}, ValueError, f"concentration {AT_LEAST_0}, got inf"),
        (MixupGenerator, {"normalize": "yes"}, TypeError, "normalize must be a bool, got str"),
        (RandomGenerator, {"probability": 2}, ValueError, "probability must be at most 1, got 2"),
        (RandomGenerator, {"probability": True}, TypeError, "probability must be a number, got bool"),
        (RandomGenerator, {"alpha": None}, TypeError, "alpha must be a number, got NoneType"),
        (SymmetricalSynthesisGenerator, {"normalize": None}, TypeError, "normalize must be a bool, got NoneType"),
    ],
)
def test_bad_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**{"num_classes": 5, "embedding_size": 8, **arguments})


def of_both_widths(make):
    """A generator of float32, and the same one in float64."""
    torch.manual_seed(0)
    generator = make()
    return generator, copy.deepcopy(generator).double()


WIDENED = {
    "GCA-HNG": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_heads=2, dropout=0.0),
    "GCA-HNG, in chunks": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, dropout=0.0, edge_chunk_size=9),
    "real negatives": lambda: ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE)),
    "hardness-aware, reembedded": GENERATORS["hardness-aware, reembedded"],
}


@pytest.mark.parametrize("name", sorted(WIDENED))
@pytest.mark.parametrize("training", [True, False])
def test_float64_embeddings_are_computed_with_in_float64_whatever_the_parameters(name, training):
    found = []
    for generator in of_both_widths(WIDENED[name]):
        z = random_rows(10)
        torch.manual_seed(1)
        negatives = generator.train(training)(z, LABELS, 8, torch.tensor(3.0))
        values = [negatives.embeddings, *negatives.objectives.values()]
        assert {x.dtype for x in values} == {torch.float64}
        sum(x.sum() for x in values).backward()
        found.append([*values, z.grad])
        own = [(p.grad, p.dtype, b) for p, b in zip(generator.parameters(), generator.state_dict(), strict=False)]
        assert all(grad is None or grad.dtype == dtype for grad, dtype, _ in own)
        found[-1] += [grad.double().float() for grad, _, _ in own if grad is not None]
    for ours, theirs in zip(*found, strict=True):
        if ours.dtype == torch.float64:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
        else:
            torch.testing.assert_close(ours, theirs)


def test_correlations_of_float64_embeddings_are_those_of_a_generator_of_float64():
    found = [generator.eval().correlate(random_rows(10), LABELS) for generator in of_both_widths(WIDENED["GCA-HNG"])]
    for name in ("coefficients", "node_logits"):
        ours, theirs = (getattr(correlations, name) for correlations in found)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("parameters", "wanted"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_float32_embeddings_meet_parameters_of_other_dtypes(parameters, wanted):
    generator = WIDENED["GCA-HNG"]().to(parameters)
    assert generator.correlate(random_rows(10, dtype=torch.float32), LABELS).coefficients.dtype == wanted
