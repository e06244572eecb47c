"""Classifiers beside a loss: linear ones, the graph's, and the graph's with one path of its information closed."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pml_gca.correlation.blocks import negative_attention
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import correlation_edges, standardize, sum_over_neighbours
from pml_gca.correlation.propagation import CorrelationPropagation, PropagationLayer


class LinearClassifier(nn.Module):
    """Logits of each embedding by itself, with a BatchNorm before the linear layer or without."""

    def __init__(self, num_classes: int, embedding_size: int, *, normalizes: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_size) if normalizes else nn.Identity()
        self.linear = nn.Linear(embedding_size, num_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B, num_classes) logits of (B, D) embeddings; labels have no influence."""
        logits: Tensor = self.linear(self.norm(embeddings))
        return logits


class GraphClassifier(nn.Module):
    """GCA-HNG's node classification of 2 layers and 4 heads, by itself."""

    def __init__(self, num_classes: int, embedding_size: int, *, num_layers: int = 2) -> None:
        super().__init__()
        self.propagation = CorrelationPropagation(
            num_classes, embedding_size, num_layers=num_layers, num_heads=4, dropout=0.1, with_coefficients=False
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B, num_classes) logits of the propagated nodes."""
        return self.propagation(embeddings, labels).node_logits

    def classify(self, nodes: Tensor) -> Tensor:
        """Return the (B, num_classes) logits of (B, D) propagated nodes."""
        logits: Tensor = self.propagation.node_classifier(self.propagation.node_norm(nodes))
        return logits


class MaskedGraphClassifier(GraphClassifier):
    """The graph without messages of edges between samples of one class, self pairs included."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B, num_classes) logits."""
        listed = EdgeList(len(embeddings))
        pairs = listed.pairs(embeddings.device)
        differ = (labels[pairs[0]] != labels[pairs[1]])[:, None]
        nodes, edges = self.propagation.first_nodes(embeddings), correlation_edges(embeddings, listed)
        for layer in self.propagation.layers:
            assert isinstance(layer, PropagationLayer)
            messages = sum_over_neighbours(F.gelu(layer.node.edge_to_node(edges)) * differ, listed)
            nodes = layer.node.update(layer.node.attend(nodes, labels), messages)
            if layer.edge is not None:
                edges = layer.edge(nodes, edges, listed)
        return self.classify(nodes)


class OwnGradientGraphClassifier(GraphClassifier):
    """The graph with the same logits, whose gradient reaches the embedding of a node through that node alone.

    Keys, values, the other end of an edge and updated edges pass no gradient to the embeddings.
    """

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B, num_classes) logits."""
        listed = EdgeList(len(embeddings))
        nodes, edges = self.propagation.first_nodes(embeddings), correlation_edges(embeddings.detach(), listed)
        own = standardize(embeddings)
        for number, layer in enumerate(self.propagation.layers):
            assert isinstance(layer, PropagationLayer)
            if number == 0:  # of all ordered pairs: e_ij as node i sees it
                messages = F.gelu(layer.node.edge_to_node(own[:, None] * own.detach())).sum(dim=1)
            else:
                messages = sum_over_neighbours(F.gelu(layer.node.edge_to_node(edges)), listed)
            nodes = layer.node.update(layer.node.attend(nodes, labels, attend_to_constants), messages)
            if layer.edge is not None:
                edges = layer.edge(nodes.detach(), edges, listed)
        return self.classify(nodes)


def attend_to_constants(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:
    """Return what `negative_attention` does; keys and values get no gradient."""
    attention: Callable[..., Tensor] = negative_attention
    return attention(query, key.detach(), value.detach(), *rest)


CLASSIFIERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearClassifier,
    "norm_linear": lambda num_classes, size: LinearClassifier(num_classes, size, normalizes=True),
    "graph": GraphClassifier,
    "no_graph": lambda num_classes, size: GraphClassifier(num_classes, size, num_layers=0),
    "masked_graph": MaskedGraphClassifier,
    "own_gradient_graph": OwnGradientGraphClassifier,
}
