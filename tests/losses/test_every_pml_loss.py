"""Each loss that PML exports works, or is refused at construction with its reason."""

import inspect
import math
from itertools import product

import pytest
import torch
from helpers.every_loss import NUM_CLASSES, SIZE, WORKS, contrastive
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7])  # 4, 3, 2 and 1 samples, shuffled


LISTWISE, UNLABELLED = "ranks the whole batch", "no class labels"
REFUSED = {
    "CrossBatchMemory": (lambda: losses.CrossBatchMemory(contrastive(), SIZE), "memory.*ref_emb"),
    "DynamicSoftMarginLoss": (losses.DynamicSoftMarginLoss, "second backward"),
    "FastAPLoss": (losses.FastAPLoss, LISTWISE),
    "InstanceLoss": (losses.InstanceLoss, LISTWISE),
    "ManifoldLoss": (lambda: losses.ManifoldLoss(l=SIZE, K=3), UNLABELLED),
    "PNPLoss": (losses.PNPLoss, LISTWISE),
    "RankedListLoss": (lambda: losses.RankedListLoss(margin=1, Tn=1), LISTWISE),
    "SelfSupervisedLoss": (lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()), UNLABELLED),
    "SmoothAPLoss": (lambda: losses.SmoothAPLoss(), LISTWISE),
    "VICRegLoss": (losses.VICRegLoss, UNLABELLED),
}
if not hasattr(losses, "SmoothAPLoss"):
    del REFUSED["SmoothAPLoss"]  # came with PML 2.9
# Base classes, which cannot be trained with.
ABSTRACT = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightRegularizerMixin",
}
NO_INDICES = {"P2SGradLoss"}


def generator_of(**kwargs):
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, **kwargs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_every_exported_class_is_accounted_for():
    exported = {name for name, value in vars(losses).items() if inspect.isclass(value)}
    works = {name.split(",")[0] for name in WORKS}
    assert works.isdisjoint(REFUSED)
    assert ABSTRACT.isdisjoint(works | set(REFUSED))
    # A class on one side only was added or removed by a release of PML.
    assert exported == works | set(REFUSED) | ABSTRACT


@pytest.mark.parametrize("name", sorted(WORKS))
def test_it_trains(name):
    loss = HardNegativeGenerationLoss(WORKS[name](NUM_CLASSES), generator_of())
    embeddings = torch.randn(len(LABELS), SIZE, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [embeddings], "lr": 0.01}, *loss.parameter_groups(lr=1e-3)])
    before = {key: value.clone() for key, value in loss.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        value = loss(embeddings, LABELS)
        assert value.ndim == 0
        assert torch.isfinite(value)
        value.backward()
        for key, parameter in [("embeddings", embeddings), *loss.named_parameters()]:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        assert embeddings.grad.any(dim=1).all(), "an embedding without gradient"
        assert all(p.grad.any() for p in loss.loss.parameters())
        assert all(p.grad.any() for p in loss.generator.objective.classifier.parameters())
        optimizer.step()
    assert 0 < loss.metric_level < float("inf")
    assert 0 < loss.generator_level < float("inf")
    unchanged = [key for key, p in loss.named_parameters() if torch.equal(p, before[key])]
    assert not unchanged


@pytest.mark.parametrize("name", sorted(WORKS))
def test_the_synthetic_term_trains_the_embeddings(name):
    """With the same random draws, the results differ only by the weight of the synthetic term, which G decides."""
    loss = HardNegativeGenerationLoss(WORKS[name](NUM_CLASSES), generator_of(dropout=0.0))
    if name == "ThresholdConsistentMarginLoss":
        loss.loss.margin_minus = -1.0  # every negative violates it
    embeddings = torch.randn(len(LABELS), SIZE, requires_grad=True)
    gradients = []
    for level in (float("inf"), 10.0):
        torch.manual_seed(1)
        loss.levels.generator.value.fill_(level)
        gradients.append(torch.autograd.grad(loss(embeddings, LABELS), embeddings)[0])
        loss.levels.metric.value.fill_(float("inf"))
    assert not torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(WORKS))
def test_in_evaluation_it_is_the_wrapped_loss_alone(name):
    wrapped = WORKS[name](2 * NUM_CLASSES)
    loss = HardNegativeGenerationLoss(wrapped, generator_of(), embedding_regularizer=None).eval()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    embeddings = torch.randn(len(LABELS), SIZE)
    beyond = LABELS + NUM_CLASSES - 1  # labels that the generator does not know
    calls = [(LABELS,), (beyond,)]
    if name.split(",")[0] not in NO_INDICES:
        calls.append((LABELS, (torch.tensor([0, 1, 0]), torch.tensor([2, 6, 5]), torch.tensor([1, 0, 4]))))
    for call in calls:
        torch.manual_seed(2)
        expected = wrapped(embeddings, *call)
        torch.manual_seed(2)
        torch.testing.assert_close(loss(embeddings, *call), expected, rtol=1e-6, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in loss.generator.state_dict(prefix="generator.").items())
    assert loss.metric_level == float("inf")


@pytest.mark.parametrize("name", sorted(WORKS))
def test_an_empty_batch_gives_zero_with_a_graph(name):
    """Some of PML's losses take the mean of an empty tensor, which is NaN."""
    loss = HardNegativeGenerationLoss(WORKS[name](NUM_CLASSES), generator_of())
    embeddings = torch.randn(0, SIZE, requires_grad=True)
    value = loss(embeddings, LABELS[:0])
    assert value.isfinite()
    value.backward()
    assert embeddings.grad.shape == (0, SIZE)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.generator.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.loss.parameters())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    with pytest.raises(ValueError, match=f"^loss {name} cannot take synthetic negatives: .*{reason}"):
        HardNegativeGenerationLoss(make(), generator_of())


def test_a_refused_member_is_named():
    loss = losses.MultipleLosses([contrastive(), losses.MultipleLosses({"x": losses.FastAPLoss()})])
    with pytest.raises(ValueError, match=f"FastAPLoss.*{LISTWISE}"):
        HardNegativeGenerationLoss(loss, generator_of())


def test_dynamic_soft_margin_fails_in_pml_itself():
    """The reason for refusing it. Once this test fails, the loss can be supported."""
    loss, embeddings = losses.DynamicSoftMarginLoss(), torch.randn(6, SIZE, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss(embeddings, labels).backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss(embeddings, labels).backward()


@pytest.mark.parametrize("base", sorted(ABSTRACT - {"GenericPairLoss"}))
def test_bases_are_refused(base):
    class Unknown(getattr(losses, base), torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)

    with pytest.raises(TypeError, match=r"got Unknown.*synthetic_loss\.register"):
        HardNegativeGenerationLoss(Unknown(), generator_of())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            torch.nn.CrossEntropyLoss(),
            "^loss must be a loss of embeddings and labels, .*got CrossEntropyLoss of torch.nn",
        ),
        (None, "^loss must be a loss of pytorch_metric_learning, .*got NoneType"),
        ("ContrastiveLoss", "^loss must be a loss of pytorch_metric_learning, .*got str"),
        (losses.ContrastiveLoss, "^loss must be a loss, got the class ContrastiveLoss"),
    ],
)
def test_other_objects_are_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        HardNegativeGenerationLoss(loss, generator_of())


def test_a_loss_does_not_wrap_itself():
    with pytest.raises(TypeError, match="HardNegativeGenerationLoss"):
        HardNegativeGenerationLoss(HardNegativeGenerationLoss(contrastive(), generator_of()), generator_of())


FAILS_IN_PML = {
    ("HistogramLoss", "duplicates"),
    ("HistogramLoss", "zeros"),
    ("P2SGradLoss", "zeros"),
    ("TupletMarginLoss", "duplicates"),  # arc cosine of a similarity that rounding may raise above 1
}
DEGENERATE = {
    "one sample": (torch.randn(1, SIZE), [3]),
    "one class": (torch.randn(5, SIZE), [3] * 5),
    "singletons": (torch.randn(4, SIZE), [0, 3, 4, 7]),
    "duplicates": (torch.randn(1, SIZE).expand(6, SIZE), [0, 0, 3, 3, 4, 4]),
    "zeros": (torch.zeros(6, SIZE), [0, 0, 3, 3, 4, 4]),
}


@pytest.mark.parametrize(
    ("name", "batch"), [case for case in product(sorted(WORKS), DEGENERATE) if case not in FAILS_IN_PML]
)
def test_a_degenerate_batch_is_finite_with_a_graph(name, batch):
    loss = HardNegativeGenerationLoss(WORKS[name](NUM_CLASSES), generator_of(dropout=0.0))
    z, labels = DEGENERATE[batch]
    z, labels = z.clone().requires_grad_(), torch.tensor(labels)
    value = loss(z, labels)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None for p in [z, *loss.parameters()])
    if batch in ("one sample", "singletons") and "Proxy" not in name and loss.metric_level != math.inf:
        assert loss.metric_level > 0  # nothing was compared: no sign that training is done
