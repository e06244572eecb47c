"""The result of the propagated graph, and the gradient that it passes to the embeddings.

All objectives share one propagated graph. Only node classification may train the embeddings; the other terms train
the generator alone. The graph is therefore propagated from a detached copy of the embeddings. Two gradient passes go
through it. The first is taken early, from node classification to that copy. The second runs when the user calls
`backward`, from all terms to the parameters. Each pass skips what only the other one needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .edge_list import EdgeList
from .edges import to_dense

HALF_GRADIENT_SCALE = 1024.0  # lifts gradients that float16 would flush to zero


@dataclass
class GradientPass:
    """The gradients that a backward pass through the graph computes.

    Autograd skips what a pass does not ask for, but not inside functions whose gradients are written out. These look
    here. Only `embedding_gradient` and `Correlations.with_gradient_to` change it.
    """

    to_embeddings: bool = True
    to_parameters: bool = True


@dataclass(frozen=True)
class Correlations:
    """The result of the propagated graph, for a batch of N embeddings of D channels.

    Attributes:
        node_logits: (N, num_classes), class scores of the propagated nodes; without those of a memory.
        coefficients: (E, D) in (0, 1), channel-wise λ of each edge, in the order of `pairs`. 1 keeps a channel of a
            synthetic negative at the real negative; 0 pulls it to the distance of the positive. (0, D) from a
            propagation without coefficients.
        embeddings: (N, D), the input of the propagation.
        edge_chunk_size: how many edges later steps should compute at a time.
        gradient_pass: for use in this package; None if autograd differentiates everything.
        listed: the edges that have coefficients here; None for all.
    """

    node_logits: Tensor
    coefficients: Tensor
    embeddings: Tensor
    edge_chunk_size: int
    gradient_pass: GradientPass | None = None
    listed: EdgeList | None = None

    @property
    def edges(self) -> EdgeList:
        """The edges that have coefficients here."""
        return self.listed or EdgeList(len(self.node_logits))

    @property
    def pairs(self) -> Tensor:
        """The end nodes of these edges, see `edge_pairs`: (2, E) long."""
        return self.edges.pairs(self.node_logits.device)

    def dense(self) -> Tensor:
        """Return the coefficients as a symmetric (N, N, D) tensor.

        Raises:
            ValueError: not all pairs of nodes have coefficients here.
        """
        return self._to_dense(self.coefficients)

    def mean_coefficients(self) -> Tensor:
        """Return the channel means of the coefficients: (N, N), symmetric.

        Raises:
            ValueError: not all pairs of nodes have coefficients here.
        """
        return self._to_dense(self.coefficients.mean(dim=1))

    def _to_dense(self, values: Tensor) -> Tensor:
        edges, all_edges = self.edges, EdgeList(self.edges.num_nodes)
        if edges.num_edges != all_edges.num_edges:
            raise ValueError(
                f"only a graph of all pairs of nodes has dense coefficients; this one has {edges.num_edges} of "
                f"{all_edges.num_edges} edges here. Use `coefficients` and `pairs`"
            )
        return to_dense(values, edges.num_nodes)

    def with_gradient_to(self, embeddings: Tensor, loss: Tensor) -> Tensor:
        """Return `loss` with a gradient that also reaches `embeddings`.

        The graph was propagated from a detached copy of them. The gradient with respect to the copy is taken now. Later
        backward passes through the graph are for the parameters alone. If the copy requires no gradient, return `loss`
        as it is.

        Args:
            embeddings: (B, D); the first B rows of `self.embeddings` are their detached copy, in float32 or wider.
            loss: scalar, computed from this graph.

        Returns:
            Scalar of the same value, whose gradient reaches the parameters and `embeddings`.
        """
        leaf, gradient_pass = self.embeddings, self.gradient_pass or GradientPass()
        if not leaf.requires_grad:
            return loss
        scale = HALF_GRADIENT_SCALE if self.node_logits.dtype == torch.float16 else 1.0

        def gradient(create_graph: bool = False) -> Tensor:
            with torch.autocast(leaf.device.type, enabled=False):
                found = embedding_gradient(loss * scale, leaf, gradient_pass, create_graph=create_graph)
            found = found[: len(embeddings)] / scale
            return GradientOfCopy.apply(found, embeddings, leaf, gradient_pass) if create_graph else found

        now = gradient()
        gradient_pass.to_embeddings = False
        carried: Tensor = CarriedGradient.apply(embeddings, now, lambda: gradient(create_graph=True))
        return loss + carried


def embedding_gradient(
    value: Tensor,
    leaf: Tensor,
    gradient_pass: GradientPass,
    grad: Tensor | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Return the gradient of `value` with respect to `leaf`, without computing any of the parameters.

    Args:
        value: computed from the graph.
        leaf: (N, D), the input of the propagation.
        gradient_pass: of the graph.
        grad: gradient of `value`; None for a scalar.
        create_graph: as for `torch.autograd.grad`.

    Returns:
        (N, D).
    """
    before = gradient_pass.to_embeddings, gradient_pass.to_parameters
    gradient_pass.to_embeddings, gradient_pass.to_parameters = True, False
    try:
        (found,) = torch.autograd.grad(value, leaf, grad, retain_graph=True, create_graph=create_graph)
    finally:
        gradient_pass.to_embeddings, gradient_pass.to_parameters = before
    return found


class CarriedGradient(torch.autograd.Function):
    """Return zero; in backward, pass `gradient` to `embeddings`.

    `again` recomputes the gradient, in a form that can be differentiated itself.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, gradient: Tensor, again: Callable[[], Tensor]) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(gradient)
        return gradient.new_zeros(())

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradient = ctx.again()
        return gradient * grad, None, None


class GradientOfCopy(torch.autograd.Function):
    """Return `value`, computed from `leaf`; in backward, pass the leaf's gradient to `embeddings` as well.

    Serves second derivatives: `leaf` is the detached copy of the embeddings.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, embeddings: Tensor, leaf: Tensor, gradient_pass: GradientPass) -> Tensor:
        ctx.value, ctx.leaf, ctx.gradient_pass = value, leaf, gradient_pass
        ctx.save_for_backward(embeddings)
        return value.clone()

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (embeddings,) = ctx.saved_tensors
        again = torch.is_grad_enabled()
        gradient = embedding_gradient(ctx.value, ctx.leaf, ctx.gradient_pass, grad, create_graph=again)
        gradient = gradient[: len(embeddings)]
        if again:
            gradient = GradientOfCopy.apply(gradient, embeddings, ctx.leaf, ctx.gradient_pass)
        return grad, gradient, None, None
