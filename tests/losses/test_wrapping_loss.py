"""As a PML loss in every corner: attributes, regularizers, absent labels, and no trace of what has no gradient."""

import copy
import inspect
import itertools
import math
import pickle

import pytest
import torch
from losses.test_every_pml_loss import WORKS
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import common_functions as c_f
from torch import nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.losses import synthetic_loss
from pml_gca.losses.families import labelled_synthetic_loss
from pml_gca.losses.wrapping_loss import without_regularizers
from pml_gca.paper import PublishedNPairsLoss

NUM_CLASSES, SIZE = 9, 8
LABELS = torch.tensor([3, 7, 3, 0, 5, 3, 7, 0])
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def generator_of(**kwargs):
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=0.0, **kwargs)


def make_loss(wrapped=None, **kwargs):
    return HardNegativeGenerationLoss(wrapped or losses.ContrastiveLoss(), generator_of(), **kwargs)


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(len(LABELS), SIZE, requires_grad=True)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_unchanged(module, before):
    assert [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])] == []


# Attributes.

COLLECTS_ITSELF = {"collect_stats", "training"}


@pytest.mark.parametrize("name", sorted(WORKS))
def test_every_public_attribute_of_a_loss_is_read_and_set_through_the_wrapper(name):
    wrapped, loss = WORKS[name](NUM_CLASSES), None
    of_base = {key for key, _ in inspect.getmembers(BaseMetricLossFunction)} - {"distance", "reducer"}
    loss = make_loss(wrapped)
    public = {*vars(wrapped), *wrapped._modules, *wrapped._parameters, *dir(type(wrapped))}
    public = {key for key in public if not key.startswith("_")} - of_base - COLLECTS_ITSELF
    assert name.startswith(("MultipleLosses", "P2SGrad")) or {"distance", "reducer"} <= public
    for key in sorted(public):
        expected = getattr(wrapped, key)
        found = getattr(loss, key)
        assert found is expected or found == expected, key
    for key in sorted(public & {*vars(wrapped), *wrapped._modules, *wrapped._parameters}):
        value = getattr(wrapped, key)
        other = copy.deepcopy(value)
        setattr(loss, key, other)
        assert getattr(wrapped, key) is other or getattr(wrapped, key) == other, key
        assert key not in vars(loss), key
        assert key not in loss._modules, key
        assert key not in loss._parameters, key
        setattr(loss, key, value)


@pytest.mark.parametrize("name", sorted(WORKS))
def test_no_name_of_the_wrapper_is_one_of_a_loss(name):
    """But for those of PML's base class, and ``beta``, which is the wrapped loss's where it has one."""
    wrapped = WORKS[name](NUM_CLASSES)
    loss = make_loss()
    own = {*vars(loss), *loss._modules, *dir(type(loss))} - set(dir(BaseMetricLossFunction))
    assert {key for key in own if not key.startswith("_") and hasattr(wrapped, key)} <= COLLECTS_ITSELF


def test_a_miner_with_the_distance_of_the_loss_mines_what_it_does_with_the_wrapped_ones(z):
    wrapped = losses.TripletMarginLoss(distance=distances.CosineSimilarity())
    mined = [
        miners.TripletMarginMiner(margin=0.1, distance=each.distance)(z, LABELS)
        for each in (make_loss(wrapped), wrapped)
    ]
    assert len(mined[0][0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*mined, strict=True))


def test_a_distance_or_reducer_that_is_set_is_used(z):
    loss = make_loss(losses.TripletMarginLoss(margin=0.3), collect_stats=True)
    loss.distance, loss.margin = distances.CosineSimilarity(), 0.5
    loss.set_reducer(reducers.SumReducer())
    expected = losses.TripletMarginLoss(
        margin=0.5, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer()
    )(z, LABELS)
    loss(z, LABELS)
    assert loss.metric_loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(loss.eval()(z, LABELS), expected)


def test_parameters_that_are_set_are_the_wrapped_losses():
    loss = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE))
    names, count = list(loss.state_dict()), len(list(loss.parameters()))
    proxies = nn.Parameter(torch.randn(NUM_CLASSES, SIZE))
    loss.proxies = proxies
    assert loss.loss.proxies is loss.proxies is proxies
    assert (list(loss.state_dict()), len(list(loss.parameters()))) == (names, count)
    assert any(p is proxies for group in loss.parameter_groups(lr=1.0) for p in group["params"])


def test_methods_of_classification_losses(z):
    loss = make_loss(losses.SubCenterArcFaceLoss(num_classes=NUM_CLASSES, embedding_size=SIZE))
    assert torch.equal(loss.get_logits(z), loss.loss.get_logits(z))
    assert loss.W is loss.loss.W
    assert len(loss.get_outliers(z, LABELS)) == len(loss.loss.get_outliers(z, LABELS))


@pytest.mark.parametrize("make", [losses.MarginLoss, losses.MultiSimilarityLoss])
def test_beta_is_the_wrapped_losses_where_it_has_one(make):
    loss = make_loss(make(beta=1.5), beta=30.0)
    assert (float(loss.beta), loss.synthetic_beta) == (1.5, 30.0)
    assert "synthetic_beta" in loss._record_these
    assert "beta" not in loss._record_these
    loss.beta = torch.tensor([2.0])
    assert (float(loss.loss.beta), loss.synthetic_beta) == (2.0, 30.0)
    weight = loss.synthetic_weight_at(torch.tensor(10.0))
    assert weight.item() == pytest.approx(1 - math.exp(-3))


def test_beta_is_the_wrappers_else():
    loss = make_loss(beta=30.0)
    assert loss.beta == loss.synthetic_beta == 30.0
    loss.beta = 10.0
    assert loss.beta == loss.synthetic_beta == 10.0
    assert not hasattr(loss.loss, "beta")
    assert "beta" in loss._record_these


LATER = {
    "a reducer": (lambda loss: loss.set_reducer(reducers.DoNothingReducer()), "must reduce to a scalar"),
    "its reducer": (lambda loss: setattr(loss.loss, "reducer", reducers.DoNothingReducer()), "must reduce to a scalar"),
    "a reducer per anchor": (lambda loss: setattr(loss, "reducer", reducers.PerAnchorReducer()), "PerAnchorReducer"),
    "another loss": (lambda loss: setattr(loss, "loss", losses.FastAPLoss()), "ranks the whole batch"),
    "no loss": (lambda loss: setattr(loss, "loss", nn.CrossEntropyLoss()), "synthetic_loss.register"),
}


@pytest.mark.parametrize("case", sorted(LATER))
def test_what_is_set_later_is_refused_as_if_it_had_been_there(case, z):
    change, message = LATER[case]
    loss = make_loss(losses.NTXentLoss())
    change(loss)
    before = state(loss)
    with pytest.raises((TypeError, ValueError), match=message):
        loss(z, LABELS)
    assert_unchanged(loss, before)


def test_in_evaluation_values_of_any_kind_are_the_wrapped_losses_but_a_regularizer_needs_a_scalar(z):
    loss, own = make_loss().eval(), make_loss(embedding_regularizer=regularizers.LpRegularizer()).eval()
    for each in (loss, own):
        each.reducer = reducers.DoNothingReducer()
    assert loss(z, LABELS).keys() == loss.loss(z, LABELS).keys()
    with pytest.raises(TypeError, match="must return a scalar tensor, got dict"):
        own(z, LABELS)


def test_what_neither_has_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="proxies"):
        _ = make_loss().proxies
    with pytest.raises(AttributeError, match="distance"):
        _ = make_loss(losses.MultipleLosses([losses.ContrastiveLoss()])).distance
    loss = make_loss()
    loss.note = "mine"  # as of any module
    assert "note" in vars(loss)
    assert not hasattr(loss.loss, "note")
    assert not hasattr(loss, "_of_the_wrapped")


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_pass_on_to_their_own_wrapped_loss(make_copy):
    loss = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE, margin=0.2))
    other = make_copy(loss)
    assert other.distance is other.loss.distance is not loss.distance
    other.margin = 0.7
    assert (loss.margin, other.loss.margin) == (0.2, 0.7)
    assert list(other.state_dict()) == list(loss.state_dict())


def test_hooks_and_functional_calls(z):
    loss, seen = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE)), []
    loss.register_forward_hook(lambda module, args, out: seen.append(out))
    loss.loss.register_forward_pre_hook(lambda module, args: seen.append("wrapped"))
    value = loss.eval()(z, LABELS)
    assert seen == ["wrapped", value]
    ones = {"loss.proxies": torch.ones(NUM_CLASSES, SIZE)}
    called = torch.func.functional_call(loss, ones, (z, LABELS))
    loss.proxies = nn.Parameter(ones["loss.proxies"])
    torch.testing.assert_close(called, loss(z, LABELS))


# Records.


@pytest.fixture
def global_flag():
    before = c_f.COLLECT_STATS
    yield
    c_f.COLLECT_STATS = before


@pytest.mark.usefixtures("global_flag")
@pytest.mark.parametrize("flag", [True, False])
def test_pmls_global_flag(flag, z):
    c_f.COLLECT_STATS = flag
    loss = make_loss(losses.TripletMarginLoss())
    for part in (loss, loss.loss, loss.distance, loss.reducer, loss.generator):
        assert part.collect_stats == flag
    loss(z, LABELS)
    assert hasattr(loss, "metric_loss") == hasattr(loss.generator, "num_negatives") == flag
    assert loss._record_these == ["beta", "metric_level", "generator_level"]  # as settings of any loss


@pytest.mark.usefixtures("global_flag")
@pytest.mark.parametrize(("flag", "own"), list(itertools.product([True, False], repeat=2)))
def test_what_the_wrapped_loss_collects_decides(flag, own):
    c_f.COLLECT_STATS = flag
    assert make_loss(losses.TripletMarginLoss(collect_stats=own)).collect_stats == own
    assert make_loss(losses.TripletMarginLoss(collect_stats=own), collect_stats=not own).collect_stats == (not own)
    assert make_loss(losses.MultipleLosses([losses.TripletMarginLoss()])).collect_stats == flag


@pytest.mark.parametrize("start", [True, False])
def test_stats_switched_at_any_time(start, z):
    loss = make_loss(collect_stats=start)
    loss.collect_stats = not start
    with loss.phase("generation"):
        loss(z, LABELS)
    loss(z, LABELS)
    assert hasattr(loss, "synthetic_weight")


@pytest.fixture
def tables(monkeypatch):
    """Columns of each table that record-keeper would write, once for each time."""
    record_keeper = pytest.importorskip("record_keeper")
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)

    def of(loss):
        found = {}
        keeper = record_keeper.RecordKeeper(attributes_to_search_for=c_f.list_of_recordable_attributes_list_names())
        keeper.append_data = lambda table, column, value, iteration: found.setdefault(table, []).append(column)
        loss(torch.randn(len(LABELS), SIZE), LABELS)
        keeper.update_records({"metric_loss": loss}, 0, recursive_types=[nn.Module, dict])
        return found

    return of


def test_records_name_the_distance_that_is_used_and_nothing_that_is_not(tables):
    names = set(tables(make_loss(losses.NTXentLoss())))
    assert {name for name in names if "distance" in name} == {"loss_NTXentLoss__modules_distance_CosineSimilarity"}
    assert {name for name in names if "educer" in name} == {"loss_NTXentLoss__modules_reducer_MeanReducer"}


def test_two_wrapped_losses_of_one_type_share_no_more_tables_than_two_of_pmls_wrappers(tables):
    """record-keeper leaves the outer name out of what is two levels further in: of PML's losses, and so here."""

    def shared(make):
        found = tables(losses.MultipleLosses({"a": make(), "b": make()}))
        return {name for name, columns in found.items() if len(set(columns)) < len(columns)}, found

    ours, found = shared(lambda: make_loss(losses.NTXentLoss()))
    for name in "ab":
        wrapper = f"{name}_HardNegativeGenerationLoss"
        assert "metric_loss" in found[f"losses__modules_{wrapper}"]
        assert "hardness" in found[f"{wrapper}__modules_generator_GlobalCorrelationGenerator"]
        assert found[f"{wrapper}__modules_loss_NTXentLoss"] == ["temperature"]
    theirs, _ = shared(lambda: losses.CrossBatchMemory(losses.NTXentLoss(), SIZE, memory_size=20))
    assert (
        ours
        == theirs
        == {f"loss_NTXentLoss__modules_{x}" for x in ("distance_CosineSimilarity", "reducer_MeanReducer")}
    )


# Regularizers.


class Weights(regularizers.BaseRegularizer):
    """The sum of all weights, so that each time it counts is told by the value."""

    def compute_loss(self, x):
        return {"loss": {"losses": x.sum(), "indices": None, "reduction_type": "already_reduced"}}


def lp():
    return {"embedding_regularizer": regularizers.LpRegularizer(power=2), "embedding_reg_weight": 40.0}


REGULARIZED = {
    "contrastive": lambda **kwargs: losses.ContrastiveLoss(**kwargs),
    "n-pairs": lambda **kwargs: losses.NPairsLoss(**kwargs),
    "nca": lambda **kwargs: losses.NCALoss(**kwargs),
    "angular": lambda **kwargs: losses.AngularLoss(**kwargs),
    "tcm": lambda **kwargs: losses.ThresholdConsistentMarginLoss(**kwargs),
    "triplet": lambda **kwargs: losses.TripletMarginLoss(**kwargs),
    "proxy anchor": lambda **kwargs: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE, **kwargs),
    "arcface": lambda **kwargs: losses.ArcFaceLoss(NUM_CLASSES, SIZE, **kwargs),
    "multiple": lambda **kwargs: losses.MultipleLosses([losses.ContrastiveLoss(**kwargs)]),
    "nested": lambda **kwargs: losses.MultipleLosses({"a": losses.MultipleLosses([losses.NPairsLoss(**kwargs)])}),
}


def values_of(make, z, own=None, **kwargs):
    """Value and gradient in training and in evaluation; with the same draws, and synthetic negatives counting."""
    torch.manual_seed(3)
    loss = HardNegativeGenerationLoss(make(**kwargs), generator_of(), **(own or {})).double()
    loss.levels["generator"].value.fill_(10.0)
    found = []
    for training in (True, False):
        torch.manual_seed(4)
        value = loss.train(training)(z, LABELS)
        found.append((value, *torch.autograd.grad(value, z)))
    return found


@pytest.mark.parametrize("owner", ["wrapped", "wrapper"])
@pytest.mark.parametrize("name", sorted(REGULARIZED))
def test_an_embedding_regularizer_counts_once_everywhere(name, owner, z):
    z = z.detach().double().requires_grad_()
    plain = values_of(REGULARIZED[name], z)
    kwargs = lp() if owner == "wrapped" else {"own": lp()}
    regularized = values_of(REGULARIZED[name], z, **kwargs)
    penalty = 40 * z.square().sum(dim=1).mean()
    expected = (penalty, *torch.autograd.grad(penalty, z))
    for with_it, without in zip(regularized, plain, strict=True):
        for a, b, once in zip(with_it, without, expected, strict=True):
            torch.testing.assert_close(a - b, once, **EXACT)


@pytest.mark.parametrize("name", ["arcface", "proxy anchor"])
def test_a_weight_regularizer_counts_once(name, z):
    z = z.detach().double().requires_grad_()
    plain = values_of(REGULARIZED[name], z)
    regularized = values_of(REGULARIZED[name], z, weight_regularizer=Weights(), weight_reg_weight=7.0)
    torch.manual_seed(3)
    weights = REGULARIZED[name]()
    total = sum(p.detach().double().sum() for p in weights.parameters())
    for with_it, without in zip(regularized, plain, strict=True):
        torch.testing.assert_close(with_it[0] - without[0], 7 * total, rtol=1e-6, atol=1e-6)


def test_a_regularizer_that_is_set_later_counts_once(z):
    for wrapped in (losses.ContrastiveLoss(), losses.MultipleLosses([losses.ContrastiveLoss()])):
        loss = make_loss(wrapped).eval()
        before = loss(z, LABELS)
        loss.embedding_regularizer = regularizers.LpRegularizer()
        torch.testing.assert_close(loss(z, LABELS) - before, z.norm(dim=1).mean())


def test_the_generators_own_half_of_an_iteration_has_no_regularizer(z):
    loss = make_loss(**lp(), collect_stats=True)
    with loss.phase("generation"):
        value = loss(z.detach(), LABELS)
    assert value.item() == pytest.approx(loss.generator_loss, rel=1e-6)


@pytest.mark.parametrize("labels", [[], [4], [0, 1, 2, 3]])
@pytest.mark.parametrize("owner", ["wrapped", "wrapper"])
def test_a_regularizer_of_a_batch_with_nothing_to_compare(owner, labels):
    """It counts, but says nothing about how far training is."""
    z = torch.randn(len(labels), SIZE, requires_grad=True)
    loss = make_loss(losses.NPairsLoss(**(lp() if owner == "wrapped" else {})), **(lp() if owner == "wrapper" else {}))
    loss.levels["generator"].value.fill_(10.0)
    plain = make_loss(losses.NPairsLoss())
    value = loss(z, torch.tensor(labels, dtype=torch.long))
    penalty = 40 * z.square().sum(dim=1).mean() if labels else 0.0
    torch.testing.assert_close(value, plain(z, torch.tensor(labels, dtype=torch.long)) + penalty)
    assert loss.metric_level == math.inf
    value.backward()
    assert z.grad.isfinite().all()


def test_what_was_left_out_is_back_even_after_an_error():
    loss = losses.MultipleLosses({"a": losses.ArcFaceLoss(3, 4, weight_regularizer=Weights(), **lp())})
    names, found = [name for name, _ in loss.named_modules()], vars(loss.losses["a"])["_modules"].copy()
    with pytest.raises(KeyError), without_regularizers(loss):
        raise {}[loss.losses["a"].embedding_regularizer is None]
    assert [name for name, _ in loss.named_modules()] == names
    assert loss.losses["a"]._modules == found


class CallsItsRegularizer(nn.Module):
    """Of another library: it may give ``embedding_regularizer`` a meaning of its own."""

    def __init__(self):
        super().__init__()
        self.embedding_regularizer = nn.Identity()

    def forward(self, embeddings, labels):
        return losses.ContrastiveLoss()(self.embedding_regularizer(embeddings), labels)


def test_only_losses_of_pml_are_asked_for_regularizers(z):
    synthetic_loss.register(CallsItsRegularizer, labelled_synthetic_loss)
    loss = make_loss(CallsItsRegularizer(), collect_stats=True)
    loss.levels["generator"].observe(torch.tensor(1.0))
    loss(z, LABELS)
    assert loss.metric_loss == pytest.approx(losses.ContrastiveLoss()(z, LABELS).item())
    assert loss.synthetic_loss > 0


def test_the_published_penalty_is_part_of_the_published_loss(z):
    """Of both its halves, as the authors have it."""
    loss = make_loss(PublishedNPairsLoss(3), collect_stats=True)
    plain = PublishedNPairsLoss(3)
    plain.embedding_regularizer = None
    without = make_loss(plain, collect_stats=True)
    for each in (loss, without):
        each.levels["generator"].value.fill_(10.0)
        torch.manual_seed(4)
        each(z, LABELS)
    penalty = 0.25 * 3e-3 * 3 * z.square().sum(dim=1).mean().item()
    assert loss.metric_loss - without.metric_loss == pytest.approx(penalty, rel=1e-3)
    assert loss.synthetic_loss - without.synthetic_loss == pytest.approx(loss.synthetic_weight * penalty, rel=1e-3)


# Without gradients.


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "NPairsLoss", "ProxyAnchorLoss", "MultipleLosses"])
def test_a_validation_loop_without_gradients_is_the_wrapped_loss_and_changes_nothing(name, off, z):
    wrapped = WORKS[name](2 * NUM_CLASSES)
    loss = make_loss(wrapped, level_momentum=None)
    loss(z, LABELS)
    before, watch = state(loss), vars(loss.optimizer_watch).copy()
    with off():
        for labels in (LABELS, LABELS + NUM_CLASSES):  # held-out classes, too
            torch.manual_seed(5)
            expected = wrapped(z, labels)
            torch.manual_seed(5)
            assert torch.equal(loss(z, labels), expected)
    assert_unchanged(loss, before)
    assert vars(loss.optimizer_watch) == watch
    assert loss.training
    assert loss(z, LABELS).requires_grad


def test_held_out_classes_in_training_mode_are_told_of_eval(z):
    with pytest.raises(ValueError, match=r"loss\.eval\(\)"):
        make_loss()(z, LABELS + NUM_CLASSES)


# Absent labels and references.

PAIRS = (torch.tensor([0, 1]), torch.tensor([2, 6]), torch.tensor([0, 1]), torch.tensor([1, 0]))


@pytest.mark.parametrize("reference", [None, "batch", "others"])
@pytest.mark.parametrize("indices", [None, PAIRS], ids=["all", "pairs"])
@pytest.mark.parametrize("ref_labels", [None, LABELS, LABELS.clone()], ids=["none", "same", "equal"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "NPairsLoss", "ProxyAnchorLoss"])
def test_labels_and_references_in_every_combination(name, labels, ref_labels, indices, reference, z):
    """In evaluation all is as in PML. In training labels are required; else PML decides, and J_m is its value."""
    wrapped = WORKS[name](NUM_CLASSES)
    loss = make_loss(wrapped, collect_stats=True)
    ref_emb = {None: None, "batch": z, "others": torch.randn(len(LABELS), SIZE)}[reference]
    arguments = (z, labels, indices, ref_emb, ref_labels)
    try:
        expected = wrapped(*arguments)
    except (ValueError, TypeError) as error:
        expected = error
    before = state(loss)
    if labels is None:
        with pytest.raises(ValueError, match=r"^labels are required in training.*torch\.cat"):
            loss(*arguments)
        assert_unchanged(loss, before)
    elif isinstance(expected, Exception):
        with pytest.raises(type(expected), match="not supported"):
            loss(*arguments)
        assert_unchanged(loss, before)
    else:
        loss(*arguments).backward()
        assert loss.metric_loss == pytest.approx(expected.item(), rel=1e-6)
        assert loss.generator.num_negatives >= 7 * 3
        assert z.grad.isfinite().all()
    if isinstance(expected, Exception):
        with pytest.raises(type(expected)):
            loss.eval()(*arguments)
    else:
        assert torch.equal(loss.eval()(*arguments), expected)


def test_several_losses_without_labels_fail_as_in_pml(z):
    wrapped = losses.MultipleLosses([losses.NPairsLoss()])
    with pytest.raises(ValueError, match="labels are required"):
        wrapped(z, None)
    with pytest.raises(ValueError, match="labels are required"):
        make_loss(wrapped).eval()(z, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_references_without_labels_are_checked_all_the_same(bad, z):
    others = torch.randn(4, SIZE)
    others[1, 2] = bad
    with pytest.raises(ValueError, match="ref_emb must be finite"):
        make_loss()(z, LABELS, PAIRS, others)


REFUSED_LATE = {
    "n-pairs, labels that are another object": (losses.NPairsLoss(), lambda z: (None, z, LABELS.clone())),
    "n-pairs, no labels of references": (losses.NPairsLoss(), lambda z: (None, z)),
    "p2s-grad, indices": (losses.P2SGradLoss(SIZE, NUM_CLASSES), lambda z: (PAIRS,)),
    "multiple, references": (losses.MultipleLosses([losses.ContrastiveLoss()]), lambda z: (None, z, LABELS.clone())),
    "multiple, miners and indices": (
        losses.MultipleLosses([losses.ContrastiveLoss()], miners=[miners.MultiSimilarityMiner()]),
        lambda z: (PAIRS,),
    ),
    "contrastive, indices out of range": (losses.ContrastiveLoss(), lambda z: ((PAIRS[0] + 99, *PAIRS[1:]),)),
}


class Counts(losses.ContrastiveLoss):
    """A loss with a running statistic; its ``limit``-th call fails."""

    limit = math.inf

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def compute_loss(self, *args):
        self.calls += 1
        if self.calls >= self.limit:
            raise ArithmeticError("enough")
        return super().compute_loss(*args)


@pytest.mark.parametrize("call", [1, 2])
def test_a_loss_that_fails_half_way_leaves_its_own_statistics_as_they_were(call, z):
    loss = make_loss(Counts())
    loss(z, LABELS)
    before, loss.limit = state(loss), int(loss.calls) + call
    with pytest.raises(ArithmeticError, match="enough"):
        loss(z, LABELS)
    assert_unchanged(loss, before)


@pytest.mark.parametrize("case", sorted(REFUSED_LATE))
def test_whoever_refuses_a_batch_nothing_has_changed(case, z):
    wrapped, arguments = REFUSED_LATE[case]
    loss = make_loss(wrapped)
    loss(z, LABELS)
    before = state(loss.generator) | {f"levels.{k}": v for k, v in state(loss.levels).items()}
    with pytest.raises((ValueError, AssertionError, IndexError)):
        loss(z, LABELS, *arguments(z))
    after = state(loss.generator) | {f"levels.{k}": v for k, v in state(loss.levels).items()}
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert loss(z, LABELS).isfinite()
