"""Any generator with a node classification beside it."""

import copy
import math
import pickle
import re

import pytest
import torch
from helpers import oracle
from helpers.compared import (
    CLASSIFIED,
    GENERATORS,
    NUM_CLASSES,
    PER_CLASS,
    SIZE,
    classified,
    generate,
    inside,
    random_rows,
)
from helpers.counters import MultiplyAdds
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import (
    BaseGenerator,
    ClassifiedGenerator,
    ConstantGenerator,
    HardestNegativeGenerator,
    MixupGenerator,
)
from pml_gca.utils.host import HostCopy

TERM = "node_classification_loss"
LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7])
every = pytest.mark.parametrize("name", sorted(CLASSIFIED))


@settings(max_examples=10)
@given(labels(max_classes=4, max_samples=3), st.integers(0, 2), st.integers(0, 99), st.data())
def test_value_and_gradients_agree_with_the_slow_oracle(y, num_layers, seed, data):
    num_anchors = data.draw(st.integers(1, len(y)))
    torch.manual_seed(seed)
    generator = classified("hardest", num_layers).double()
    z = random_rows(len(y), seed)
    loss = generate(generator, z, y, num_anchors).objectives[TERM]
    rows = torch.cat([z[:num_anchors], z[num_anchors:].detach()])
    logits = oracle.propagate(generator.propagation, rows, y.tolist()).logits[:num_anchors]
    wanted = oracle.mean([oracle.cross_entropy(row, label) for row, label in zip(logits, y.tolist(), strict=False)])
    torch.testing.assert_close(loss, wanted)
    options = {"allow_unused": True, "materialize_grads": True}
    inputs = [z, *generator.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(x, inputs, **options) for x in (loss, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# Computed when it was an option of GlobalCorrelationGenerator (λ = 1, α = 0, hardest candidates), of all 8 rows, and
# with the last two as references. Loss, norm and one value of its gradient, sum of the parameters' gradient norms.
KNOWN = {
    (0, 8): (1.787915429319002, 0.9666954729109914, -0.008478093339048092, 2.475983738933266),
    (0, 6): (1.8780466765264088, 0.9051211752263117, -0.018565952923335034, 3.967971452857752),
    (1, 8): (1.5156325605377816, 0.47116752569169384, 0.019390773046885624, 6.633960808808087),
    (1, 6): (1.4237763629197906, 0.6021185213759908, 0.029822168348126902, 9.18625166988721),
    (2, 8): (1.4594646461921803, 1.0445099448789545, 0.23286268541448654, 27.01988542901796),
    (2, 6): (1.375849533329481, 1.6423049169492574, 0.36315016008529977, 47.68676834282152),
}
SUMS = {8: (0.42407836790262454, 54.35365184989413), 6: (-0.993808510256474, 27.432135270441133)}  # of the negatives


@pytest.mark.parametrize(("num_layers", "num_anchors"), sorted(KNOWN))
def test_the_numbers_of_the_option_that_it_was(num_layers, num_anchors):
    generator = ClassifiedGenerator(HardestNegativeGenerator(5, 8), num_layers=num_layers, num_heads=2, dropout=0.0)
    generator.double()
    with torch.no_grad():
        for name, parameter in generator.propagation.named_parameters():
            row = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(0.4 * torch.sin(0.7 * row + len(name)) + is_scale)
    z = 1.5 * torch.sin(1.3 * torch.arange(64, dtype=torch.float64) ** 1.1 + 1).view(8, 8)
    negatives = generator(z.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2, 2, 4]), num_anchors, 2.0)
    loss = negatives.objectives[TERM]
    of_rows, *of_parameters = torch.autograd.grad(loss, [z, *generator.parameters()], retain_graph=True)
    found = (loss, of_rows.norm(), of_rows[1, 3], sum(gradient.norm() for gradient in of_parameters))
    assert [value.item() for value in found] == pytest.approx(KNOWN[num_layers, num_anchors], rel=1e-9)
    (of_rows,) = torch.autograd.grad(negatives.embeddings.square().sum(), z)
    assert (negatives.embeddings.sum().item(), of_rows.norm().item()) == pytest.approx(SUMS[num_anchors], rel=1e-9)


@pytest.mark.parametrize("name", sorted(GENERATORS))
@pytest.mark.parametrize("num_layers", [0, 1])
def test_the_negatives_are_those_of_the_generator_inside(name, num_layers):
    torch.manual_seed(0)
    generator, z = classified(name, num_layers), random_rows(10, dtype=torch.float32)
    found = []
    for made in (generator, generator.generator):
        torch.manual_seed(1)
        found.append(made(z, LABELS, 8, 3.0))
    assert torch.equal(found[0].embeddings, found[1].embeddings)
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].num_skipped_anchors == found[1].num_skipped_anchors
    assert found[0].objectives.keys() == {TERM, *found[1].objectives}


@every
def test_who_is_trained_by_the_term(name):
    generator, z = CLASSIFIED[name](), random_rows(10, dtype=torch.float32)
    generator(z, LABELS, 8).objectives[TERM].backward()
    assert z.grad[:8].any(dim=1).all()
    assert not z.grad[8:].any()
    assert all(p.grad is not None for p in generator.propagation.parameters())
    assert all(p.grad is None for p in generator.generator.parameters())


@every
def test_negatives_count_as_those_of_the_generator_inside(name):
    generator = CLASSIFIED[name]()
    assert generator.has_objective == inside(generator).has_objective == ("reembedded" in name)
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, collect_stats=True)
    loss(random_rows(10, dtype=torch.float32), LABELS)
    assert loss.synthetic_weight == (0 if generator.has_objective else 1)


def test_a_classifier_of_each_embedding_by_itself():
    """Without layers, a row's logits depend on others through batch normalisation alone: in evaluation on none."""
    generator = classified("hardest").double().eval()
    z = random_rows(10).detach()
    logits = generator.propagation(z, LABELS).node_logits
    torch.testing.assert_close(generator.propagation(z[3:5], LABELS[3:5]).node_logits, logits[3:5])


def test_without_layers_no_edge_is_computed():
    coefficients = classified("hardest").propagation(random_rows(10, dtype=torch.float32), LABELS).coefficients
    assert coefficients.shape == (0, SIZE)
    assert coefficients.untyped_storage().nbytes() == 0  # no view of 55 edges


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
@every
def test_labels_out_of_range_that_a_device_reports_late(name, label, monkeypatch):
    monkeypatch.setattr(HostCopy, "ready", False)
    generator, wrong = CLASSIFIED[name](), LABELS.clone()
    wrong[3] = label
    before = copy.deepcopy(generator.state_dict())
    with pytest.raises(ValueError, match=r"labels must lie in \[0, num_classes\)"):  # no index error of a cross-entropy
        generator(random_rows(10, dtype=torch.float32), wrong)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@every
def test_copies_pickles_and_states_are_the_generator(name):
    generator, z = CLASSIFIED[name](), random_rows(10, dtype=torch.float32)
    generator(z, LABELS)
    loaded = CLASSIFIED[name]()
    loaded.load_state_dict(generator.state_dict())
    found = []
    for made in (generator, copy.deepcopy(generator), pickle.loads(pickle.dumps(generator)), loaded):
        torch.manual_seed(1)
        negatives = made(z, LABELS)
        found.append([negatives.embeddings, *negatives.objectives.values()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@every
def test_optimizer_groups(name):
    generator = CLASSIFIED[name]()
    groups = generator.parameter_groups(lr=0.5, classifier_lr=0.25)
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == set(generator.parameters())
    assert {rates[p] for p in generator.propagation.parameters()} == {0.5}
    own = inside(generator).parameter_groups(lr=0.5, classifier_lr=0.25)
    assert all(rates[p] == group["lr"] for group in own for p in group["params"])
    assert generator.objective_parameters() == inside(generator).objective_parameters()
    twice = {id(p) for p in generator.objective_parameters()}
    assert not twice & {id(p) for p in generator.propagation.parameters()}


@every
def test_statistics_are_recorded_once(name):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), CLASSIFIED[name](), collect_stats=True)
    loss(random_rows(10, dtype=torch.float32), LABELS).backward()
    outer, inner = loss.generator, loss.generator.generator
    assert len(set(loss._record_these_stats)) == len(loss._record_these_stats)
    assert {TERM, *inner.stat_names} < set(loss._record_these_stats)
    assert outer.node_classification_loss > 0
    assert inner.num_skipped_anchors == 1
    assert outer.gradient_norm > inner.gradient_norm
    assert loss.generator_gradient_norm == outer.gradient_norm
    assert loss.node_classification_loss == outer.node_classification_loss
    assert loss.num_skipped_anchors == 1
    with torch.no_grad():
        outer(torch.randn(6, SIZE), torch.arange(6) % 3)
    assert outer.node_classification_loss == 0
    assert ClassifiedGenerator(MixupGenerator(5, 8), collect_stats=True).generator.collect_stats
    assert not ClassifiedGenerator(MixupGenerator(5, 8)).generator.collect_stats


def test_in_phases_the_term_belongs_to_the_first():
    generator, z = CLASSIFIED["hardness-aware, reembedded, classified"](), random_rows(10, dtype=torch.float32)
    terms = [
        generator.generate(generator.batch(z, LABELS, phase=phase)).objectives for phase in ("embedding", "generation")
    ]
    assert [TERM in objectives for objectives in terms] == [True, False]
    assert generator.propagation.node_norm.num_batches_tracked == 1


@every
def test_evaluation_classifies_nothing(name):
    generator = CLASSIFIED[name]()
    before = copy.deepcopy(generator.state_dict())
    with torch.no_grad():
        assert TERM not in generator(torch.randn(6, SIZE), torch.arange(6) % 3).objectives
    assert not generator.eval()(torch.randn(6, SIZE), torch.arange(6) % 3).objectives
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@every
def test_it_follows_the_batch_to_its_device(name):
    generator = CLASSIFIED[name]()
    generator.follow_device(torch.device("meta"))
    assert {p.device.type for p in generator.parameters()} == {"meta"}


def test_embeddings_may_be_as_long_as_the_generator_inside_allows():
    for name in ("hardest, classified", "hardness-aware, reembedded, classified"):
        generator = CLASSIFIED[name]()
        with torch.autocast("cpu", torch.float16):
            assert generator.largest_value(torch.float32) == inside(generator).largest_value(torch.float32)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("keeps", [True, False])
def test_multiply_adds_are_those_counted(num_layers, keeps):
    options = {"num_layers": num_layers, "edge_chunk_size": None if keeps else 100}
    generator = ClassifiedGenerator(HardestNegativeGenerator(30, 64), **options)
    z = torch.randn(24, 64, requires_grad=True)
    with MultiplyAdds() as counted:
        generator(z, torch.arange(24) // 3).objectives[TERM].backward()
    assert counted.total - 24 * 24 * 64 == pytest.approx(generator.cost(24, 3).multiply_adds, rel=0.02)


def test_a_classification_costs_less_than_the_whole():
    for num_layers in (0, 1, 2):
        costs = ClassifiedGenerator(HardestNegativeGenerator(5, 8), num_layers=num_layers).cost(81, 3)
        whole = GlobalCorrelationGenerator(5, 8, num_layers=num_layers).cost(81, 3)
        assert 0 < costs.multiply_adds < whole.multiply_adds
        assert 0 < costs.bytes <= whole.bytes


@pytest.mark.parametrize("make", [lambda: GlobalCorrelationGenerator(5, 8), lambda: classified("hardest")])
def test_generators_that_classify_already_are_refused(make):
    with pytest.raises(ValueError, match=r"generator must have no node classification of its own; .* has one"):
        ClassifiedGenerator(make())


class Around(BaseGenerator):
    """A user's generator around another one."""

    def __init__(self, generator):
        super().__init__(generator.num_classes, generator.embedding_size)
        self.inside = generator

    def generate(self, batch, metric_level=math.inf):
        return self.inside.generate(batch, metric_level)


def test_a_classification_further_inside_is_refused_where_it_shows():
    generator = ClassifiedGenerator(Around(classified("hardest")))
    with pytest.raises(ValueError, match="no node classification of its own; Around has one: use it as it is"):
        generator(random_rows(10, dtype=torch.float32), LABELS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generator": ConstantGenerator}, TypeError, "generator must be a pml_gca generator, got the class"),
        ({"num_layers": -1}, ValueError, "num_layers must be at least 0, got -1"),
        ({"num_heads": 3}, ValueError, "embedding_size must be divisible by num_heads, got 8 channels for 3 heads"),
        ({"dropout": 1}, ValueError, "dropout must be below 1, got 1"),
        ({"edge_chunk_size": 0}, ValueError, "edge_chunk_size must be at least 1, got 0"),
        ({"collect_stats": 1}, TypeError, "collect_stats must be a bool, got int"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ClassifiedGenerator(**{"generator": ConstantGenerator(5, 8), **arguments})


def test_the_chunk_size_may_be_changed():
    generator = classified("hardest", 1)
    generator.edge_chunk_size = 7
    assert generator.propagation.edge_chunk_size == 7
    with pytest.raises(ValueError, match="edge_chunk_size must be at least 1, got 0"):
        generator.edge_chunk_size = 0


def test_classes_and_channels_are_those_of_the_generator_inside():
    generator = classified("hardest")
    assert (generator.num_classes, generator.embedding_size) == (NUM_CLASSES, SIZE)
    assert set(PER_CLASS) <= set(GENERATORS)


def test_the_cost_of_a_small_classifier_is_not_shown_as_zero():
    for size in (8, 64, 512):
        cost = str(ClassifiedGenerator(HardestNegativeGenerator(20, size)).cost(30, 3))
        numbers = re.search(r"([\d.]+) [GMk] multiply-adds, ([\d.]+) [GMk]B", cost)
        assert all(float(number) > 0 for number in numbers.groups()), cost
