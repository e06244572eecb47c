"""Which edges of a graph are computed: their end nodes, and the tiles that they are computed in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.processes import Processes
from ..distributed.sharding import enter, leave, share_of, total
from .edges import count_edges, edge_pairs
from .tiles import Tile, Turned, edge_tiles, turned


@dataclass(frozen=True)
class EdgeList:
    """The undirected edges that are computed here: all of a graph, or those whose first end lies in a range of nodes.

    Edges are sorted as `edge_pairs` says. Ranges that split the nodes split the edges: each edge has one first end.
    Where processes share a graph, its computations go through the methods `enter`, `leave`, `total` and `own`.

    Attributes:
        num_nodes: N, of the whole graph.
        first_ends: the range of nodes that first ends lie in; None for all.
        processes: those that compute the other edges of the graph; None if nobody does.
        num_memory: M, how many of the last nodes are a memory, without edges among each other; see `edges`. They are
            second ends alone.
    """

    num_nodes: int
    first_ends: range | None = None
    processes: Processes | None = None
    num_memory: int = 0

    @classmethod
    def share(cls, num_nodes: int, processes: Processes | None, num_memory: int = 0) -> "EdgeList":
        """Return the share of this process; all edges without others, or if there is only one first end."""
        size = num_nodes - num_memory
        if processes is None or size < 2:
            return cls(num_nodes, num_memory=num_memory)
        return cls(num_nodes, share_of(size, processes), processes, num_memory)

    @property
    def num_batch(self) -> int:
        """B = N − M, the nodes that are no memory."""
        return self.num_nodes - self.num_memory

    @property
    def num_ordered_pairs(self) -> int:
        """How many ordered pairs of nodes share an edge in the whole graph: N² − M²."""
        return self.num_nodes**2 - self.num_memory**2

    @property
    def num_edges(self) -> int:
        """E, how many edges are listed."""
        return count_edges(self.num_nodes, self.first_ends, self.num_memory)

    @property
    def is_whole_circle(self) -> bool:
        """Whether these are all edges of a graph without a memory."""
        return self.first_ends is None and not self.num_memory

    def pairs(self, device: torch.device) -> Tensor:
        """Return the two end nodes of each edge: (2, E) long."""
        return edge_pairs(self.num_nodes, device, self.first_ends, self.num_memory)

    def tiles(self, max_edges: int) -> tuple[Tile, ...]:
        """Return the edges in tiles of at most `max_edges` and similar size."""
        return edge_tiles(self.num_nodes, max_edges, self.first_ends, self.num_memory)

    def turned(self, values: Tensor) -> Turned:
        """Return (N, ...) values of nodes such that `[tile.offsets, tile.nodes]` are those of a tile's second ends."""
        return turned(values, self.num_memory)

    def degrees(self, like: Tensor) -> Tensor | int:
        """Return how many nodes share an edge with each node in the whole graph, at least 1: (N, 1), or one number."""
        if not self.num_memory:
            return max(self.num_nodes, 1)
        degrees = like.new_full((self.num_nodes, 1), self.num_nodes)
        degrees[self.num_batch :] = max(self.num_batch, 1)
        return degrees

    def enter(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return values of nodes or parameters, to be used with these edges; see `sharding.enter`."""
        return enter(self.processes, *tensors)

    def leave(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return sums over all edges of the graph, from those over these edges; see `sharding.leave`."""
        return leave(self.processes, *tensors)

    def total(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return such sums without gradient."""
        return total(self.processes, *tensors)

    @property
    def everywhere(self) -> Callable[..., tuple[Tensor, ...]] | None:
        """Turns sums over these edges into those over all edges, to be used with these edges; None if these are all."""
        return None if self.processes is None else lambda *sums: self.enter(*self.leave(*sums))

    def own(self, draw: Callable[[int], Tensor], device: torch.device) -> Tensor:
        """Return (..., E) random values of these edges: all processes draw those of all edges, as one process would.

        Args:
            draw: draws them for a number of edges.
            device: of the result.
        """
        if self.processes is None:
            return draw(self.num_edges)
        (first, second), size = self.pairs(device), self.num_batch
        around = (second - first) % size * size + first
        beyond = count_edges(size) + (second - size) * size + first
        places = torch.where(second < size, around, beyond)
        return draw(count_edges(self.num_nodes, num_memory=self.num_memory))[..., places]
