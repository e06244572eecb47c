"""Gradients that are differentiated themselves, as gradient penalties do."""

import pytest
import torch
from helpers.compared import GENERATORS, NUM_CLASSES, SIZE, random_rows
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import ClassifiedGenerator, ConstantGenerator, HardestNegativeGenerator

LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7])  # merging, and a skipped anchor


class ConstantCoefficients(GlobalCorrelationGenerator):
    """GCA-HNG, whose negatives are made by a constant; its graph is still propagated and trained."""

    def coefficients_of_edges(self, num_edges, nodes, graph):
        return 0.4 + 0 * graph.coefficients


def classified(**options):
    return ClassifiedGenerator(ConstantGenerator(NUM_CLASSES, SIZE, coefficient=0.4), **options)


EVERY = GENERATORS | {
    "GCA-HNG": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=2),
    "GCA-HNG, in chunks": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=2, edge_chunk_size=7),
    "real negatives": lambda: ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE)),
    "classified": lambda: classified(num_layers=2),
}
# Coefficients are detached from what the embeddings learn, which differences cannot know: here they are constants.
FIXED = GENERATORS | {
    "GCA-HNG": lambda: ConstantCoefficients(NUM_CLASSES, SIZE, num_layers=2),
    "GCA-HNG, in chunks": lambda: ConstantCoefficients(NUM_CLASSES, SIZE, num_layers=3, edge_chunk_size=7),
    "classified": lambda: classified(num_layers=2),
    "classified, in chunks": lambda: classified(num_layers=3, edge_chunk_size=7),
    "real negatives": EVERY["real negatives"],
}
LOSSES = {
    "N-pairs": losses.NPairsLoss,
    "N-pairs, dot products": lambda: losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False)),
    "multi-similarity": losses.MultiSimilarityLoss,
    "triplet": lambda: losses.TripletMarginLoss(distance=CosineSimilarity()),  # torch 2.4's cdist has no second one
}


def made(make, loss="multi-similarity"):
    torch.manual_seed(0)
    wrapped = HardNegativeGenerationLoss(LOSSES[loss](), make()).double()
    for level in (wrapped.levels.metric, wrapped.levels.generator):
        level.value.fill_(3.0)
    return wrapped


def gradients(loss, z, of, create_graph, labels=LABELS):
    """All draws and levels as they were."""
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    torch.manual_seed(1)
    found = torch.autograd.grad(loss(z, labels), of, create_graph=create_graph, allow_unused=True)
    with torch.no_grad():
        for name, value in loss.state_dict().items():
            if "level" in name or "running" in name:
                value.copy_(state[name])
    return found


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_gradient_is_the_same_whether_it_is_to_be_differentiated_or_not(name):
    loss, z = made(EVERY[name]), random_rows(10)
    of = [z, *(p for p in loss.parameters() if p.requires_grad)]
    for plain, again in zip(*(gradients(loss, z, of, create_graph) for create_graph in (False, True)), strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again.detach(), plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rows", [len(LABELS), 0])
@pytest.mark.parametrize("name", [name for name in sorted(EVERY) if list(EVERY[name]().parameters())])
def test_so_are_those_of_parameters_alone_and_of_an_empty_batch(name, rows):
    loss, z = made(EVERY[name]), random_rows(rows).detach()
    parameters = list(loss.parameters())
    for plain, again in zip(
        *(gradients(loss, z, parameters, create_graph, LABELS[:rows]) for create_graph in (False, True)), strict=True
    ):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again.detach(), plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "loss"),
    [*((name, "multi-similarity") for name in sorted(FIXED)), *(("GCA-HNG", x) for x in sorted(LOSSES))],
)
def test_a_gradient_penalty_has_the_gradient_that_differences_say(name, loss):
    """Of the embeddings, and of the parameters through the mixed second derivative."""
    loss, z = made(FIXED[name], loss), random_rows(10)
    parameters = [p for p in loss.parameters() if p.requires_grad and "reembedded" not in name]  # these are held fixed

    def penalty(create_graph=False):
        (gradient,) = gradients(loss, z, [z], create_graph)
        return gradient.square().sum()

    found = torch.autograd.grad(penalty(create_graph=True), [z, *parameters], allow_unused=True, materialize_grads=True)
    source = torch.Generator().manual_seed(2)
    step = 1e-5
    for values, gradient in zip([[z], parameters], [found[:1], found[1:]], strict=True):
        along = [torch.randn(x.shape, generator=source, dtype=x.dtype) for x in values]
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for x, direction in zip(values, along, strict=True):
                    x += sign * step * direction
            ends.append(penalty())
        with torch.no_grad():
            for x, direction in zip(values, along, strict=True):
                x += step * direction
        expected = (ends[0] - ends[1]) / (2 * step)
        slope = sum((g * direction).sum() for g, direction in zip(gradient, along, strict=True))
        torch.testing.assert_close(torch.as_tensor(slope, dtype=expected.dtype), expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_of_the_generators_own_loss_can_be_differentiated():
    loss, z = made(EVERY["GCA-HNG"]), random_rows(10)
    parameters = [p for p in loss.generator.propagation.parameters() if p.requires_grad]

    def own(create_graph=False):
        torch.manual_seed(1)
        total = loss.generator(z.detach(), LABELS, None, 3.0).objectives["generation_loss"]
        return torch.autograd.grad(total, parameters, create_graph=create_graph, allow_unused=True)

    def squares(found):
        return sum(g.square().sum() for g in found if g is not None)

    for plain, again in zip(own(), own(create_graph=True), strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-8, atol=1e-10)
    found = torch.autograd.grad(squares(own(create_graph=True)), parameters, allow_unused=True, materialize_grads=True)
    along, ends = [torch.randn_like(p) for p in parameters], []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter += sign * 1e-6 * direction
        ends.append(squares(own()))
    slope = sum((g * direction).sum() for g, direction in zip(found, along, strict=True))
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-3, atol=1e-6)


def test_equal_embeddings_have_finite_second_derivatives():
    loss, z = made(EVERY["GCA-HNG"]), random_rows(10).detach()
    z[2] = z[0]
    z[1] = z[6]
    z.requires_grad_()
    (gradient,) = gradients(loss, z, [z], True)
    gradient.square().sum().backward()
    assert z.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_a_penalty_under_autocast_is_near_that_without():
    loss, z = made(EVERY["GCA-HNG"]), random_rows(10, dtype=torch.float32)
    loss.float()
    found = []
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            (gradient,) = gradients(loss, z, [z], True)
            found.append(torch.autograd.grad(gradient.square().sum(), z)[0])
    assert (found[0] - found[1]).norm() < 0.25 * found[0].norm()


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("length", [0.0, 1.0])
@pytest.mark.parametrize("labels", [[0], [2, 2, 2], [0, 1, 2], [5, 5, 9]])
def test_degenerate_batches_have_finite_second_derivatives(name, labels, length):
    generator, z = EVERY[name](), random_rows(len(labels), dtype=torch.float32).detach() * length
    negatives = generator(z.requires_grad_(), torch.tensor(labels))
    total = (negatives.embeddings + z.sum()).square().sum() + sum(negatives.objectives.values()) + z.square().sum()
    (gradient,) = torch.autograd.grad(total, z, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.isfinite().all()
    assert z.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in generator.parameters())
