"""Tiles of the circulant edge list: what is computed at a time, and how it meets its end nodes without a lookup.

In circulant order (`edge_pairs`) the edges of one offset are rows of the node list, and the same
list turned by the offset. A tile is a rectangle of offsets and first ends, so that its edge values, (R, D), are a
dense (offsets, first ends, D) box; the values of its first ends are one slice of the nodes, those of its second ends
overlapping slices of the nodes listed twice.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_TILE_VALUES = 2**20  # values of the edges in a tile: with their hidden ones, they fit a processor's cache
GPU_TILE_VALUES = 2**26  # fill a GPU


@dataclass(frozen=True)
class Tile:
    """Edges with offsets from ``offset`` on and first ends from ``node`` on.

    Attributes:
        rows: where they are in the list of all edges.
        offset, num_offsets: range of offsets.
        node, num_nodes: range of first ends.
    """

    rows: slice
    offset: int
    num_offsets: int
    node: int
    num_nodes: int

    def box(self, values: Tensor) -> Tensor:
        """(R, ...) values of this tile's edges as (offsets, first ends, ...)."""
        return values.view(self.num_offsets, self.num_nodes, *values.shape[1:])

    def multiplicity(self, like: Tensor) -> Tensor:
        """How many of the N² ordered pairs each edge stands for, 1 for self pairs, else 2: (offsets, first ends)."""
        count = like.new_full((self.num_offsets, self.num_nodes), 2.0)
        if self.offset == 0:
            count[0] = 1.0
        return count

    def first(self, twice: Tensor) -> Tensor:
        """(2N, ...) values of nodes listed twice, at the first ends: (first ends, ...), to broadcast over offsets."""
        return twice[self.node : self.node + self.num_nodes]

    def second(self, twice: Tensor) -> Tensor:
        """Likewise at the second ends: (offsets, first ends, ...), a view whose rows overlap; not to be written to."""
        start = self.node + self.offset
        near = twice[start : start + self.num_nodes + self.num_offsets - 1]
        return near.unfold(0, self.num_nodes, 1).movedim(-1, 1)

    def add_to_first(self, twice: Tensor, values: Tensor) -> None:
        """Add (offsets, first ends, ...) values of edges to their first ends in (2N, ...) totals."""
        twice[self.node : self.node + self.num_nodes] += values.sum(dim=0)

    def add_to_second(self, twice: Tensor, values: Tensor, skip_self: bool = False) -> None:
        """Likewise to their second ends; ``skip_self`` leaves out self pairs, which are one end and not two."""
        skip = int(skip_self and self.offset == 0)
        values = values[skip:]
        count, width = values.shape[:2]
        if count == 0:
            return
        # Row o belongs o nodes further on. Padded by one row less than its pitch, a box shears when it is refolded.
        pitch = width + count - 1
        padded = F.pad(values, (0, 0) * (values.ndim - 2) + (0, count))
        sheared = padded.flatten(0, 1)[: count * pitch].view(count, pitch, *values.shape[2:])
        start = self.node + self.offset + skip
        twice[start : start + pitch] += sheared.sum(dim=0)


def default_chunk_size(embedding_size: int, device: torch.device) -> int:
    """Return how many edges to compute at a time where nothing else asks for fewer."""
    values = CPU_TILE_VALUES if device.type == "cpu" else GPU_TILE_VALUES
    return max(values // embedding_size, 1)


@functools.lru_cache(maxsize=8)
def edge_tiles(num_nodes: int, max_edges: int) -> tuple[Tile, ...]:
    """Return the edges of a graph of ``num_nodes`` nodes in tiles of at most ``max_edges`` and similar size."""
    offset, tiles = 0, []
    # Half way round an even circle every edge is met from both ends, and listed from the first half of them alone.
    bands = [(offset, (num_nodes + 1) // 2, num_nodes), (num_nodes // 2, 1, num_nodes // 2)][: 2 - num_nodes % 2]
    for first_offset, num_offsets, width in bands:
        if width == 0:
            continue
        together = max(max_edges // width, 1)
        parts = -(-num_offsets // together)
        pieces = -(-width // max_edges)
        for offsets in _ranges(first_offset, num_offsets, parts):
            for nodes in _ranges(0, width, pieces):
                start = offsets.start * num_nodes + nodes.start
                count = len(offsets) * len(nodes)
                tiles.append(Tile(slice(start, start + count), offsets.start, len(offsets), nodes.start, len(nodes)))
    return tuple(tiles)


def _ranges(start: int, length: int, parts: int) -> Iterator[range]:
    """``parts`` neighbouring ranges of nearly equal length."""
    for part in range(parts):
        yield range(start + part * length // parts, start + (part + 1) * length // parts)


def twice(values: Tensor) -> Tensor:
    """(N, ...) values of nodes listed twice, as tiles take them."""
    return torch.cat([values, values])


def once(totals: Tensor) -> Tensor:
    """(2N, ...) totals of nodes listed twice, as (N, ...)."""
    num_nodes = len(totals) // 2
    return totals[:num_nodes] + totals[num_nodes:]
