"""GCA-HNG with a part taken away, where no option of the generator does that."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.correlations import Correlations
from pml_gca.correlation.propagation import CorrelationPropagation
from pml_gca.generators import Batch, ClassifiedGenerator


class ScalarCorrelationGenerator(GlobalCorrelationGenerator):
    """GCA-HNG with one coefficient for each pair: the mean over the channels of λ."""

    def coefficients_of_edges(self, num_edges: int, nodes: Tensor, graph: Correlations | None) -> Tensor:
        """Return the mean of each edge's coefficients in all of its channels: (E, D)."""
        channelwise = super().coefficients_of_edges(num_edges, nodes, graph)
        return channelwise.mean(dim=1, keepdim=True).expand_as(channelwise)


class DetachedClassificationGenerator(GlobalCorrelationGenerator):
    """GCA-HNG whose node classification trains the generator, but not the embeddings."""

    def propagate(self, batch: Batch, nodes: Tensor) -> Correlations:
        """Propagate the graph of embeddings that get no gradient from it."""
        return super().propagate(replace(batch, embeddings=batch.embeddings.detach()), nodes)


def silence(propagation: CorrelationPropagation) -> None:
    """Silence the edges: every message becomes GELU(0) = 0. Nodes still attend to each other."""
    for layer in propagation.layers:
        for parameter in layer.get_submodule("node.edge_to_node").parameters():
            nn.init.zeros_(parameter).requires_grad_(False)


class SilentCorrelationGenerator(GlobalCorrelationGenerator):
    """GCA-HNG whose nodes attend to each other, but get no messages of edges. Arguments are those of GCA-HNG."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        silence(self.propagation)


class SilentClassifiedGenerator(ClassifiedGenerator):
    """A node classification whose nodes attend to each other, but get no messages of edges."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        silence(self.propagation)
