"""The terms that train the generator of GCA-HNG. Section 3.5 of https://arxiv.org/abs/2411.13145"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.dtypes import compute_dtype, matmul_dtype
from ..utils.norms import unit
from ..utils.recompute_gradients import differentiate_plain
from ..utils.row_dots import norm_or_floor, row_dots
from ..utils.validation import check_number
from .blocks import linear
from .diversity import diversity_loss
from .edge_list import EdgeList

GENERATION_WEIGHT = 0.5  # of all terms of J_gen
AUXILIARY_WEIGHT = 10.0  # of J_aux
DIVERSITY_UNIT = 0.01  # the published diversity weights are given in units of it
CLASSIFIED_VALUES = 2**22  # logits computed at a time


def mean_or_zero(values: Tensor) -> Tensor:
    """Return the mean of `values`, or 0 with a graph if there are none."""
    return values.mean() if values.numel() > 0 else values.sum()  # torch 2.4 compiles a bare number as a constant


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of (R, num_classes) logits and (R,) labels, in float32 or wider; 0 without rows."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return mean_or_zero(F.cross_entropy(wide, labels, reduction="none"))


class FrozenClassification(torch.autograd.Function):
    """Compute `frozen_classification_loss` and its gradient together, in portions."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        dtype, product = compute_dtype(rows, weight), matmul_dtype(weight)
        # Errors of well classified rows are too small for float16, and no gradient scaler lifts them here.
        gradient_product = dtype if product == torch.float16 else product
        total, gradient = rows.new_zeros((), dtype=dtype), torch.empty_like(rows)
        device = rows.device.type
        parts = (x.split(max(CLASSIFIED_VALUES // max(len(weight), 1), 1)) for x in (rows, labels[:, None], gradient))
        for part, target, part_gradient in zip(*parts, strict=True):
            with torch.autocast(device, enabled=False):
                log_probability = class_scores(part, weight, bias, product, dtype).log_softmax(dim=1)
                total -= log_probability.gather(1, target).sum()
                error = log_probability.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=dtype))
                factors = error.to(gradient_product), weight.to(gradient_product)
                if gradient_product == part_gradient.dtype:
                    torch.mm(*factors, out=part_gradient)
                else:
                    part_gradient.copy_(factors[0] @ factors[1])
        ctx.save_for_backward(gradient, rows, weight, bias, labels)
        return total / max(len(rows), 1)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient, rows, weight, bias, labels = ctx.saved_tensors
        if torch.is_grad_enabled():
            weight, bias = (x.to(compute_dtype(rows, weight)) for x in (weight, bias))  # without half precision

            def plain(rows: Tensor) -> Tensor:
                return classification_loss(F.linear(rows.to(weight.dtype), weight, bias), labels)

            return differentiate_plain(ctx, plain, {0: rows}, [grad])
        return gradient * (grad / max(len(rows), 1)), None, None, None


def class_scores(rows: Tensor, weight: Tensor, bias: Tensor, product: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Return W x + b of (R, D) rows in `dtype`, with the product W x computed in `product`: (R, num_classes)."""
    if product == dtype:
        return F.linear(rows.to(dtype), weight.to(dtype), bias.to(dtype))
    if product != torch.float16:
        return F.linear(rows.to(product), weight.to(product)).to(dtype) + bias.to(dtype)
    # Long rows overflow float16, and so would their products: divide by their largest value.
    scale = torch.linalg.vector_norm(rows, ord=math.inf, dim=1, keepdim=True).clamp_min(1.0)
    return F.linear((rows / scale).to(product), weight.to(product)).to(dtype) * scale + bias.to(dtype)


def frozen_classification_loss(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Return J_soft, the `classification_loss` of a linear classifier that does not learn from it.

    The gradient is taken in the forward pass, in portions, and logits are not kept: there may be thousands of negatives
    and of training classes.

    Args:
        rows: (S, D).
        weight, bias: (num_classes, D) and (num_classes,); they get no gradient.
        labels: (S,) long.
    """
    weight, bias = weight.detach(), bias.detach()
    if torch.compiler.is_compiling():
        product, dtype = matmul_dtype(weight), compute_dtype(rows, weight)
        with torch.autocast(rows.device.type, enabled=False):
            return classification_loss(class_scores(rows, weight, bias, product, dtype), labels)
    loss: Tensor = FrozenClassification.apply(rows, weight, bias, labels)
    return loss


def similarity_loss(nodes: Tensor, anchors: Tensor, synthetic: Tensor) -> Tensor:
    """Return J_sim = mean(1 − cos(z_i, ẑ)): small when the synthetic negatives are hard.

    Args:
        nodes: (N, D), z.
        anchors: (S,) long, the node each synthetic negative belongs to.
        synthetic: (S, D), ẑ.
    """
    lengths = norm_or_floor(synthetic, floor=0.0)
    directions, _ = unit(nodes.to(synthetic.dtype))
    cosine = row_dots(directions, anchors, synthetic) / lengths.masked_fill(lengths == 0, 1.0)
    return mean_or_zero(1 - cosine)


class GenerationObjective(nn.Module):
    r"""The generator's own objective, and the loss of the auxiliary classifier that takes part in it.

    $$J_{gen} = \tfrac{1}{2} (w_c J_{soft} + w_s J_{sim} + 0.01\,w_d J_{div}), \quad 10\,J_{aux}$$

    Args:
        classifier: the auxiliary classifier, D to num_classes. It is frozen in J_soft, and learns from J_aux.
        classification_weight: w_c of J_soft, which keeps a negative in its class.
        similarity_weight: w_s of J_sim, which makes it hard.
        diversity_weight: w_d of J_div, which makes coefficients differ.

    Raises:
        TypeError, ValueError: a weight is no number, or negative, or not finite.
    """

    def __init__(
        self,
        classifier: nn.Linear,
        *,
        classification_weight: float,
        similarity_weight: float,
        diversity_weight: float,
    ) -> None:
        super().__init__()
        check_number("classification_weight", classification_weight)
        check_number("similarity_weight", similarity_weight)
        check_number("diversity_weight", diversity_weight)
        self.classifier = classifier
        # Compiled code takes integers for constants, and another one would compile anew.
        self.classification_weight = float(classification_weight)
        self.similarity_weight = float(similarity_weight)
        self.diversity_weight = float(diversity_weight)

    def forward(
        self,
        nodes: Tensor,
        coefficients: Tensor,
        synthetic: Tensor,
        anchors: Tensor,
        labels: Tensor,
        edge_chunk_size: int | None = None,
        *,
        edges: EdgeList | None = None,
        classes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of J_gen by name: J_soft, J_sim and J_div, scalars.

        Args:
            nodes: (N, D), detached embeddings.
            coefficients: (E, D), λ of the listed edges.
            synthetic: (S, D), the synthetic negatives.
            anchors: (S,) long, the node each belongs to.
            labels: (S,) long, the class each imitates.
            edge_chunk_size: edges computed at a time; chosen by the device if None.
            edges: the list of edges; all by default.
            classes: (C,) long, ascending, the classes that J_soft tells negatives from; all by default.
        """
        weight, bias = (x.detach().to(compute_dtype(x, nodes)) for x in self.classifier.parameters())
        if classes is not None:
            weight, bias = (x.index_select(0, classes) for x in (weight, bias))
            labels = torch.searchsorted(classes, labels)
        return {
            "generated_classification_loss": frozen_classification_loss(synthetic, weight, bias, labels),
            "similarity_loss": similarity_loss(nodes, anchors, synthetic),
            "diversity_loss": diversity_loss(coefficients, edges or EdgeList(len(nodes)), edge_chunk_size),
        }

    def classify(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return J_aux by name, unweighted: the auxiliary classifier's loss of (A, D) embeddings, detached here."""
        real = embeddings.detach().to(compute_dtype(self.classifier.weight, embeddings))
        with torch.autocast(real.device.type, enabled=False):  # real embeddings may be too long for float16
            logits = linear(self.classifier, real)
        return {"auxiliary_classification_loss": classification_loss(logits, labels)}

    def weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `generation_loss` (J_gen) and 10 J_aux, to add to the loss; each only if its terms are given."""
        objectives: dict[str, Tensor] = {}
        if "diversity_loss" in terms:
            objectives["generation_loss"] = GENERATION_WEIGHT * (
                self.classification_weight * terms["generated_classification_loss"]
                + self.similarity_weight * terms["similarity_loss"]
                + DIVERSITY_UNIT * self.diversity_weight * terms["diversity_loss"]
            )
        if "auxiliary_classification_loss" in terms:
            objectives["auxiliary_classification_loss"] = AUXILIARY_WEIGHT * terms["auxiliary_classification_loss"]
        return objectives
