"""GCA-HNG with parts taken away by its options, each against what is then left, written out."""

import pytest
import torch
from helpers import oracle
from helpers.compared import generate
from helpers.strategies import NUM_CLASSES, labels
from hypothesis import given, settings
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import ConstantGenerator

LABELS = [0, 1, 2, 0, 1, 2, 2]


def make(**options):
    torch.manual_seed(0)
    options = {"num_layers": 2, "num_heads": 2, "dropout": 0.0, **options}
    generator = GlobalCorrelationGenerator(5, 8, **options).double()
    z = torch.randn(len(LABELS), 8, dtype=torch.float64, requires_grad=True)
    return generator, z, torch.tensor(LABELS), torch.rand(len(LABELS), len(LABELS), dtype=torch.float64)


def negatives_of(generator, z, y, draws):
    return generate(generator, z, y, len(z), 2.0, draws=draws)


def expected(generator, z, coefficients, draws, strength=None):
    strength = generator.interpolation_strength(2.0).item() if strength is None else strength
    rows = oracle.synthesize(z, LABELS, coefficients, draws, strength, len(LABELS))
    return torch.stack([row for _, _, row in rows])


def test_without_random_weighting_negatives_are_means():
    generator, z, y, draws = make(merging="mean")
    found = negatives_of(generator, z, y, draws)
    coefficients = oracle.propagate(generator.propagation, z, LABELS).coefficients
    strength = generator.interpolation_strength(2.0).item()
    means = []
    for i, label in enumerate(LABELS):
        for other in sorted({0, 1, 2} - {label}):
            members = [j for j, c in enumerate(LABELS) if c == other]
            candidates = [oracle.candidate(z, LABELS, i, j, coefficients[i, j], strength) for j in members]
            means.append(sum(candidates) / len(candidates))
    torch.testing.assert_close(found.embeddings, torch.stack(means))


def test_the_hardest_candidates_are_those_of_the_most_similar_samples():
    generator, z, y, draws = make(merging="hardest")
    found = negatives_of(generator, z, y, draws)
    graph = oracle.propagate(generator.propagation, z, LABELS)
    strength = generator.interpolation_strength(2.0).item()
    rows = []
    for i, label in enumerate(LABELS):
        for other in sorted({0, 1, 2} - {label}):
            members = [j for j, c in enumerate(LABELS) if c == other]
            hardest = max(members, key=lambda j: torch.cosine_similarity(z[i], z[j], dim=0).item())
            rows.append(oracle.candidate(z, LABELS, i, hardest, graph.coefficients[i, hardest], strength))
    torch.testing.assert_close(found.embeddings, torch.stack(rows))
    hardest = ConstantGenerator(5, 8, coefficient=0.3, merging="hardest")
    control = generate(hardest, z, y, len(z), 2.0, draws=draws)
    given = torch.full((len(z) * (len(z) + 1) // 2, 8), 0.3, dtype=torch.float64)
    found = generate(generator, z, y, len(z), 2.0, draws=draws, coefficients=given)
    torch.testing.assert_close(found.embeddings, control.embeddings)


def test_without_layers_embeddings_are_read_off_as_they_are():
    generator, z, y, draws = make(num_layers=0)
    found = negatives_of(generator, z, y, draws)
    graph = oracle.propagate(generator.propagation, z, LABELS)
    torch.testing.assert_close(found.embeddings, expected(generator, z, graph.coefficients, draws))
    assert set(found.objectives) == {
        "node_classification_loss",
        "generation_loss",
        "auxiliary_classification_loss",
    }


def test_negatives_told_apart_among_the_classes_of_the_batch():
    weights = {"classification_weight": 2, "similarity_weight": 0, "diversity_weight": 0}
    generator, z, _, draws = make(classify_among="batch", **weights)
    names = [4, 1, 2, 4, 1, 2, 2]
    found = generate(generator, z, torch.tensor(names), len(z), 2.0, draws=draws).objectives["generation_loss"]
    graph, strength = oracle.propagate(generator.propagation, z, names), generator.interpolation_strength(2.0).item()
    rows = oracle.synthesize(z.detach(), names, graph.coefficients, draws, strength, len(names))
    weight, bias = (p.detach() for p in generator.objective.classifier.parameters())
    scores = torch.stack([weight @ row + bias for _, _, row in rows])
    own = torch.stack([score[label] for score, (_, label, _) in zip(scores, rows, strict=True)])
    expected = (scores[:, [1, 2, 4]].exp().sum(dim=1).log() - own).mean()
    torch.testing.assert_close(found, expected)
    parameters = list(generator.propagation.parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    pairs = zip(*(torch.autograd.grad(x, parameters, **options) for x in (found, expected)), strict=True)
    for gradient, wanted in pairs:
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-12)
    empty = generate(generator, z[:0], torch.tensor([], dtype=torch.long), 0, 2.0).objectives["generation_loss"]
    assert empty == 0
    empty.backward()
    everything = make(**weights)[0]  # as without the option, where the batch has all classes
    restricted = make(classify_among="batch", **weights)[0]
    z, y = torch.randn(10, 8, dtype=torch.float64), torch.arange(10) % 5
    values = []
    for made in (everything, restricted):
        torch.manual_seed(1)
        values.append(generate(made, z, y, 10, 2.0).objectives["generation_loss"])
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_every_parameter_is_trained(num_layers):
    generator, z, y, draws = make(num_layers=num_layers)
    sum(negatives_of(generator, z, y, draws).objectives.values()).backward()
    for name, parameter in generator.named_parameters():  # distributed training waits for all that may learn
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name


@settings(max_examples=15)
@given(y=labels(max_classes=4, max_samples=3))
@pytest.mark.parametrize(
    "options",
    [
        {"merging": "mean"},
        {"merging": "hardest"},
        {"num_layers": 0},
        {"classify_among": "batch"},
    ],
    ids=str,
)
def test_any_batch(options, y):
    generator = GlobalCorrelationGenerator(NUM_CLASSES, 8, **{"num_layers": 1, "num_heads": 1, **options})
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator)
    z = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(len(y)), requires_grad=True)
    total = loss(z, y)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"merging": "softest"}, ValueError, "merging must be random, mean or hardest, got 'softest'"),
        ({"classify_among": "Batch"}, ValueError, "classify_among must be all or batch, got 'Batch'"),
        ({"merging": None}, TypeError, "merging must be a string, got NoneType"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)
