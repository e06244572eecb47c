"""The benchmark's baseline computes what the generator computes; otherwise comparing their times is meaningless."""

import copy
import math

import naive
import pytest
import torch
from helpers.compared import generate
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 7, 12
BATCHES = {
    "blocks": [0, 0, 0, 1, 1, 1, 4, 4, 4],
    "interleaved": [0, 3, 6, 0, 3, 6],
    "uneven": [2, 5, 2, 2, 6, 5, 1, 2],  # classes 1 and 6 have one sample each
    "two classes": [3, 1, 1, 1, 1],
}
LEVEL = 4.0


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def batch(request):
    """A generator in float64 without dropout, embeddings, labels and the draws of two passes."""
    torch.manual_seed(len(request.param))
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=2, num_heads=2, dropout=0.0).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    labels = torch.tensor(request.param)
    embeddings = torch.randn(len(labels), SIZE, dtype=torch.float64, requires_grad=True)
    return generator, embeddings, labels, torch.rand(2, len(labels), len(labels), dtype=torch.float64)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True, retain_graph=True)


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_graph_and_its_gradients(batch):
    generator, z, y, _ = batch
    other = copy.deepcopy(generator)
    correlations = generator.correlate(z, y)
    logits, coefficients = naive.propagate(other, z, y, dropout=0.0)
    assert_close([correlations.node_logits, correlations.dense()], [logits, coefficients])
    statistics = [
        [value for name, value in g.propagation.named_buffers() if "running" in name] for g in (generator, other)
    ]
    assert len(statistics[0]) == 4
    assert_close(*statistics)
    for ours, theirs in ((correlations.node_logits, logits), (correlations.dense(), coefficients)):
        weight = torch.randn_like(ours)
        assert_close(
            gradients((ours * weight).sum(), [z, *generator.propagation.parameters()]),
            gradients((theirs * weight).sum(), [z, *other.propagation.parameters()]),
        )


def test_negatives_and_losses_and_their_gradients(batch):
    generator, z, y, draws = batch
    negatives = generate(generator, z, y, len(y), LEVEL, draws=draws[0])
    strength = math.exp(-generator.alpha / LEVEL)
    _, coefficients = naive.propagate(generator, z, y, dropout=0.0)
    synthetic = naive.synthesize(z, y, coefficients.detach(), draws[0], strength)
    assert torch.equal(negatives.labels, synthetic.labels.flatten())
    assert torch.equal(negatives.anchors, synthetic.anchors.repeat_interleave(synthetic.labels.shape[1]))
    assert_close([negatives.embeddings], [synthetic.embeddings.flatten(0, 1)])
    weight = torch.randn_like(negatives.embeddings)
    theirs = (synthetic.embeddings.flatten(0, 1) * weight).sum()
    assert_close(gradients((negatives.embeddings * weight).sum(), [z]), gradients(theirs, [z]))

    generator.start_collecting_stats()
    terms = generate(generator, z, y, len(y), LEVEL, draws=draws[0]).objectives
    found = naive.generator_losses(generator, z.detach(), y, draws[0], strength, dropout=0.0)
    stats = (generator.generated_classification_loss, generator.similarity_loss, generator.diversity_loss)
    assert stats == pytest.approx([found[name].item() for name in ("soft", "similarity", "diversity")])
    parameters = list(generator.parameters())
    node = naive.embedder_losses(generator, z, y, draws[0], strength, dropout=0.0)["node"]
    for ours, theirs, inputs in (
        (terms["generation_loss"], found["generation"], parameters),
        (terms["node_classification_loss"], node, [z, *parameters]),
    ):
        assert_close([ours, *gradients(ours, inputs)], [theirs, *gradients(theirs, inputs)])


def test_an_iteration_is_the_loss_then_its_steps(batch, monkeypatch):
    generator, z, y, draws = batch
    metric_loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
    ours = copy.deepcopy(generator)
    of_batch = ours.generate
    monkeypatch.setattr(ours, "generate", lambda *args: of_batch(*args, draws=draws[0]))
    loss = HardNegativeGenerationLoss(metric_loss, ours, collect_stats=True)
    for level in (loss.levels.metric, loss.levels.generator):
        level.value.fill_(LEVEL)
    groups = [list(part.parameters()) for part in (generator.propagation, generator.objective.classifier)]
    found = naive.iteration(
        generator, z, y, metric_loss, [torch.optim.SGD(g, 0.01) for g in groups], (LEVEL, LEVEL), 20.0, 0.0, draws
    )
    (gradient,) = torch.autograd.grad(loss(z, y), z)
    assert_close([gradient], [z.grad])
    weight = -math.expm1(-20.0 / LEVEL)
    assert loss.metric_loss == pytest.approx(found["metric"].item())
    assert loss.synthetic_loss == pytest.approx(weight * found["synthetic"].item())
    assert ours.node_classification_loss == pytest.approx(found["node"].item())
    assert 10 * ours.auxiliary_classification_loss == pytest.approx(found["auxiliary"].item())

    # The second pass runs with the updated parameters: repeat the updates with the generator's own gradients.
    parameters = [list(part.parameters()) for part in (ours.propagation, ours.objective.classifier)]

    def step(term, weights, draw):
        value = of_batch(ours.batch(z, y), LEVEL, draws=draw).objectives[term]
        with torch.no_grad():
            for parameter, slope in zip(weights, gradients(value, weights), strict=True):
                parameter.sub_(0.01 * slope)
        return value

    step("node_classification_loss", parameters[0], draws[0])
    step("auxiliary_classification_loss", parameters[1], draws[0])
    value = step("generation_loss", parameters[0], draws[1])
    torch.testing.assert_close(value, found["generation"])
    assert_close(ours.parameters(), generator.parameters())
