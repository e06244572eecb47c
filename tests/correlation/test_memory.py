"""Graphs with a memory, whose nodes have no edges among each other: against the slow oracle, and what they cost."""

import copy

import pytest
import torch
from helpers import oracle
from helpers.counters import LiveBytes, MultiplyAdds
from helpers.strategies import NUM_CLASSES, embeddings, generators
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.diversity import diversity_loss, plain_diversity_loss
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import edge_multiplicity, edge_pairs
from pml_gca.correlation.propagation import CorrelationPropagation
from pml_gca.correlation.tiles import SecondEnds
from pml_gca.generators.merging import merging_weights
from pml_gca.generators.planning import plan_candidates
from pml_gca.generators.synthesis import synthesize

CPU = torch.device("cpu")
CHUNKS = st.sampled_from([None, 1, 3, 7, 10_000])


@st.composite
def graphs(draw, max_batch=5, max_memory=4):
    """Labels of all nodes, and how many of the last are a memory."""
    size, num_memory = draw(st.integers(1, max_batch)), draw(st.integers(0, max_memory))
    y = draw(st.lists(st.integers(0, 3), min_size=size + num_memory, max_size=size + num_memory))
    return torch.tensor(y), num_memory


# Lists of edges.


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 30), st.data())
def test_edges_are_those_within_the_batch_and_from_it_to_the_memory_each_once(size, num_memory, max_edges, data):
    cut = data.draw(st.integers(0, size))
    num_nodes = size + num_memory
    listed = EdgeList(num_nodes, num_memory=num_memory)
    pairs = listed.pairs(CPU)
    wanted = {frozenset((i, j)) for i in range(size) for j in range(num_nodes)}
    assert {frozenset(pair) for pair in pairs.t().tolist()} == wanted
    assert pairs.shape[1] == listed.num_edges == len(wanted) == size * (size + 1) // 2 + size * num_memory
    assert torch.equal(pairs[:, : size * (size + 1) // 2], edge_pairs(size))
    assert edge_multiplicity(pairs).sum() == listed.num_ordered_pairs
    counted = torch.zeros(num_nodes).index_add(0, pairs[0], torch.ones(listed.num_edges))
    counted = counted.index_add(0, pairs[1], (pairs[0] != pairs[1]).float())
    assert torch.equal(counted.clamp_min(1), torch.zeros(num_nodes, 1).add(listed.degrees(counted))[:, 0])
    parts = [EdgeList(num_nodes, range(*ends), num_memory=num_memory) for ends in ((0, cut), (cut, size))]
    for part in parts:
        is_own = (pairs[0] >= part.first_ends.start) & (pairs[0] < part.first_ends.stop)
        assert torch.equal(part.pairs(CPU), pairs[:, is_own])
        assert part.num_edges == is_own.sum()
    for part in (listed, *parts):
        check_tiles(part, max_edges)


def check_tiles(listed, max_edges):
    """Tiles list the edges in order, and meet both ends."""
    rooms = [SecondEnds(torch.zeros(listed.num_nodes, 2, dtype=torch.long), skip_self) for skip_self in (False, True)]
    values, pairs, edge = torch.arange(listed.num_nodes).add(1)[:, None] ** torch.arange(3), listed.pairs(CPU), 0
    for tile in listed.tiles(max_edges):
        assert tile.rows.start == edge
        assert 1 <= tile.rows.stop - edge <= max_edges
        edge = tile.rows.stop
        first, second = (end[tile.rows].view(tile.shape) for end in pairs)
        assert torch.equal(values[tile.nodes].expand(*tile.shape, 3), values[first])
        assert torch.equal(listed.turned(values)[tile.offsets, tile.nodes], values[second])
        count = edge_multiplicity(pairs)[tile.rows].view(tile.shape)
        assert torch.equal(tile.multiplicity(torch.zeros(())), count)
        added = torch.arange(first.numel()).add(1)[:, None] ** torch.arange(2)
        for skip_self in (False, True):
            sums = torch.zeros(listed.num_nodes, 2, dtype=torch.long)
            rooms[skip_self].room(tile).copy_(added.view(*tile.shape, 2))
            rooms[skip_self].add(sums)
            counted = added * ((first != second) | (not skip_self)).view(-1, 1)
            assert torch.equal(sums, torch.zeros_like(sums).index_add(0, second.flatten(), counted))
    assert edge == listed.num_edges


# Values and gradients.


def outputs(found, generator, z, coefficients):
    """Logits, λ of listed edges, statistics, and the gradients of a sum of the first two."""
    source = torch.Generator().manual_seed(0)
    total = sum(
        (x * torch.randn(x.shape, generator=source, dtype=x.dtype)).sum() for x in (found.node_logits, coefficients)
    )
    inputs = [z, *generator.propagation.parameters()]
    return [found.node_logits, coefficients, *grad(total, inputs, materialize_grads=True, retain_graph=True)]


@pytest.mark.parametrize("way", ["forward", "forward_plain"])
@settings(max_examples=15)
@given(generator=generators(sizes=(8,)), graph=graphs(), chunk=CHUNKS, seed=st.integers(0, 99))
def test_agrees_with_the_slow_oracle_gradients_included(way, generator, graph, chunk, seed):
    y, num_memory = graph
    z, propagation = embeddings(generator, len(y), seed), generator.propagation
    propagation.edge_chunk_size = chunk
    found = getattr(propagation, way)(z, y, EdgeList(len(y), num_memory=num_memory))
    wanted = oracle.propagate(propagation, z, y.tolist(), num_memory)
    wanted.node_logits = wanted.logits
    ours = outputs(found, generator, z, found.coefficients)
    theirs = outputs(wanted, generator, z, wanted.coefficients[tuple(found.pairs)])
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    for norm, (mean, variance), rows in (
        (propagation.node_norm, wanted.node_statistics, len(y) - num_memory),
        (propagation.edge_norm, wanted.edge_statistics, len(found.coefficients)),
    ):
        if rows > 1:
            torch.testing.assert_close(norm.running_mean, mean)
            torch.testing.assert_close(norm.running_var, variance)


@settings(max_examples=15)
@given(generators(dropout=0.4, sizes=(8, 12)), graphs(9, 12), CHUNKS, st.booleans())
def test_swept_equals_plain_with_dropout_and_in_evaluation(generator, graph, chunk, training):
    y, num_memory = graph
    z = embeddings(generator, len(y))
    generator.train(training)
    results = []
    for way in ("forward", "forward_plain"):
        own = copy.deepcopy(generator)
        own.edge_chunk_size = chunk
        torch.manual_seed(1)
        found = getattr(own.propagation, way)(z, y, EdgeList(len(y), num_memory=num_memory))
        results.append([*outputs(found, own, z, found.coefficients), *own.buffers()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("chunk", [None, 4])
def test_second_derivatives(chunk):
    """`create_graph=True` takes other code than a first backward pass."""
    torch.manual_seed(0)
    propagation = CorrelationPropagation(
        NUM_CLASSES, 8, num_layers=2, num_heads=2, dropout=0.0, edge_chunk_size=chunk
    ).double()
    z, y = torch.randn(7, 8, dtype=torch.float64, requires_grad=True), torch.arange(7) % 3
    results = []
    for way in (propagation.forward, propagation.forward_plain):
        found = way(z, y, EdgeList(7, num_memory=4))
        total = found.node_logits.square().sum() + found.coefficients.square().sum()
        (first,) = grad(total, z, create_graph=True)
        results.append([first, *grad(first.square().sum(), [z, *propagation.parameters()], materialize_grads=True)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


def test_cases_of_the_comparisons_reach_every_node_and_edge():
    generator = GlobalCorrelationGenerator(NUM_CLASSES, 8, num_layers=2, num_heads=2, dropout=0.0).double()
    z, y = embeddings(generator, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    for rows in (slice(3), slice(3, None)):
        found = generator.propagation(z, y, EdgeList(6, num_memory=3))
        (to_z,) = grad(found.coefficients.square().sum() + found.node_logits.square().sum(), z)
        assert to_z[rows].abs().sum(dim=1).min() > 1e-4
    plain, remembered = (
        generator.propagation(z, y, EdgeList(6, num_memory=num_memory)).node_logits for num_memory in (0, 3)
    )
    assert (plain[:3] - remembered).abs().max() > 1e-3


@given(graphs(6, 8), st.integers(1, 30))
def test_the_diversity_is_over_pairs_that_share_an_edge(graph, max_edges):
    y, num_memory = graph
    listed = EdgeList(len(y), num_memory=num_memory)
    coefficients = torch.rand(listed.num_edges, 3, dtype=torch.float64, requires_grad=True)
    first, second = listed.pairs(CPU)
    missing = torch.full((len(y), len(y), 3), torch.nan, dtype=torch.float64)
    dense = missing.index_put((first, second), coefficients).index_put((second, first), coefficients)
    if listed.num_edges == 1:
        return  # nothing can differ
    values = [diversity_loss(coefficients, listed, max_edges), plain_diversity_loss(coefficients, listed)]
    wanted = oracle.diversity(dense)
    for value in values:
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(*(grad(x, coefficients, retain_graph=True) for x in (value, wanted)))


@settings(max_examples=20)
@given(graphs(6, 8), st.integers(1, 30), st.floats(0, 1))
def test_synthetic_negatives_are_made_of_the_memory_too(graph, max_edges, strength):
    y, num_memory = graph
    num_anchors = len(y) - num_memory
    listed = EdgeList(len(y), num_memory=num_memory)
    source = torch.Generator().manual_seed(len(y))
    z = torch.randn(len(y), 4, generator=source, dtype=torch.float64, requires_grad=True)
    coefficients = torch.rand(listed.num_edges, 4, generator=source, dtype=torch.float64, requires_grad=True)
    draws = torch.rand(num_anchors, len(y), generator=source, dtype=torch.float64)
    plan = plan_candidates(y, num_anchors)
    made = synthesize(z, coefficients, plan, merging_weights(draws, plan), strength, max_edges, edges=listed)
    first, second = listed.pairs(CPU)
    dense = z.new_zeros(len(y), len(y), 4).index_put((first, second), coefficients)
    dense = dense.index_put((second, first), coefficients)
    wanted = oracle.synthesize(z, y.tolist(), dense, draws, strength, num_anchors)
    assert [(i, label) for i, label, _ in wanted] == list(
        zip(plan.synthetic_anchors.tolist(), plan.synthetic_labels.tolist(), strict=True)
    )
    if not wanted:
        return
    rows = torch.stack([row for _, _, row in wanted])
    weight = torch.randn(rows.shape, generator=source, dtype=rows.dtype)
    for found, reached in zip(made, (z, coefficients), strict=True):
        torch.testing.assert_close(found, rows)
        sums = [(x * weight).sum() for x in (found, rows)]
        gradients = [grad(x, reached, retain_graph=True, materialize_grads=True) for x in sums]
        torch.testing.assert_close(*gradients)


# Cost.


def step(generator, size, num_memory, samples_per_class):
    z = torch.linspace(-9, 9, (size + num_memory) * generator.embedding_size).sin().view(-1, generator.embedding_size)
    y = torch.arange(size + num_memory) // samples_per_class
    batch = generator.batch(z.requires_grad_(), y, size, num_memory=num_memory)
    negatives = generator.generate(batch)
    (sum(negatives.objectives.values()) + negatives.embeddings.sum()).backward()


@pytest.mark.parametrize("chunk", [None, 30])
@pytest.mark.parametrize(("size", "num_memory", "num_layers"), [(6, 10, 1), (7, 4, 2), (12, 30, 2)])
def test_multiply_adds_are_those_counted(size, num_memory, num_layers, chunk):
    generator = GlobalCorrelationGenerator(40, 16, num_layers=num_layers, edge_chunk_size=chunk)
    cost = generator.cost(size, 3, memory_size=num_memory)
    with MultiplyAdds() as counted:
        step(generator, size, num_memory, 3)
    assert counted.total == cost.multiply_adds
    assert cost.keeps_activations == (chunk is None)
    assert cost.memory_size == num_memory
    assert str(cost).startswith(f"batch of {size} and a memory of {num_memory}: ")


@pytest.mark.parametrize("chunk", [None, 256])
def test_bytes_are_near_the_peak_of_what_is_alive(chunk):
    generator = GlobalCorrelationGenerator(40, 32, num_layers=2, edge_chunk_size=chunk)
    step(generator, 24, 96, 3)  # gradients are there from now on
    with LiveBytes() as live:
        step(generator, 24, 96, 3)
    assert 0.85 < generator.cost(24, 3, memory_size=96).bytes / live.peak < 1.35


def test_the_cost_grows_with_the_memory_and_not_with_its_square():
    none, small, large = (GlobalCorrelationGenerator(9, 16).cost(32, memory_size=size) for size in (0, 1000, 2000))
    assert 0.999 < (large.multiply_adds - small.multiply_adds) / (small.multiply_adds - none.multiply_adds) < 1.001
    assert large.bytes < 2.001 * small.bytes


def test_no_tensor_grows_with_the_square_of_the_memory():
    peaks = []
    generator = GlobalCorrelationGenerator(9, 8, num_layers=1, num_heads=1)
    step(generator, 2, 10, 5)  # the first one asks the C library to keep memory, by a block
    for num_memory in (2000, 4000):
        with LiveBytes() as live:
            step(generator, 2, num_memory, 1000)
        peaks.append(live.peak)
    assert peaks[1] < 2.1 * peaks[0]
