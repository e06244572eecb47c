"""One classifier for two streams: the nodes of a graph, and the embeddings that it was made of."""

from typing import Any

import torch
from torch import Tensor, nn

from pml_gca.correlation.propagation import CorrelationPropagation

DROPOUT = 0.1


class TwoStreams(nn.Module):
    """A linear layer that classifies one or two streams, each after a BatchNorm of its own.

    Args:
        num_classes: N.
        embedding_size: D.
        streams: `"graph"`: nodes of the graph of 2 layers and 4 heads, and embeddings; `"dropout"`: embeddings twice,
            each time with other channels dropped; `"alone"`: embeddings once.
    """

    def __init__(self, num_classes: int, embedding_size: int, *, streams: str) -> None:
        super().__init__()
        self.head = nn.Linear(embedding_size, num_classes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(embedding_size) for _ in range(2 if streams == "dropout" else 1))
        self.dropout = nn.Dropout(DROPOUT if streams == "dropout" else 0.0)
        self.graph = None
        if streams == "graph":
            self.graph = CorrelationPropagation(
                num_classes, embedding_size, num_layers=2, num_heads=4, dropout=0.1, with_coefficients=False
            )
            self.graph.node_classifier = self.head

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of both streams, one after the other, (2B, N), or of one, for (B, D) embeddings."""
        logits = [] if self.graph is None else [self.graph(embeddings, labels).node_logits]
        logits += [self.head(norm(self.dropout(embeddings))) for norm in self.norms]
        return torch.cat(logits)

    def parameter_groups(self, lr: float, graph_lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: the graph, without the linear layer that it shares, learns at `graph_lr`."""
        own = [*self.head.parameters(), *self.norms.parameters()]
        graph = [] if self.graph is None else [p for p in self.graph.parameters() if all(p is not q for q in own)]
        return [{"params": own, "lr": lr}, *([{"params": graph, "lr": graph_lr}] if graph else [])]
