"""The generator with parts of it taken away, each against what is then left, written out."""

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


def test_constant_coefficients_leave_the_node_classification():
    generator, z, y, draws = make(coefficients=0.3)
    found = negatives_of(generator, z, y, draws)
    control = generate(ConstantGenerator(5, 8, coefficient=0.3), z, y, len(z), 2.0, draws=draws)
    torch.testing.assert_close(found.embeddings, control.embeddings)
    graph = oracle.propagate(generator.propagation, z, LABELS)
    classification = oracle.mean([oracle.cross_entropy(row, c) for row, c in zip(graph.logits, LABELS, strict=True)])
    torch.testing.assert_close(found.objectives["node_classification_loss"], classification)
    assert set(found.objectives) == {"node_classification_loss"}


@pytest.mark.parametrize("options", [{}, {"merging": "random"}, {"num_layers": 2, "num_heads": 4}])
def test_real_negatives(options):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator.of_real_negatives(5, 8, **options).double()
    z, y = torch.randn(len(LABELS), 8, dtype=torch.float64), torch.tensor(LABELS)
    draws = torch.rand(len(LABELS), len(LABELS), dtype=torch.float64)
    found = generate(generator, z, y, len(z), 2.0, draws=draws)
    for anchor, label, row in zip(found.anchors.tolist(), found.labels.tolist(), found.embeddings, strict=True):
        members = z[y == label]
        if "merging" not in options:
            nearest = torch.nn.functional.cosine_similarity(members, z[anchor : anchor + 1]).argmax()
            torch.testing.assert_close(row, members[nearest])
    if "merging" in options:
        torch.testing.assert_close(found.embeddings, expected(generator, z, torch.ones(7, 7, 8).double(), draws, 1.0))
    assert set(found.objectives) == {"node_classification_loss"}
    assert generator.interpolation_strength(2.0) == 1
    propagation = generator.propagation
    assert [layer.node.num_heads for layer in propagation.layers] == [4] * options.get("num_layers", 0)


@pytest.mark.parametrize("name", ["alpha", "coefficients"])
def test_real_negatives_are_not_pulled(name):
    with pytest.raises(ValueError, match=rf"{name} decides how far negatives are pulled, and here none is; got 0.5"):
        GlobalCorrelationGenerator.of_real_negatives(5, 8, **{name: 0.5})


def test_random_coefficients_are_0_or_1_and_symmetric():
    generator, z, _, draws = make(coefficients="random", alpha=0.0, merging="mean")
    z = torch.cat([z[:1], z[:1] + 0.1, z[2:]])  # positives are nearer than negatives
    seen = set()
    for _ in range(20):
        y_pairs = torch.tensor([0, 0, 1, 2, 3, 4, 1])  # of classes 2 to 4 one candidate each
        with torch.no_grad():
            found = negatives_of(generator, z, y_pairs, draws)
        for anchor, label, row in zip(found.anchors.tolist(), found.labels.tolist(), found.embeddings, strict=True):
            if label < 2 or anchor > 1:
                continue
            negative = z[y_pairs.tolist().index(label)]
            near, far = (z[0] - z[1]).norm(), (z[anchor] - negative).norm()
            if near < far:
                ratio = (row - z[anchor]) / (negative - z[anchor])
                seen |= {round(value, 9) for value in ((ratio - near / far) / (1 - near / far)).tolist()}
    assert seen <= {0.0, 1.0, -0.0}
    assert {0.0, 1.0} <= seen


def test_one_coefficient_for_each_pair():
    generator, z, y, draws = make(channelwise=False)
    found = negatives_of(generator, z, y, draws)
    coefficients = oracle.propagate(generator.propagation, z, LABELS).coefficients
    alike = coefficients.mean(dim=2, keepdim=True).expand_as(coefficients)
    torch.testing.assert_close(found.embeddings, expected(generator, z, alike, draws))
    centred = alike - alike.mean(dim=1, keepdim=True)
    diversity = 1 - ((centred**2).sum() / len(LABELS) ** 2).sqrt()
    generator.classification_weight = generator.similarity_weight = 0
    alone = negatives_of(generator, z, y, draws).objectives["generation_loss"]
    torch.testing.assert_close(alone, 0.5 * 0.01 * 60 * diversity)
    alone.backward()
    assert generator.propagation.edge_coefficients.weight.grad.any()


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
    generator.coefficients = 0.3
    torch.testing.assert_close(negatives_of(generator, z, y, draws).embeddings, control.embeddings)


@pytest.mark.parametrize("edge_chunk_size", [None, 5])
def test_without_edge_messages_nodes_hear_each_other_alone(edge_chunk_size, monkeypatch):
    generator, z, y, draws = make(edge_messages=False, edge_chunk_size=edge_chunk_size)
    found = negatives_of(generator, z, y, draws)
    silent = torch.nn.Linear(8, 8).double()  # whose messages GELU(0) are 0
    torch.nn.init.zeros_(silent.weight)
    torch.nn.init.zeros_(silent.bias)
    for layer in generator.propagation.layers:
        monkeypatch.setattr(layer.node, "edge_to_node", silent)
    graph = oracle.propagate(generator.propagation, z, LABELS)
    torch.testing.assert_close(found.embeddings, expected(generator, z, graph.coefficients, draws))
    plain = generator.train().propagation.forward_plain(z, y)
    torch.testing.assert_close(plain.node_logits, graph.logits)


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
    sum(found.objectives.values()).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_node_classification_kept_out_of_the_embeddings():
    generator, z, y, draws = make(classify_embeddings=False)
    loss = negatives_of(generator, z, y, draws).objectives["node_classification_loss"]
    assert torch.autograd.grad(loss, z, allow_unused=True, retain_graph=True) == (None,)
    loss.backward()
    assert generator.propagation.node_classifier.weight.grad.any()


@settings(max_examples=15)
@given(y=labels(max_classes=4, max_samples=3))
@pytest.mark.parametrize(
    "options",
    [
        {"coefficients": 0.5},
        {"coefficients": "random"},
        {"channelwise": False},
        {"edge_messages": False},
        {"merging": "mean"},
        {"merging": "hardest"},
        {"num_layers": 0},
        {"classify_embeddings": False},
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


def test_negatives_of_given_coefficients_count_from_the_start():
    for source, weight in (("learned", 0.0), (0.5, 1.0), ("random", 1.0)):
        generator, z, y, _ = make(coefficients=source)
        loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, collect_stats=True)
        loss(z, y)
        assert loss.synthetic_weight == weight


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"coefficients": "local"},
            ValueError,
            r"coefficients must be learned, random or a number in \[0, 1\], got 'local'",
        ),
        ({"coefficients": 1.5}, ValueError, "coefficients must be at most 1, got 1.5"),
        ({"coefficients": None}, TypeError, "coefficients must be"),
        ({"channelwise": 1}, TypeError, "channelwise must be a bool, got int"),
        ({"merging": "softest"}, ValueError, "merging must be random, mean or hardest, got 'softest'"),
        ({"merging": None}, TypeError, "merging must be a string, got NoneType"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize("coefficients", ["learned", 0.5])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_what_is_not_needed_is_neither_trained_nor_paid_for(num_layers, coefficients):
    generator, z, y, draws = make(num_layers=num_layers, coefficients=coefficients)
    sum(negatives_of(generator, z, y, draws).objectives.values()).backward()
    unneeded = [] if coefficients == "learned" else ["auxiliary_classifier"]
    for name, parameter in generator.named_parameters():
        needed = not name.removeprefix("propagation.").startswith(tuple(f"{part}." for part in unneeded))
        assert parameter.requires_grad == needed, name
        assert (parameter.grad is not None) == needed, name  # distributed training waits for all that may learn
    costs, whole = generator.cost(81, 3), make(num_layers=num_layers)[0].cost(81, 3)
    if unneeded:
        assert 0 < costs.multiply_adds < whole.multiply_adds
        assert 0 < costs.bytes <= whole.bytes
