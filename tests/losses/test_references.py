"""References and miners' indices: what they change for the wrapped loss, and for generation."""

import math

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import get_indices_tuple

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 9, 8
LABELS = torch.tensor([3, 7, 3, 0, 5, 7])
REF_LABELS = torch.tensor([5, 0, 8, 3])  # a positive for each singleton, a new class, one more positive


def make_loss(wrapped=None, **kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=0.0)
    loss = HardNegativeGenerationLoss(wrapped or losses.NTXentLoss(), generator, collect_stats=True, **kwargs).double()
    loss.levels.metric.value.fill_(3.0)
    loss.levels.generator.value.fill_(12.0)
    return loss


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(len(LABELS), SIZE, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def others():
    torch.manual_seed(2)
    return torch.randn(len(REF_LABELS), SIZE, dtype=torch.float64, requires_grad=True)


def generated_part(loss, z, *args):
    """Return value and gradient of all terms except the wrapped loss, with fixed draws, levels and statistics."""
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    torch.manual_seed(3)
    value = loss(z, *args) - loss.loss(z, *args)
    gradients = torch.autograd.grad(value, [z, *loss.generator.parameters()], materialize_grads=True)
    loss.load_state_dict(state)
    return value, gradients


def same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_they_join_the_graph_and_serve_as_positives_and_negatives(z, others):
    loss = make_loss()
    loss(z, LABELS)
    assert loss.generator.num_negatives == 4 * 3  # anchors of classes 3 and 7, against 3 other classes
    assert loss.generator.num_skipped_anchors == 2
    loss(z, LABELS, None, others, REF_LABELS)
    assert loss.generator.num_negatives == 6 * 4  # singletons have found a positive, class 8 is new
    assert loss.generator.num_skipped_anchors == 0


def test_references_get_no_gradient_from_the_graph(z, others):
    loss = make_loss()
    value = loss(z, LABELS, None, others, REF_LABELS)
    alone = loss.loss(z, LABELS, None, others, REF_LABELS)
    same(torch.autograd.grad(value, others)[0], torch.autograd.grad(alone, others)[0])
    assert torch.autograd.grad(loss(z, LABELS, None, others, REF_LABELS), z)[0].any(dim=1).all()


def test_wrapped_loss_gets_references_unchanged(z, others):
    loss = make_loss()
    loss(z, LABELS, None, others, REF_LABELS)
    assert loss.metric_loss == pytest.approx(loss.loss(z, LABELS, None, others, REF_LABELS).item(), rel=1e-12)


def test_copies_of_the_batch_add_no_nodes(z, others):
    """As DistributedLossWrapper(efficient=True) calls it: the batch itself leads the references."""
    loss = make_loss()
    expected = generated_part(loss, z, LABELS, None, others, REF_LABELS)
    everything, all_labels = torch.cat([z, others]), torch.cat([LABELS, REF_LABELS])
    pairs = get_indices_tuple(LABELS, all_labels)
    same(generated_part(loss, z, LABELS, pairs, everything, all_labels), expected)
    # The position of the copies does not matter.
    everything, all_labels = torch.cat([others, z]), torch.cat([REF_LABELS, LABELS])
    same(generated_part(loss, z, LABELS, None, everything, all_labels), expected)


def test_a_copy_with_another_label_is_a_node(z):
    loss = make_loss()
    loss(z, LABELS, None, z[:1].detach(), torch.tensor([8]))
    assert loss.generator.num_negatives == 4 * 4


def test_references_that_only_repeat_the_batch_change_nothing(z):
    loss = make_loss()
    expected = generated_part(loss, z, LABELS)
    copy, same_labels = z.clone(), LABELS.clone()
    pairs = get_indices_tuple(LABELS, same_labels)
    same(generated_part(loss, z, LABELS, pairs, copy, same_labels), expected)


REPEATED = [0, 1, 0, 2, 5, 1, 0]  # rows of LABELS, some several times


def test_equal_samples_of_the_batch_are_distinct_nodes(z):
    """MPerClassSampler repeats samples of small classes; the distributed wrapper passes the batch a second time."""
    loss = make_loss()
    z, labels = z.detach()[REPEATED].requires_grad_(), LABELS[REPEATED]
    expected = generated_part(loss, z, labels)
    same(
        generated_part(loss, z, labels, get_indices_tuple(labels, labels.clone()), z.clone(), labels.clone()), expected
    )
    assert loss.generator.num_skipped_anchors == 0  # equal samples are each other's positives


def test_extra_copies_are_nodes(z):
    """They act like samples that differ by a negligible amount."""
    loss = make_loss()
    z, copies = z.detach().requires_grad_(), [0, 1, 3, 3]
    everything, all_labels = torch.cat([z, z[copies]]).detach(), torch.cat([LABELS, LABELS[copies]])
    nearly = everything[len(z) :] * (1 + 1e-10)
    found, _ = generated_part(loss, z, LABELS, None, everything, all_labels)
    assert loss.generator.num_skipped_anchors == 1  # class 5; class 3 has found positives
    expected, _ = generated_part(loss, z, LABELS, None, nearly, LABELS[copies])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    alone, _ = generated_part(loss, z, LABELS)
    assert abs(found - alone) > 1e-3 * alone


def test_fewer_copies_than_in_the_batch_change_nothing(z):
    loss = make_loss()
    z, labels = z.detach()[REPEATED].requires_grad_(), LABELS[REPEATED]
    same(generated_part(loss, z, labels, None, z.detach()[:2], labels[:2]), generated_part(loss, z, labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int32])
def test_labels_of_any_integer_dtype(dtype, z, others):
    loss = make_loss()
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    found = []
    for labels, ref_labels in ((LABELS, REF_LABELS), (LABELS.to(dtype), REF_LABELS.to(dtype))):
        loss.load_state_dict(state)
        torch.manual_seed(3)
        found.append(loss(z, labels, None, others, ref_labels))
    same(*found)


def test_a_batch_of_singletons_learns_from_references(z, others):
    loss, singletons = make_loss(), torch.arange(6)
    loss(z, singletons)
    assert loss.generator.num_negatives == 0
    loss(z, singletons, None, z.detach() + 0.1, singletons)
    assert loss.generator.num_negatives == 6 * 5


def test_references_of_another_dtype_and_empty_references(z, others):
    loss = make_loss()
    expected = generated_part(loss, z, LABELS)
    same(generated_part(loss, z, LABELS, None, others[:0], REF_LABELS[:0])[1][1:], expected[1][1:])
    single = others.float()
    loss.float()(z.float(), LABELS, None, single, REF_LABELS.int()).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("make", [losses.NPairsLoss, lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE)])
def test_wrapped_loss_without_references_raises_and_changes_nothing(make, z, others):
    loss = make_loss(make())
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    with pytest.raises(ValueError, match="ref_emb is not supported"):
        loss(z, LABELS, None, others, REF_LABELS)
    changed = [key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])]
    assert not changed


def test_batch_passed_as_its_own_references(z):
    """If labels are another object, PML assumes references, and counts an anchor as its own positive."""
    loss = make_loss(losses.MultiSimilarityLoss())
    loss(z, LABELS, None, z, LABELS.clone())
    assert loss.metric_loss == pytest.approx(loss.loss(z, LABELS, None, z, LABELS.clone()).item(), rel=1e-12)


PAIRS = miners.MultiSimilarityMiner(epsilon=0.5)
TRIPLETS = miners.TripletMarginMiner(margin=1.0)


@pytest.mark.parametrize("miner", [PAIRS, TRIPLETS], ids=["pairs", "triplets"])
@pytest.mark.parametrize("make", [losses.ContrastiveLoss, losses.TripletMarginLoss, losses.NPairsLoss, losses.NCALoss])
def test_indices_of_a_miner_are_for_the_wrapped_loss_alone(make, miner, z):
    loss = make_loss(make())
    indices = miner(z, LABELS)
    assert len(indices[0]) > 0
    same(generated_part(loss, z, LABELS, indices), generated_part(loss, z, LABELS))
    loss(z, LABELS, indices)
    assert loss.metric_loss == pytest.approx(loss.loss(z, LABELS, indices).item(), rel=1e-12)


def test_empty_indices_leave_the_generated_terms(z):
    loss, empty = make_loss(losses.ContrastiveLoss()), torch.tensor([], dtype=torch.long)
    loss(z, LABELS, (empty, empty, empty))
    assert loss.metric_loss == 0
    assert loss.synthetic_loss > 0
    assert math.isfinite(loss.generator_loss)


def test_miners_with_references(z, others):
    loss = make_loss()
    indices = PAIRS(z, LABELS, others, REF_LABELS)
    args = (z, LABELS, indices, others, REF_LABELS)
    loss(*args)
    assert loss.metric_loss == pytest.approx(loss.loss(*args).item(), rel=1e-12)
    same(generated_part(loss, *args), generated_part(loss, z, LABELS, None, others, REF_LABELS))
