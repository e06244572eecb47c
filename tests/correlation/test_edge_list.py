"""Lists of some of the edges, those whose first end lies in a range of nodes, against the list of all edges."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import edge_pairs
from pml_gca.correlation.tiles import SecondEnds, turned

CPU = torch.device("cpu")


@st.composite
def parts(draw):
    """A number of nodes, ranges that split them, some of them empty, and a size of tiles."""
    num_nodes = draw(st.integers(0, 14))
    cuts = sorted(draw(st.lists(st.integers(0, num_nodes), max_size=4)))
    ranges = [range(*cut) for cut in zip([0, *cuts], [*cuts, num_nodes], strict=True)]
    return num_nodes, ranges, draw(st.one_of(st.integers(1, 30), st.just(10_000)))


@given(st.integers(0, 14), st.integers(1, 30))
def test_all_edges_are_listed_by_default(num_nodes, max_edges):
    listed, as_range = EdgeList(num_nodes), EdgeList(num_nodes, range(num_nodes))
    assert torch.equal(listed.pairs(CPU), edge_pairs(num_nodes))
    assert torch.equal(as_range.pairs(CPU), edge_pairs(num_nodes))
    assert listed.num_edges == as_range.num_edges == num_nodes * (num_nodes + 1) // 2
    assert listed.tiles(max_edges) == as_range.tiles(max_edges)


@given(parts())
def test_a_range_lists_the_edges_whose_first_end_it_has_in_their_order(part):
    num_nodes, ranges, _ = part
    pairs = edge_pairs(num_nodes)
    for first_ends in ranges:
        listed = EdgeList(num_nodes, first_ends)
        is_own = (pairs[0] >= first_ends.start) & (pairs[0] < first_ends.stop)
        assert torch.equal(listed.pairs(CPU), pairs[:, is_own])
        assert listed.num_edges == is_own.sum()


@given(parts())
def test_tiles_of_a_range_list_its_edges_in_order(part):
    num_nodes, ranges, max_edges = part
    nodes = torch.arange(num_nodes)
    for first_ends in ranges:
        listed = EdgeList(num_nodes, first_ends)
        pairs, edge = listed.pairs(CPU), 0
        for tile in listed.tiles(max_edges):
            assert tile.rows.start == edge
            assert 1 <= tile.rows.stop - edge <= max_edges
            edge = tile.rows.stop
            first, second = (end[tile.rows].view(tile.shape) for end in pairs)
            assert torch.equal(nodes[tile.nodes].expand(tile.shape), first)
            assert torch.equal(turned(nodes)[tile.offsets, tile.nodes], second)
            sums = torch.zeros(num_nodes, dtype=torch.long)
            at_second = SecondEnds(sums)
            at_second.room(tile).copy_(1 + torch.arange(first.numel()).view(tile.shape))
            at_second.add(sums)
            expected = torch.zeros_like(sums).index_add(0, second.flatten(), 1 + torch.arange(first.numel()))
            assert torch.equal(sums, expected)
        assert edge == listed.num_edges
