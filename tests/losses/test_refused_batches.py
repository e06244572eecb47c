"""Batches without gradients, labels or valid references, and errors of the wrapped loss: nothing changes. Which
references repeat a sample of the batch."""

import math

import pytest
import torch
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, make_loss
from helpers.states import assert_unchanged, copied_state
from hypothesis import given
from hypothesis import strategies as st
from losses.test_every_pml_loss import WORKS
from pytorch_metric_learning import losses, miners

from pml_gca.losses.references import join_references, occurrence
from pml_gca.utils.host import HostCopy


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "NPairsLoss", "ProxyAnchorLoss", "MultipleLosses"])
def test_validation_without_gradients_equals_the_wrapped_loss_and_changes_nothing(name, off, z):
    wrapped = WORKS[name](2 * NUM_CLASSES)
    loss = make_loss(wrapped, level_momentum=None)
    loss(z, LABELS)
    before, watch = copied_state(loss), vars(loss.optimizer_watch).copy()
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


def test_labels_out_of_range_in_training_mention_eval(z):
    with pytest.raises(ValueError, match=r"loss\.eval\(\)"):
        make_loss()(z, LABELS + NUM_CLASSES)


@pytest.mark.parametrize("late", [False, True])
def test_messages_speak_of_the_batch_without_its_references(z, late, monkeypatch):
    if late:
        monkeypatch.setattr(HostCopy, "ready", False)
    references = {"ref_emb": torch.randn(5, SIZE), "ref_labels": torch.tensor([0, 1, 2, 3, 4])}
    broken = z.detach().clone()
    broken[3, 2] = math.nan
    with pytest.raises(ValueError, match="embeddings must be finite, got 1 NaN and 0 infinite of 64 values"):
        make_loss()(broken, LABELS, **references)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, num_classes\) = \[0, 9\), got values from 4 to 11"):
        make_loss()(z, LABELS + 4, **references)


PAIRS = (torch.tensor([0, 1]), torch.tensor([2, 6]), torch.tensor([0, 1]), torch.tensor([1, 0]))


@pytest.mark.parametrize("reference", [None, "batch", "others"])
@pytest.mark.parametrize("indices", [None, PAIRS], ids=["all", "pairs"])
@pytest.mark.parametrize("ref_labels", [None, LABELS, LABELS.clone()], ids=["none", "same", "equal"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "NPairsLoss", "ProxyAnchorLoss"])
def test_labels_and_references_in_every_combination(name, labels, ref_labels, indices, reference, z):
    """Evaluation is as in PML. In training labels are required, PML decides the rest, and J_m is its value."""
    wrapped = WORKS[name](NUM_CLASSES)
    loss = make_loss(wrapped, collect_stats=True)
    ref_emb = {None: None, "batch": z, "others": torch.randn(len(LABELS), SIZE)}[reference]
    arguments = (z, labels, indices, ref_emb, ref_labels)
    try:
        expected = wrapped(*arguments)
    except (ValueError, TypeError) as error:
        expected = error
    before = copied_state(loss)
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
def test_references_without_labels_are_checked(bad, z):
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
    """A loss with a running statistic; its `limit`-th call fails."""

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
def test_error_in_the_wrapped_loss_restores_its_statistics(call, z):
    loss = make_loss(Counts())
    loss(z, LABELS)
    before, loss.limit = copied_state(loss), int(loss.calls) + call
    with pytest.raises(ArithmeticError, match="enough"):
        loss(z, LABELS)
    assert_unchanged(loss, before)


@pytest.mark.parametrize("case", sorted(REFUSED_LATE))
def test_late_errors_change_nothing(case, z):
    wrapped, arguments = REFUSED_LATE[case]
    loss = make_loss(wrapped)
    loss(z, LABELS)
    before = copied_state(loss.generator) | {f"levels.{k}": v for k, v in copied_state(loss.levels).items()}
    with pytest.raises((ValueError, AssertionError, IndexError)):
        loss(z, LABELS, *arguments(z))
    after = copied_state(loss.generator) | {f"levels.{k}": v for k, v in copied_state(loss.levels).items()}
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert loss(z, LABELS).isfinite()


@given(st.lists(st.integers(-3, 3), max_size=12))
def test_occurrence_counts_what_came_before(values):
    expected = [values[:i].count(value) for i, value in enumerate(values)]
    assert occurrence(torch.tensor(values, dtype=torch.long)).tolist() == expected


def slow_join(batch, references):
    """The node of each reference: the next sample equal to it that no reference before it is, else a new one."""
    unused, node_of, nodes = list(range(len(batch))), [], list(batch)
    for reference in references:
        twin = next((i for i in unused if batch[i] == reference), None)
        if twin is None:
            node_of.append(len(nodes))
            nodes.append(reference)
        else:
            node_of.append(twin)
            unused.remove(twin)
    return nodes, node_of


SAMPLES = st.tuples(st.integers(0, 3), st.integers(0, 2))  # an embedding of four, a label of three


@given(st.lists(SAMPLES, max_size=9), st.lists(SAMPLES, max_size=12), st.sampled_from([1, 3, 256]))
def test_references_and_samples_are_matched_one_to_one_in_order(batch, references, part):
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def tensors(samples):
        which = torch.tensor([s[0] for s in samples], dtype=torch.long)
        return points[which], torch.tensor([s[1] for s in samples], dtype=torch.long)

    embeddings, labels = tensors(batch)
    # More references than are compared at a time, none of them equal to a sample.
    filler = torch.arange(300.0)[:: 300 // part][:part].unsqueeze(1).expand(-1, 5)
    ref_emb, ref_labels = (
        torch.cat(pair) for pair in zip(tensors(references), (filler, filler[:, 0].long()), strict=True)
    )
    nodes, node_labels, node_of = join_references(embeddings.requires_grad_(), labels, ref_emb, ref_labels.short())
    expected, expected_of = slow_join(batch, references)
    count = len(expected)
    assert node_of.tolist() == [*expected_of, *range(count, count + len(filler))]
    assert torch.equal(nodes[:count], tensors(expected)[0])
    assert torch.equal(node_labels[:count], tensors(expected)[1])
    assert torch.equal(nodes[node_of], ref_emb)
    assert torch.equal(node_labels[node_of], ref_labels)
    assert torch.equal(nodes[: len(batch)], embeddings)


def test_nan_references_do_not_index_out_of_range():
    """Values of a GPU are checked when it has been given its work."""
    z, labels = torch.full((3, 4), float("nan")), torch.zeros(3, dtype=torch.long)
    assert join_references(z, labels, z.clone(), labels)[2].max() < 6
