"""Which edges of a graph are computed: their end nodes, and the tiles that they are computed in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .edges import count_edges, edge_pairs
from .tiles import Tile, edge_tiles


@dataclass(frozen=True)
class EdgeList:
    """The undirected edges that are computed here: all of a graph, or those whose first end lies in a range of nodes.

    Edges are sorted as `edge_pairs` says. Ranges that split the nodes split the edges: each edge has one first end.

    Attributes:
        num_nodes: N, of the whole graph.
        first_ends: the range of nodes that first ends lie in; None for all.
    """

    num_nodes: int
    first_ends: range | None = None

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
