"""GCA-HNG with a part taken away by a subclass, each against what is then left, written out."""

import pytest
import torch
from comparison.ablations import (
    DetachedClassificationGenerator,
    ScalarCorrelationGenerator,
    SilentClassifiedGenerator,
    SilentCorrelationGenerator,
)
from comparison.registry import ALL
from helpers import oracle
from helpers.compared import generate
from helpers.strategies import NUM_CLASSES, labels
from hypothesis import given, settings
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import (
    ClassifiedGenerator,
    ConstantGenerator,
    HardestNegativeGenerator,
    RandomGenerator,
)

LABELS = [0, 1, 2, 0, 1, 2, 2]


def make(kind, **options):
    torch.manual_seed(0)
    options = {"num_layers": 2, "num_heads": 2, "dropout": 0.0, **options}
    generator = kind(5, 8, **options).double()
    z = torch.randn(len(LABELS), 8, dtype=torch.float64, requires_grad=True)
    return generator, z, torch.tensor(LABELS), torch.rand(len(LABELS), len(LABELS), dtype=torch.float64)


def negatives_of(generator, z, y, draws):
    return generate(generator, z, y, len(z), 2.0, draws=draws)


def expected(generator, z, coefficients, draws):
    strength = generator.interpolation_strength(2.0).item()
    rows = oracle.synthesize(z, LABELS, coefficients, draws, strength, len(LABELS))
    return torch.stack([row for _, _, row in rows])


def test_one_coefficient_for_each_pair():
    generator, z, y, draws = make(ScalarCorrelationGenerator)
    found = negatives_of(generator, z, y, draws)
    coefficients = oracle.propagate(generator.propagation, z, LABELS).coefficients
    alike = coefficients.mean(dim=2, keepdim=True).expand_as(coefficients)
    torch.testing.assert_close(found.embeddings, expected(generator, z, alike, draws))
    centred = alike - alike.mean(dim=1, keepdim=True)
    diversity = 1 - ((centred**2).sum() / len(LABELS) ** 2).sqrt()
    generator.objective.classification_weight = generator.objective.similarity_weight = 0
    alone = negatives_of(generator, z, y, draws).objectives["generation_loss"]
    torch.testing.assert_close(alone, 0.5 * 0.01 * 60 * diversity)
    alone.backward()
    assert generator.propagation.edge_coefficients.weight.grad.any()


@pytest.mark.parametrize("edge_chunk_size", [None, 5])
def test_without_edge_messages_nodes_hear_each_other_alone(edge_chunk_size, monkeypatch):
    generator, z, y, draws = make(SilentCorrelationGenerator, edge_chunk_size=edge_chunk_size)
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


def test_node_classification_kept_out_of_the_embeddings():
    generator, z, y, draws = make(DetachedClassificationGenerator)
    loss = negatives_of(generator, z, y, draws).objectives["node_classification_loss"]
    assert torch.autograd.grad(loss, z, allow_unused=True, retain_graph=True) == (None,)
    loss.backward()
    assert generator.propagation.node_classifier.weight.grad.any()


def test_a_classification_without_edge_messages():
    torch.manual_seed(0)
    generator = SilentClassifiedGenerator(HardestNegativeGenerator(5, 8), num_layers=2, dropout=0.0).double()
    z, y = torch.randn(len(LABELS), 8, dtype=torch.float64), torch.tensor(LABELS)
    first = generator(z, y).objectives["node_classification_loss"]
    first.backward()
    assert generator.propagation.node_classifier.weight.grad.any()
    with torch.no_grad():
        for layer in generator.propagation.layers[:-1]:
            for parameter in layer.edge.parameters():
                parameter.add_(1.0)  # which no node hears
    torch.testing.assert_close(generator(z, y).objectives["node_classification_loss"], first)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", [ScalarCorrelationGenerator, SilentCorrelationGenerator, DetachedClassificationGenerator]
)
def test_every_parameter_that_may_learn_is_trained(kind, num_layers):
    generator, z, y, draws = make(kind, num_layers=num_layers)
    sum(negatives_of(generator, z, y, draws).objectives.values()).backward()
    silent = ".node.edge_to_node." if kind is SilentCorrelationGenerator else "none"
    for name, parameter in generator.named_parameters():  # distributed training waits for all that may learn
        assert parameter.requires_grad == (silent not in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


@settings(max_examples=15)
@given(y=labels(max_classes=4, max_samples=3))
@pytest.mark.parametrize(
    "kind", [ScalarCorrelationGenerator, SilentCorrelationGenerator, DetachedClassificationGenerator]
)
def test_any_batch(kind, y):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), kind(NUM_CLASSES, 8, num_layers=1, num_heads=1))
    z = torch.randn(len(y), 8, generator=torch.Generator().manual_seed(len(y)), requires_grad=True)
    total = loss(z, y)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("contender", "kind", "inner"),
    [
        ("gca", GlobalCorrelationGenerator, None),
        ("scalar", ScalarCorrelationGenerator, None),
        ("no_edge_messages", SilentCorrelationGenerator, None),
        ("detached", DetachedClassificationGenerator, None),
        ("real", ConstantGenerator, None),
        ("hardest", HardestNegativeGenerator, None),
        ("graph_constant", ClassifiedGenerator, ConstantGenerator),
        ("graph_random", ClassifiedGenerator, RandomGenerator),
        ("graph_real", ClassifiedGenerator, ConstantGenerator),
        ("graph_hardest", ClassifiedGenerator, HardestNegativeGenerator),
        ("nodes_real", SilentClassifiedGenerator, ConstantGenerator),
        ("linear_real", ClassifiedGenerator, ConstantGenerator),
        ("linear_as_graph", ClassifiedGenerator, ConstantGenerator),
        ("linear_hardest", ClassifiedGenerator, HardestNegativeGenerator),
    ],
)
def test_contenders_are_what_they_are_called(contender, kind, inner):
    options = {name: value for name, value in ALL[contender].settings.items() if name != "beta"}
    generator = ALL[contender].make(5, 8, **{"alpha": 2.0, **options})
    assert type(generator) is kind
    if inner is not None:
        assert type(generator.generator) is inner
        assert len(generator.propagation.layers) == (0 if contender.startswith("linear") else 1)
        assert getattr(generator.generator, "coefficient", 1.0) == options.get("coefficient", 1.0)
