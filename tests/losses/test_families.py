"""J_syn of every family equals slow loops, and a synthetic negative affects its own anchor alone."""

import pytest
import torch
from helpers import slow_losses as slow
from pytorch_metric_learning import distances, losses, reducers, regularizers

from pml_gca import HardNegativeGenerationLoss, SyntheticNegatives
from pml_gca.generators import BaseGenerator
from pml_gca.losses import SyntheticBatch, synthetic_loss

LABELS = torch.tensor([3, 7, 3, 0, 5, 3, 7, 0])
SIZE, NUM_CLASSES = 6, 9

ORACLES = {
    "angular": (losses.AngularLoss(), slow.angular),
    "circle": (losses.CircleLoss(), slow.circle),
    "contrastive": (losses.ContrastiveLoss(), slow.contrastive),
    "generalized lifted": (losses.GeneralizedLiftedStructureLoss(), slow.generalized_lifted),
    "histogram": (losses.HistogramLoss(n_bins=20), slow.histogram),
    "intra-pair variance": (losses.IntraPairVarianceLoss(), slow.intra_pair_variance),
    "lifted": (losses.LiftedStructureLoss(), slow.lifted),
    "margin": (losses.MarginLoss(), slow.margin),
    "multi-similarity": (losses.MultiSimilarityLoss(), slow.multi_similarity),
    "n-pairs": (losses.NPairsLoss(), slow.n_pairs),
    "n-pairs, unnormalised": (
        losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
        lambda batch: slow.n_pairs(batch, slow.dot),
    ),
    "nca": (losses.NCALoss(), slow.nca),
    "nt-xent": (losses.NTXentLoss(), slow.nt_xent),
    "snr": (losses.SignalToNoiseRatioContrastiveLoss(), slow.snr_contrastive),
    "supcon": (losses.SupConLoss(), slow.sup_con),
    "tcm": (losses.ThresholdConsistentMarginLoss(), slow.threshold_consistent_margin),
    "triplet": (losses.TripletMarginLoss(margin=0.3), lambda batch: slow.triplet(batch, 0.3)),
    "triplet, drawn": (
        losses.TripletMarginLoss(margin=0.3, triplets_per_anchor=1),
        lambda batch: slow.triplet(batch, 0.3),
    ),
    "triplet, smooth": (losses.TripletMarginLoss(smooth_loss=True), lambda batch: slow.triplet(batch, smooth=True)),
    "triplet, swap": (
        losses.TripletMarginLoss(margin=0.3, swap=True),
        lambda batch: slow.triplet(batch, 0.3, swap=True),
    ),
    "tuplet": (losses.TupletMarginLoss(), slow.tuplet),
}
LABELLED = {
    "ArcFace": losses.ArcFaceLoss(NUM_CLASSES, SIZE),
    "CosFace": losses.CosFaceLoss(NUM_CLASSES, SIZE),
    "LargeMarginSoftmax": losses.LargeMarginSoftmaxLoss(NUM_CLASSES, SIZE),
    "NormalizedSoftmax": losses.NormalizedSoftmaxLoss(NUM_CLASSES, SIZE),
    "P2SGrad": losses.P2SGradLoss(SIZE, NUM_CLASSES),
    "ProxyAnchor": losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
    "ProxyNCA": losses.ProxyNCALoss(NUM_CLASSES, SIZE),
    "SoftTriple": losses.SoftTripleLoss(NUM_CLASSES, SIZE, centers_per_class=2),
    "SphereFace": losses.SphereFaceLoss(NUM_CLASSES, SIZE),
    "SubCenterArcFace": losses.SubCenterArcFaceLoss(num_classes=NUM_CLASSES, embedding_size=SIZE),
}
# Values of one anchor each (or of one pair each); the others are statistics of the whole batch.
PER_ANCHOR = sorted(ORACLES.keys() - {"histogram", "tcm", "intra-pair variance"})


def make_batch(seed=0, num_references=0):
    """Negatives for every anchor with a positive and every other class, unrelated to the real samples."""
    source = torch.Generator().manual_seed(seed)

    def draw(rows):
        return torch.randn(rows, SIZE, generator=source, dtype=torch.float64)

    embeddings = draw(len(LABELS)).requires_grad_()
    node_labels = torch.cat([LABELS, torch.tensor([5, 3, 8])[:num_references]])
    nodes = torch.cat([embeddings, draw(num_references)])
    classes, names = node_labels.unique().tolist(), node_labels.tolist()
    rows = [(i, c) for i, y in enumerate(LABELS.tolist()) if names.count(y) > 1 for c in classes if c != y]
    anchors, labels = torch.tensor(rows).T
    synthetic = (embeddings.detach()[anchors] + draw(len(rows))).requires_grad_()
    return SyntheticBatch(embeddings, LABELS, nodes, node_labels, SyntheticNegatives(synthetic, labels, anchors))


@pytest.mark.parametrize("num_references", [0, 3])
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_it_agrees_with_the_loop(name, num_references):
    loss, oracle = ORACLES[name]
    batch = make_batch(num_references=num_references)
    value, expected = synthetic_loss(loss, batch), oracle(batch)
    assert expected > 0
    # PML's histogram loss multiplies integer bins by the bin width, which is float32 whatever the embeddings are.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if name == "histogram" else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(value, expected, **tolerance)
    leaves = [batch.embeddings, batch.negatives.embeddings]
    for ours, theirs in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


class Kept(reducers.MeanReducer):
    """Keeps the values that it reduces, for tests to inspect."""

    def forward(self, loss_dict, embeddings, labels):
        (self.kept,) = loss_dict.values()
        return super().forward(loss_dict, embeddings, labels)


@pytest.mark.parametrize("name", PER_ANCHOR)
def test_a_synthetic_negative_acts_on_its_own_anchor_alone(name):
    """Row by row of the Jacobian of all unreduced values with respect to all synthetic negatives."""
    # Margins are so wide that every negative counts.
    options = {"snr": {"neg_margin": 99}, "contrastive": {"neg_margin": 99}, "margin": {"beta": 99}}.get(name, {})
    if name.startswith("triplet"):
        options = {"swap": "swap" in name, "smooth_loss": True}
    loss = type(ORACLES[name][0])(reducer=Kept(), **options)
    batch = make_batch(seed=1)
    synthetic_loss(loss, batch)
    seen = set()
    for reducer in (module for module in loss.reducer.modules() if isinstance(module, Kept)):
        values, indices = reducer.kept["losses"], reducer.kept["indices"]
        if not isinstance(values, torch.Tensor):
            continue
        rows = indices if isinstance(indices, torch.Tensor) else indices[0]
        for k, (value, anchor) in enumerate(zip(values.flatten(), rows.tolist(), strict=True)):
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            (gradient,) = torch.autograd.grad(value, batch.negatives.embeddings, **options)
            owners = set(batch.negatives.anchors[gradient.any(dim=1)].tolist())
            allowed = {anchor, indices[1][k].item()} if name == "lifted" else {anchor}
            assert owners <= allowed, f"value {k} of anchor {anchor}"
            seen |= owners
    assert seen == set(batch.negatives.anchors.tolist())


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_the_order_of_synthetic_negatives_does_not_matter(name):
    loss, batch = ORACLES[name][0], make_batch()
    order, old = torch.randperm(len(batch.negatives)), batch.negatives
    shuffled = SyntheticNegatives(old.embeddings[order], old.labels[order], old.anchors[order])
    other = SyntheticBatch(batch.embeddings, batch.labels, batch.nodes, batch.node_labels, shuffled)
    torch.testing.assert_close(synthetic_loss(loss, other), synthetic_loss(loss, batch))


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_proxy_losses_take_negatives_as_further_samples(name):
    loss, batch = LABELLED[name], make_batch()
    everything = torch.cat([batch.embeddings, batch.negatives.embeddings])
    expected = loss(everything, torch.cat([LABELS, batch.negatives.labels]))
    torch.testing.assert_close(synthetic_loss(loss, batch), expected)


def test_n_pairs_takes_the_distance_and_reducer_it_was_given():
    batch = make_batch()
    with_cosine = losses.NPairsLoss(distance=distances.CosineSimilarity(), reducer=reducers.SumReducer())
    values = []
    for i, z, positives, own in slow.anchors(batch):
        if positives:
            _, p = min(positives, key=lambda positive: (positive[0] - i) % len(LABELS))
            values.append(slow.log_sum_exp([slow.cosine(z, x) for x in [p, *own]]) - slow.cosine(z, p))
    torch.testing.assert_close(synthetic_loss(with_cosine, batch), slow.total(values))


def test_nca_takes_a_similarity_and_a_scale():
    batch = make_batch()
    loss = losses.NCALoss(softmax_scale=3, distance=distances.CosineSimilarity())
    values = []
    for _, z, positives, own in slow.anchors(batch):
        if positives:
            near = [3 * slow.cosine(z, p) for _, p in positives]
            values.append(slow.log_sum_exp(near + [3 * slow.cosine(z, n) for n in own]) - slow.log_sum_exp(near))
    torch.testing.assert_close(synthetic_loss(loss, batch), slow.mean(values))


@pytest.mark.parametrize("make", [losses.NPairsLoss, losses.NCALoss, losses.ContrastiveLoss, losses.TripletMarginLoss])
def test_the_embedding_regularizer_of_the_wrapped_loss_counts(make):
    batch = make_batch(num_references=3)
    plain, regularized = make(), make(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=2)
    expected = synthetic_loss(plain, batch) + 2 * batch.embeddings.norm(dim=1).mean()
    torch.testing.assert_close(synthetic_loss(regularized, batch), expected)


@pytest.mark.parametrize("named", [False, True])
def test_multiple_losses_are_summed_with_their_weights(named):
    members = [losses.ContrastiveLoss(), losses.NPairsLoss(), LABELLED["ProxyAnchor"]]
    weights, batch = [1, 0.5, 0.25], make_batch()
    expected = sum(w * synthetic_loss(member, batch) for w, member in zip(weights, members, strict=True))
    if named:
        members, weights = dict(zip("abc", members, strict=True)), dict(zip("abc", weights, strict=True))
    torch.testing.assert_close(synthetic_loss(losses.MultipleLosses(members, weights=weights), batch), expected)


def test_custom_loss_registers_in_three_lines():
    class Spread(torch.nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.square().mean()

    class Nothing(BaseGenerator):
        def generate(self, batch, metric_level):
            anchors = torch.arange(batch.num_anchors)
            return SyntheticNegatives(batch.anchors + 1, (batch.anchor_labels + 1) % NUM_CLASSES, anchors)

    @synthetic_loss.register(Spread)
    def _(loss, batch):
        return loss(batch.references(), batch.reference_labels())

    loss = HardNegativeGenerationLoss(Spread(), Nothing(NUM_CLASSES, SIZE))
    z = torch.randn(8, SIZE, requires_grad=True)
    loss.levels.generator.value.fill_(1e-3)  # the synthetic term counts fully
    expected = z.square().mean() + torch.cat([z, z + 1]).square().mean()
    torch.testing.assert_close(loss(z, LABELS), expected)
