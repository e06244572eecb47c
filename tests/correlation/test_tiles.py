"""Tiles against what they mean edge by edge, as the end nodes in `edge_pairs` say."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.correlation.edges import edge_multiplicity, edge_pairs
from pml_gca.correlation.tiles import SecondEnds, edge_tiles, turned

graphs = st.tuples(st.integers(0, 14), st.one_of(st.integers(1, 30), st.sampled_from([105, 10_000])))


def whole(num_nodes, *shape):
    """Values that sums keep exact, so that equality can be asked for."""
    source = torch.Generator().manual_seed(0)
    return torch.randint(-9, 10, (num_nodes, *shape), generator=source, dtype=torch.float64)


@given(graphs)
def test_tiles_list_every_edge_once_in_order_and_keep_to_their_size(graph):
    num_nodes, max_edges = graph
    pairs = edge_pairs(num_nodes)
    edge = 0
    for tile in edge_tiles(num_nodes, max_edges):
        assert tile.rows.start == edge
        assert 1 <= tile.rows.stop - edge <= max_edges
        assert tile.shape == (tile.offsets.stop - tile.offsets.start, tile.nodes.stop - tile.nodes.start)
        assert tile.shape[0] * tile.shape[1] == tile.rows.stop - edge
        first, second = (end[tile.rows].view(tile.shape) for end in pairs)
        assert first[0, 0] == tile.nodes.start
        assert (second[0, 0] - first[0, 0]) % num_nodes == tile.offsets.start
        edge = tile.rows.stop
    assert edge == pairs.shape[1]


@given(st.integers(1, 14))
def test_there_are_as_few_tiles_as_two_bands_need(num_nodes):
    assert len(list(edge_tiles(num_nodes, 10_000))) == 2 - num_nodes % 2
    assert len(list(edge_tiles(num_nodes, 1))) == num_nodes * (num_nodes + 1) // 2


@given(graphs, st.sampled_from([(), (1,), (3,), (2, 3)]))
def test_values_of_nodes_at_both_ends(graph, shape):
    num_nodes, max_edges = graph
    values, pairs = whole(num_nodes, *shape), edge_pairs(num_nodes)
    for tile in edge_tiles(num_nodes, max_edges):
        first, second = (values[end[tile.rows]].view(*tile.shape, *shape) for end in pairs)
        assert torch.equal(values[tile.nodes].expand_as(first), first)
        assert torch.equal(turned(values)[tile.offsets, tile.nodes], second)


@given(graphs, st.sampled_from([(), (1,), (3,), (2, 3)]), st.booleans())
def test_sums_over_second_ends(graph, shape, skip_self):
    num_nodes, max_edges = graph
    pairs = edge_pairs(num_nodes)
    edges = whole(pairs.shape[1], *shape)
    sums = edges.new_zeros(num_nodes, *shape)
    at_second = SecondEnds(sums, skip_self=skip_self)  # one for all tiles, whose shapes come and go
    for tile in edge_tiles(num_nodes, max_edges):
        room = at_second.room(tile)
        assert room.shape == (*tile.shape, *shape)
        room.copy_(edges[tile.rows].view(room.shape))
        at_second.add(sums)
        assert torch.equal(room, edges[tile.rows].view(room.shape))
    counted = edges.clone()
    zeros = edges.new_zeros(num_nodes, *shape)
    if skip_self:
        counted[pairs[0] == pairs[1]] = 0
    assert torch.equal(sums, zeros.index_add(0, pairs[1], counted))


@given(graphs, st.sampled_from([torch.float32, torch.float64]))
def test_multiplicity(graph, dtype):
    num_nodes, max_edges = graph
    count = edge_multiplicity(edge_pairs(num_nodes), dtype)
    for tile in edge_tiles(num_nodes, max_edges):
        found = tile.multiplicity(torch.zeros((), dtype=dtype))
        assert found.dtype == dtype
        assert torch.equal(found, count[tile.rows].view(tile.shape))


@settings(max_examples=10)
@given(st.integers(0, 14))
def test_values_turned(num_nodes):
    values = whole(num_nodes, 2)
    for offset, found in enumerate(turned(values)):
        assert torch.equal(found, values.roll(-offset, dims=0))


def test_the_boxes_of_a_small_graph_by_hand():
    tiles = [(t.offsets.start, t.shape[0], t.nodes.start, t.shape[1]) for t in edge_tiles(4, 5)]
    assert tiles == [(0, 1, 0, 4), (1, 1, 0, 4), (2, 1, 0, 2)]
    tiles = [(t.offsets.start, t.shape[0], t.nodes.start, t.shape[1]) for t in edge_tiles(5, 3)]
    assert tiles == [(d, 1, start, n) for d in range(3) for start, n in ((0, 2), (2, 3))]


def test_a_box_is_as_the_rows_of_what_it_is_for_and_contiguous():
    (tile,) = edge_tiles(5, 100)
    for shape in ((5,), (5, 2)):
        nodes = whole(*shape)
        box = torch.sub(nodes[tile.nodes], turned(nodes)[tile.offsets, tile.nodes], out=tile.box(nodes))
        assert box.is_contiguous()
        assert torch.equal(box, nodes - torch.stack([nodes.roll(-offset, dims=0) for offset in range(3)]))
