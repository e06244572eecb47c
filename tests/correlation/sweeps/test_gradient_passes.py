"""One graph, several backward passes."""

import pytest
import torch
from helpers.counters import MultiplyAdds
from helpers.small_graphs import small_generator
from helpers.strategies import embeddings, generators, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad

from pml_gca.correlation.correlations import GradientPass

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
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(chunk):
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
