"""A custom loss that ignores synthetic negatives is refused at the first batch; no other loss is."""

import copy

import pytest
import torch
from helpers.registered_losses import LABELS, NUM_CLASSES, SIZE, make_loss, register, with_references, within_one_batch
from losses.test_every_pml_loss import WORKS
from pytorch_metric_learning import losses
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from pml_gca.losses import custom_losses as module
from pml_gca.losses.custom_losses import custom_losses, uses_negatives


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(len(LABELS), SIZE, requires_grad=True)


def reduced(value):
    return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}


class PairsOfTheBatch(BaseMetricLossFunction):
    """Takes triplets and looks them up in the batch, even if there are references."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        anchors, positives, negatives = lmu.convert_to_triplets(indices_tuple, labels)
        distances = self.distance(embeddings)
        return reduced((distances[anchors, positives] - distances[anchors, negatives]).mean())


class Spread(BaseMetricLossFunction):
    """Takes neither pairs nor references."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        return reduced(embeddings.square().mean())


class Hinge(BaseMetricLossFunction):
    """Uses only negatives nearer than `margin`; without any it is a constant without a graph."""

    margin = 1e-3

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        _, _, anchors, negatives = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
        apart = (embeddings[anchors] - ref_emb[negatives]).norm(dim=1)
        near = apart[apart < self.margin]
        return reduced((self.margin - near).sum()) if len(near) else self.zero_losses()


class SemiHard(Hinge):
    """Uses only negatives at medium distances."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        _, _, anchors, negatives = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
        apart = (embeddings[anchors] - ref_emb[negatives]).norm(dim=1)
        some = apart[(apart < 1.5) & (apart > 1e-3)]
        return reduced(some.sum()) if len(some) else self.zero_losses()


class Never(Hinge):
    """Uses no negative at any distance."""

    margin = -1.0


class Weighted(BaseMetricLossFunction):
    """Synthetic rows, without gradient, weight the others."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        weight = ref_emb.detach().square().mean()
        return reduced(weight * embeddings.square().mean())


@pytest.mark.parametrize("collect", [False, True])
def test_loss_without_references_needs_the_joint_form(collect, z):
    loss = make_loss(register(PairsOfTheBatch, with_references)(collect_stats=collect))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    with pytest.raises(ValueError, match=r"PairsOfTheBatch looks pairs up.*loss\(batch\.references\(\)"):
        loss(z, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss = make_loss(register(PairsOfTheBatch, within_one_batch)())
    loss(z, LABELS).backward()
    assert z.grad.any(dim=1).all()


@pytest.mark.parametrize("inside", [False, True])
def test_loss_that_ignores_negatives_is_refused(inside, z):
    wrapped = register(Spread, with_references)()
    loss = make_loss(losses.MultipleLosses([losses.ContrastiveLoss(), wrapped]) if inside else wrapped)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    for _ in range(2):  # each time
        with pytest.raises(ValueError, match=r"Spread cannot learn .* does not depend on the synthetic rows.*Labels"):
            loss(z, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert make_loss(register(Spread, within_one_batch)())(z, LABELS).isfinite()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_check_runs_without_gradients_of_embeddings(requires_grad, z):
    with pytest.raises(ValueError, match="does not depend"):
        make_loss(register(Spread, with_references)())(z.detach().requires_grad_(requires_grad), LABELS)


class WeightedByData(BaseMetricLossFunction):
    """As `Weighted`, through `Tensor.data`."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        return reduced(ref_emb.data.square().mean() * embeddings.square().mean())


class LooksAtShapes(Spread):
    """Reads the shape, dtype and device of the references only."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        assert len(ref_emb) == ref_emb.shape[0] == ref_emb.size(0)
        assert (ref_emb.ndim, ref_emb.dtype, ref_emb.device) == (2, embeddings.dtype, embeddings.device)
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb.to(embeddings.dtype), ref_labels)


def test_reading_shapes_does_not_count_as_use(z):
    with pytest.raises(ValueError, match="does not depend"):
        make_loss(register(LooksAtShapes, with_references)())(z, LABELS)


def test_cpu_copy_gives_the_same_loss(z):
    seen, loss = [], make_loss(losses.ContrastiveLoss())
    loss._synthetic_loss = lambda loss, batch: seen.append(batch) or torch.zeros(())
    loss(z, LABELS, None, torch.randn(3, SIZE), LABELS[:3])
    copied = module.to_cpu(seen[0])
    for form in (with_references, within_one_batch):
        assert torch.equal(form(losses.ContrastiveLoss(), copied), form(losses.ContrastiveLoss(), seen[0]))
    assert not copied.references().requires_grad


@pytest.mark.parametrize("kind", [Hinge, SemiHard, Never, Weighted, WeightedByData])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_no_false_alarm(kind, scale, z):
    z = (scale * z.detach()).requires_grad_()
    loss = make_loss(register(kind, with_references)())
    loss(z, LABELS)
    assert loss._checked_type is type(loss.loss)


def test_negatives_beyond_the_margin_are_no_reason_to_refuse(z):
    loss = make_loss(register(Hinge, with_references)())
    loss(z, LABELS)
    assert loss.synthetic_loss == 0
    kept = make_loss(type("Own", (losses.TripletMarginLoss,), {})(margin=-50.0))
    kept(z, LABELS)
    assert kept.synthetic_loss == kept.metric_loss == 0


@pytest.mark.parametrize("name", sorted(WORKS))
def test_pml_losses_skip_the_check_but_would_pass(name, z):
    wrapped = WORKS[name](NUM_CLASSES)
    assert list(custom_losses(wrapped)) == []
    seen = []
    loss = make_loss(wrapped)
    loss._synthetic_loss = lambda loss, batch: seen.append(batch) or torch.zeros(())
    loss(z, LABELS)
    assert uses_negatives(copy.deepcopy(wrapped), seen[0])


def test_check_draws_and_changes_nothing(z):
    class Counts(losses.TripletMarginLoss):
        calls = 0

        def compute_loss(self, *args):
            self.calls += 1
            return super().compute_loss(*args)

    wrapped = Counts(triplets_per_anchor=2)
    values = []
    for kind in (wrapped, losses.TripletMarginLoss(triplets_per_anchor=2)):
        loss = make_loss(kind)
        torch.manual_seed(3)
        values.append([loss(z, LABELS).item() for _ in range(2)])
    assert values[0] == values[1]
    assert wrapped.calls == 4  # real and synthetic, twice


def test_check_runs_once(z, monkeypatch):
    asked = []
    ask = module.uses_negatives
    monkeypatch.setattr(module, "uses_negatives", lambda *args: asked.append(1) or ask(*args))
    loss = make_loss(register(Hinge, with_references)())
    loss(z[:1], LABELS[:1])  # no negatives
    assert asked == []
    loss(z, LABELS)
    copy.deepcopy(loss)(z, LABELS)
    assert asked == [1]


def test_check_runs_again_for_a_new_loss(z):
    loss = make_loss(losses.ContrastiveLoss())
    loss(z, LABELS)
    loss.loss = register(Spread, with_references)()
    with pytest.raises(ValueError, match="does not depend on the synthetic rows"):
        loss(z, LABELS)


def test_loss_whose_copy_fails_is_not_refused(z):
    class Holds(losses.ContrastiveLoss):
        def __init__(self):
            super().__init__()
            self.last = (torch.ones(1, requires_grad=True) * 2,)  # no leaf: cannot be copied

    assert make_loss(Holds())(z, LABELS).isfinite()

    class Fails(losses.ContrastiveLoss):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if ref_emb is not embeddings:
                raise RuntimeError("of its own")
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    with pytest.raises(RuntimeError, match="of its own"):
        make_loss(Fails())(z, LABELS)
