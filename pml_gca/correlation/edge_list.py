"""Which edges of a graph are computed: their end nodes, and the tiles that they are computed in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.processes import Processes
from ..distributed.sharding import enter, leave, share_of, total
from .edges import count_edges, edge_pairs
from .tiles import Tile, edge_tiles


@dataclass(frozen=True)
class EdgeList:
    """The undirected edges that are computed here: all of a graph, or those whose first end lies in a range of nodes.

    Edges are sorted as `edge_pairs` says. Ranges that split the nodes split the edges: each edge has one first end.
    Where processes share a graph, its computations go through the methods `enter`, `leave`, `total` and `own`.

    Attributes:
        num_nodes: N, of the whole graph.
        first_ends: the range of nodes that first ends lie in; None for all.
        processes: those that compute the other edges of the graph; None if nobody does.
    """

    num_nodes: int
    first_ends: range | None = None
    processes: Processes | None = None

    @classmethod
    def share(cls, num_nodes: int, processes: Processes | None) -> "EdgeList":
        """Return the share of this process; all edges without others, or if there is only one edge."""
        if processes is None or num_nodes < 2:
            return cls(num_nodes)
        return cls(num_nodes, share_of(num_nodes, processes), processes)

    @property
    def num_edges(self) -> int:
        """E, how many edges are listed."""
        return count_edges(self.num_nodes, self.first_ends)

    def pairs(self, device: torch.device) -> Tensor:
        """Return the two end nodes of each edge: (2, E) long."""
        return edge_pairs(self.num_nodes, device, self.first_ends)

    def tiles(self, max_edges: int) -> tuple[Tile, ...]:
        """Return the edges in tiles of at most `max_edges` and similar size."""
        return edge_tiles(self.num_nodes, max_edges, self.first_ends)

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
        first, second = self.pairs(device)
        return draw(count_edges(self.num_nodes))[..., (second - first) % self.num_nodes * self.num_nodes + first]
