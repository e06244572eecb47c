"""The gradients of swept functions: against numerical ones, and in several backward passes through one graph."""

import pytest
import torch
from helpers.counters import MultiplyAdds
from helpers.strategies import embeddings, generators, labels, small_generator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from pml_gca.correlation.correlations import GradientPass
from pml_gca.correlation.diversity import diversity_loss
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.objective import frozen_classification_loss
from pml_gca.correlation.sweeps.coefficients import EdgeCoefficients, edge_statistics
from pml_gca.correlation.sweeps.messages import EdgeMessages
from pml_gca.correlation.sweeps.rows import EdgeState, SweepPlan
from pml_gca.correlation.sweeps.update import EdgeUpdate
from pml_gca.generators.merging import merging_weights
from pml_gca.generators.planning import plan_candidates
from pml_gca.generators.synthesis import Synthesis, synthesize

NODES, EDGES, SIZE, HIDDEN = 4, 10, 3, 5


def numbers(*shape, seed=0, grad=True):
    source = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_(grad)


def plan(max_edges=4, keep=False):
    return SweepPlan(EdgeList(NODES), max_edges, torch.float64, torch.float64, keep)


def edge_rows(is_first):
    """What edges are computed from: standardised embeddings, or edges before a post-norm and its scale and shift."""
    return (numbers(NODES, SIZE), None, None) if is_first else (numbers(EDGES, SIZE), 1 + numbers(SIZE), numbers(SIZE))


def leaves(*tensors):
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_gradients_of_edge_messages(keep, is_first):
    inputs = leaves(*edge_rows(is_first), numbers(SIZE, SIZE), numbers(SIZE, seed=1))
    assert gradcheck(lambda *x: EdgeMessages.apply(plan(keep=keep), NODES, *x), inputs)


@pytest.mark.parametrize(
    ("keep", "masked", "is_first"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, True)],
)
def test_gradients_of_the_edge_update(keep, masked, is_first):
    ends = (numbers(NODES, SIZE), numbers(NODES), numbers(NODES, SIZE, seed=1))
    norm = (1 + numbers(SIZE, seed=2), numbers(SIZE, seed=3))
    mlp = (numbers(HIDDEN, SIZE), numbers(HIDDEN), numbers(SIZE, HIDDEN, seed=1), numbers(SIZE, seed=4))
    inputs = leaves(*edge_rows(is_first), *ends, *norm, *mlp)
    mask = torch.tensor([[0.0, 1.5, 1, 0, 2] * 2, [1.0, 0, 1.5, 0, 1] * 2], dtype=torch.float64) if masked else None
    assert gradcheck(lambda *x: EdgeUpdate.apply(plan(keep=keep), *x[:6], mask, *x[6:]), inputs)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_edge_coefficients(training):
    inputs = leaves(*edge_rows(is_first=False), 1 + numbers(SIZE), numbers(SIZE, SIZE), numbers(SIZE, seed=5))

    def coefficients(kept, norm_weight, norm_bias, scale, weight, bias):
        count, mean, variance = None, torch.full_like(scale, 0.2), torch.full_like(scale, 0.7)
        if training:
            count, mean, variance = edge_statistics(plan(), EdgeState(kept, norm_weight, norm_bias))
        rstd = torch.rsqrt(variance.detach() + 1e-5)
        return EdgeCoefficients.apply(
            plan(), kept, norm_weight, norm_bias, count, mean.detach(), rstd, scale, weight, bias
        )

    assert gradcheck(coefficients, inputs)


@settings(max_examples=6)
@given(labels(min_classes=2, max_classes=3, max_samples=2), st.integers(1, 20), st.floats(0, 1), st.data())
def test_gradients_of_the_synthesis(y, max_edges, strength, data):
    num_anchors = data.draw(st.integers(1, len(y)))
    candidates = plan_candidates(y, num_anchors)
    assume(len(candidates.synthetic_anchors))
    weights = merging_weights(numbers(num_anchors, len(y), grad=False).sigmoid(), candidates)
    nodes, coefficients = leaves(numbers(len(y), SIZE), numbers(len(y) * (len(y) + 1) // 2, SIZE).sigmoid())
    for output, inputs in ((0, nodes), (1, coefficients)):

        def only(x, output=output):
            z, c = (x, coefficients.detach()) if output == 0 else (nodes.detach(), x)
            return synthesize(z, c, candidates, weights, strength, max_edges)[output]

        assert gradcheck(only, [inputs])


def test_gradients_of_the_synthesis_by_both_outputs_at_once():
    """Of distances to positives, too, which here are inputs of their own."""
    listed, anchors = (EdgeList(NODES), 3), torch.tensor([0, 1, 1, 3])
    slots = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 3, 2, 2], [3, 1, 0, 0, 2, 1, 3, 1, 0, 2]])
    nodes, coefficients, near, weights = (
        x.detach().requires_grad_() for x in (numbers(4, SIZE), numbers(10, SIZE), numbers(4).abs(), numbers(2, 10))
    )
    strength, lengths = torch.tensor(0.6, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    arguments = (strength, slots, weights.detach(), anchors, lengths)
    first, second = Synthesis.apply(*listed, nodes, coefficients, near, *arguments)
    assert torch.equal(first, second)
    one, other = numbers(4, SIZE, grad=False), numbers(4, SIZE, seed=9, grad=False)
    together = grad([first, second], [nodes, coefficients, near], [one, other], retain_graph=True)
    by_first = grad(first, [nodes, coefficients, near], one, retain_graph=True, allow_unused=True)
    by_second = grad(second, [nodes, coefficients, near], other, allow_unused=True)
    assert (by_first[1], by_second[0], by_second[2]) == (None, None, None)
    for found, expected in zip(together, (by_first[0], by_second[1], by_first[2]), strict=True):
        torch.testing.assert_close(found, expected)
    for position, output in ((2, 0), (4, 0), (3, 1)):
        inputs = [None, None, nodes, coefficients, near]
        check = inputs[position]

        def only(x, position=position, output=output):
            given_ = [*listed, nodes.detach(), coefficients.detach(), near.detach(), *arguments]
            given_[position] = x
            return Synthesis.apply(*given_)[output]

        assert gradcheck(only, [check])


@pytest.mark.parametrize("max_edges", [1, 4, 100])
def test_gradients_of_the_diversity(max_edges):
    (coefficients,) = leaves(numbers(EDGES, SIZE).sigmoid())
    assert gradcheck(lambda c: diversity_loss(c, EdgeList(NODES), max_edges), [coefficients])


@pytest.mark.parametrize("at_a_time", [1, 10, 1000])
def test_gradients_of_the_frozen_classification(at_a_time, monkeypatch):
    monkeypatch.setattr("pml_gca.correlation.objective.CLASSIFIED_VALUES", at_a_time)
    weight, bias, classes = numbers(5, SIZE), numbers(5), torch.tensor([4, 0, 0, 2, 1, 3, 4])
    rows = numbers(7, SIZE)
    found = frozen_classification_loss(rows, weight, bias, classes)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(rows @ weight.t() + bias, classes))
    assert gradcheck(lambda r: frozen_classification_loss(r, weight, bias, classes), [rows])
    assert grad(found, [weight, bias], allow_unused=True) == (None, None)


CHUNKS = st.sampled_from([None, 1, 3, 7, 20, 10_000])


def two_terms(correlations, y):
    """One that may reach the embeddings, and one that may not."""
    scores = torch.linspace(-1, 1, correlations.coefficients.numel(), dtype=torch.float64)
    steering = (correlations.coefficients * scores.view_as(correlations.coefficients).cos()).sum()
    return torch.nn.functional.cross_entropy(correlations.node_logits, y), steering


@settings(max_examples=12)
@given(generators(sizes=(8, 12)), labels(max_classes=4, max_samples=3), CHUNKS)
def test_one_graph_gives_the_gradients_of_two(generator, y, chunk):
    propagation = generator.propagation
    propagation.edge_chunk_size = chunk
    z = embeddings(generator, len(y))
    leaf = z.detach().requires_grad_()
    correlations = propagation(leaf, y)
    classification, steering = two_terms(correlations, y)
    handed_on = correlations.with_gradient_to(z, classification)
    assert handed_on == classification
    assert all(p.grad is None for p in [z, leaf, *propagation.parameters()])
    (handed_on + steering).backward()
    found = [z.grad, *(p.grad for p in propagation.parameters())]

    parameters = list(propagation.parameters())
    first, _ = two_terms(propagation.forward_plain(z, y), y)
    _, second = two_terms(propagation.forward_plain(z.detach(), y), y)
    options = {"allow_unused": True, "materialize_grads": True}
    of_z, *of_first = grad(first, [z, *parameters], **options)
    of_second = grad(second, parameters, **options)
    expected = [of_z, *(a + b for a, b in zip(of_first, of_second, strict=True))]
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("chunk", [None, 9])
def test_a_pass_for_the_embeddings_computes_no_gradient_of_parameters(chunk):
    propagation, z, y = small_generator(edge_chunk_size=chunk).propagation, torch.randn(8, 16), torch.arange(8) // 2
    leaf = z.requires_grad_()
    work, edge_parameters = {}, list(propagation.layers[0].edge.expand.parameters())
    gradients = {}
    for wanted in (GradientPass(), GradientPass(to_parameters=False), GradientPass(to_embeddings=False)):
        correlations = propagation(leaf, y)
        correlations.gradient_pass.__dict__.update(vars(wanted))
        with MultiplyAdds() as count:
            total = correlations.node_logits.square().sum() + correlations.coefficients.square().sum()
            found = grad(total, [leaf, *edge_parameters], allow_unused=True)
        key = (wanted.to_embeddings, wanted.to_parameters)
        work[key], gradients[key] = count.total, found
    everything = gradients[True, True]
    torch.testing.assert_close(gradients[True, False][0], everything[0])
    assert gradients[True, False][1:] == (None, None)
    torch.testing.assert_close(gradients[False, True][1:], everything[1:])
    edges, size = 36, 16 * 16
    assert work[True, True] - work[True, False] == 2 * 9 * edges * size
    assert work[True, True] - work[False, True] == edges * size  # from the first messages to the first edges


@pytest.mark.parametrize("chunk", [None, 9])
def test_frozen_parameters_get_no_gradient_and_change_no_other(chunk):
    propagation, z, y = small_generator(edge_chunk_size=chunk).propagation, torch.randn(8, 16), torch.arange(8) // 2
    names, parameters = zip(*propagation.named_parameters(), strict=True)

    def gradients(of_embeddings, frozen):
        for name, parameter in zip(names, parameters, strict=True):
            parameter.requires_grad_(not frozen(name))
        leaf = z.clone().requires_grad_(of_embeddings)
        found = propagation(leaf, y)
        (found.coefficients.square().sum() + found.node_logits.square().sum()).backward()
        result = {"embeddings": leaf.grad, **{n: p.grad for n, p in zip(names, parameters, strict=True)}}
        propagation.zero_grad()
        return result

    everything = gradients(True, lambda name: False)
    for of_embeddings, frozen in (
        (False, lambda name: False),
        (True, lambda name: True),
        (True, lambda name: name.startswith("layers.0")),
        (False, lambda name: ".edge." in name),
        (False, lambda name: name.startswith(("input", "layers.0"))),
    ):
        found = gradients(of_embeddings, frozen)
        for name, value in found.items():
            is_frozen = not of_embeddings if name == "embeddings" else frozen(name)
            assert (value is None) == is_frozen, name
            if not is_frozen:
                torch.testing.assert_close(value, everything[name])


def test_a_failed_pass_leaves_the_next_one_whole():
    generator, y = small_generator(), torch.arange(8) // 2
    leaf = torch.randn(8, 16, requires_grad=True)
    correlations = generator.propagation(leaf, y)
    with pytest.raises(RuntimeError):  # of a value that has no graph
        correlations.with_gradient_to(leaf, torch.zeros(()))
    assert correlations.gradient_pass == GradientPass()
