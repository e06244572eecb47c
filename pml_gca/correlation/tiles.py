"""Tiles of the edge list: which edges are computed at a time, and how they meet their end nodes without a lookup.

Edges are listed in circulant order (`edge_pairs`): edge (d, i) connects node i with node i + d, around the circle of
nodes. A tile is a rectangle of offsets d and first ends i. Its edge values, (R, D), are a dense box of shape (offsets,
first ends, D). The values of its first ends are a slice of the nodes, those of its second ends a slice of the nodes
`turned`.

With a memory, the circle holds the B nodes of the batch. Edge (d, i) with d ≥ B connects node i with memory node d.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.portions import CPU_VALUES, rows_at_a_time

CPU_TILE_VALUES = CPU_VALUES  # of the edges in a tile: with their hidden ones, they fit a cache
GPU_TILE_VALUES = 2**26  # a tile takes dozens of launches: few tiles keep the host ahead


@dataclass(frozen=True)
class Tile:
    """A rectangle of offsets and first ends.

    Attributes:
        rows: where its R edges are in the list of edges.
        offsets: range of offsets; beyond the circle, range of memory nodes.
        nodes: range of first ends.
        shape: number of offsets and of first ends; their product is R.
        circle: number of nodes around the circle.
    """

    rows: slice
    offsets: slice
    nodes: slice
    shape: tuple[int, int]
    circle: int

    def multiplicity(self, like: Tensor) -> Tensor:
        """Return how many ordered pairs each edge stands for: (offsets, first ends), 1 for self pairs, else 2."""
        count = like.new_full(self.shape, 2.0)
        count[self.self_pairs] = 1.0
        return count

    @property
    def self_pairs(self) -> slice:
        """Which offsets are those of self pairs: the first one, or none."""
        return slice(int(self.offsets.start == 0))

    def box(self, like: Tensor) -> Tensor:
        """Return an empty tensor for values of the edges: (offsets, first ends, ...), as the rows of `like` are.

        Fill it by `out=`: where operands overlap, as `turned` values do, torch chooses a layout that is slow to read.
        """
        return like.new_empty(*self.shape, *like.shape[1:])


class WithMemory:
    """Values of nodes around the circle, turned, and of the memory nodes beyond it, by tile.

    Args:
        around: (B + 1, B, ...), as `turned` without a memory.
        memory: (M, ...).
    """

    def __init__(self, around: Tensor, memory: Tensor) -> None:
        self.around, self.memory = around, memory

    def __getitem__(self, ends: tuple[slice, slice]) -> Tensor:
        """Return the values of the second ends of `tile.offsets, tile.nodes`: (offsets, first ends, ...)."""
        offsets, nodes = ends
        circle = self.around.shape[1]
        if offsets.start < circle:
            return self.around[ends]
        values = self.memory[offsets.start - circle : offsets.stop - circle, None]
        return values.expand(-1, nodes.stop - nodes.start, *values.shape[2:])


Turned = Tensor | WithMemory


def default_chunk_size(embedding_size: int, device: torch.device) -> int:
    """Return how many edges to compute at a time by default."""
    return rows_at_a_time(embedding_size, device, CPU_TILE_VALUES, GPU_TILE_VALUES)


@functools.lru_cache(maxsize=8)
def edge_tiles(
    num_nodes: int, max_edges: int, first_ends: range | None = None, num_memory: int = 0
) -> tuple[Tile, ...]:
    """Return the edges of a graph of `num_nodes` nodes in tiles of at most `max_edges` and similar size.

    With `first_ends`, only edges whose first end lies in this range of nodes, as `edge_pairs` lists them.
    """
    circle = num_nodes - num_memory
    own = range(circle) if first_ends is None else first_ends
    # Half way round an even circle, every edge is met from both ends. Only the first half of the nodes lists it.
    bands = [(0, (circle + 1) // 2, circle), (circle // 2, 1, circle // 2)][: 2 - circle % 2]
    bands.append((circle, num_memory, circle))
    tiles, row = [], 0
    for first_offset, num_offsets, stop in bands:
        width = min(stop, own.stop) - own.start
        if width <= 0:
            continue
        together = max(max_edges // width, 1)
        for offsets in _ranges(first_offset, num_offsets, -(-num_offsets // together)):
            for nodes in _ranges(own.start, width, -(-width // max_edges)):
                shape = (offsets.stop - offsets.start, nodes.stop - nodes.start)
                tiles.append(Tile(slice(row, row + shape[0] * shape[1]), offsets, nodes, shape, circle))
                row += shape[0] * shape[1]
    return tuple(tiles)


def _ranges(start: int, length: int, parts: int) -> Iterator[slice]:
    """Yield `parts` neighbouring ranges of nearly equal length."""
    for part in range(parts):
        yield slice(start + part * length // parts, start + (part + 1) * length // parts)


def turned(values: Tensor, num_memory: int = 0) -> "Turned":
    """Return (N, ...) values of nodes, turned by each offset d: (N + 1, N, ...), where [d, i] is of node i + d.

    `turned(values)[tile.offsets, tile.nodes]` are the values of a tile's second ends. The result is a view whose rows
    overlap: do not write to it. With `num_memory` the last nodes are a memory beyond the circle; the result then only
    serves tiles.
    """
    circle = values[: len(values) - num_memory]
    around = torch.cat([circle, circle]).unfold(0, len(circle), 1).movedim(-1, 1)
    return WithMemory(around, values[len(circle) :]) if num_memory else around


class SecondEnds:
    """Add values of edges to sums of their second ends. (Those of first ends are added to `sums[tile.nodes]`.)

    Write the values of a tile to its room, then `add` them: they are read once, and not copied.

    Args:
        like: (N, ...), such sums.
        skip_self: leave out self pairs, which have one end and not two.
    """

    def __init__(self, like: Tensor, skip_self: bool = False) -> None:
        self._like, self._skip_self = like, skip_self
        self._shape: tuple[int, ...] = ()

    def room(self, tile: Tile) -> Tensor:
        """Return where to write all values of `tile`, until the next call: (offsets, first ends, ...)."""
        self._tile, (count, width) = tile, tile.shape
        self._skip = int(self._skip_self and tile.offsets.start == 0)
        # Row d belongs d nodes further on. Pad the rows with as many zeros as there are rows; `add` refolds them.
        padding = 0 if tile.offsets.start >= tile.circle else count - self._skip
        shape = (count, width + padding, width)
        if shape != self._shape:
            self._shape, self._padded = shape, self._like.new_empty(0)  # frees the last one first
            self._padded = self._like.new_empty(*shape[:2], *self._like.shape[1:])
            self._padded[:, width:].zero_()
        return self._padded[:, :width]

    def add(self, sums: Tensor) -> None:
        """Add the values in the room to `sums` (N, ...)."""
        tile, values = self._tile, self._padded[self._skip :]
        count = len(values)
        if count == 0:
            return
        if tile.offsets.start >= tile.circle:
            sums[tile.offsets].add_(values.sum(dim=1))
            return
        # Refold the rows one value shorter: row d then moves by d.
        pitch = values.shape[1] - 1
        sheared = values.flatten(0, 1)[: count * pitch].view(count, pitch, *values.shape[2:]).sum(dim=0)
        # Sums beyond the last node belong to the first nodes, around the circle.
        start = (tile.nodes.start + tile.offsets.start + self._skip) % tile.circle
        before_end = min(pitch, tile.circle - start)
        sums[start : start + before_end].add_(sheared[:before_end])
        sums[: pitch - before_end].add_(sheared[before_end:])
