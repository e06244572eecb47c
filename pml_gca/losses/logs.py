"""What a loss says of its last batch, for loggers and for PML's records."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..generators.base_generator import BaseGenerator, SyntheticNegatives
from ..generators.batch import Batch
from ..utils.batch_checks import inside_transform
from ..utils.dtypes import compute_dtype
from ..utils.norms import length, unit
from ..utils.row_dots import parts
from .levels import LossLevels
from .loss_wrapper import LossWrapper

Values = dict[str, Tensor | float]
COUNTS = ("num_negatives", "num_skipped_anchors")
SIMILARITIES = ("hardest_synthetic_similarity", "hardest_real_similarity")


class KeptValues:
    """Scalars of the last batch in training and of the last in evaluation. Tensors stay on their device."""

    def __init__(self) -> None:
        self.training: Values = {}
        self.evaluation: Values = {}
        self.gradient: Tensor | None = None  # norm of that of the embeddings
        self._handle: RemovableHandle | None = None

    def watch_gradient(self, embeddings: Tensor) -> None:
        """Note the norm of the gradient of (B, D) embeddings when the backward pass has computed it."""
        if self._handle is not None:
            self._handle.remove()
        self.gradient, self._handle = None, None
        if embeddings.requires_grad:
            self._handle = embeddings.register_hook(self._note_gradient)

    @torch.compiler.disable
    def _note_gradient(self, gradient: Tensor | None) -> None:
        if gradient is None:  # autograd found that nothing reaches them
            return
        self.gradient = length(gradient.detach().to(compute_dtype(gradient)).flatten())

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and loaded pickles the values, but no hook."""
        return {**self.__dict__, "_handle": None}


class LoggedLoss(LossWrapper):
    """A loss that tells what its parts were: `logs()` for loggers, attributes for PML's records.

    A subclass has a generator and levels, and calls `keep_values` once a batch.
    """

    generator: BaseGenerator
    levels: LossLevels

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kept = KeptValues()

    @property
    def embedding_gradient_norm(self) -> float:
        """Norm of the gradient of the embeddings of the last training batch; 0 before `backward()`."""
        return 0.0 if self._kept.gradient is None else float(self._kept.gradient)

    @property
    def generator_gradient_norm(self) -> float:
        """Norm of the gradient that the generator's parameters hold now; 0 without one."""
        return self.generator.gradient_norm

    def record_generator(self) -> None:
        """Record the generator's statistics as this loss's own, if it collects any: in one table, under plain names."""
        if not self.collect_stats:
            return
        self.generator.start_collecting_stats()
        names = dict.fromkeys(name for generator in self._generators() for name in generator.stat_names)
        self.add_to_recordable_attributes(list_of_names=[*names, *COUNTS, *SIMILARITIES], is_stat=True)
        # No stats: PML resets those when a batch begins, and these are known only after backward.
        self.add_to_recordable_attributes(list_of_names=["embedding_gradient_norm", "generator_gradient_norm"])

    def _generators(self) -> list[BaseGenerator]:
        return [module for module in self.generator.modules() if isinstance(module, BaseGenerator)]

    def logs(self) -> dict[str, float]:
        """Return what is worth plotting, as a flat dict for `log_dict` of Lightning, W&B or TensorBoard.

        In training mode the values are those of the last training batch; call it after `backward()`. In evaluation
        mode it is `metric_loss` alone, of the last batch in evaluation. Values that do not exist are left out: all
        before the first batch; gradients before `backward()` and after `zero_grad()`; a level that nothing was observed
        for. Nothing is read from the device before this call, which waits for it.

        - `metric_loss`: J_m, the wrapped loss of the real batch; the one to compare with validation.
        - `synthetic_loss`: its weight times J_syn; `synthetic_weight`: 1 − e^{−β/G}.
        - `generator_loss`: the sum of the generator's terms. The terms follow under their own names, before the
          weights they have in the sum.
        - `metric_level`, `generator_level`: L and G.
        - `lambda_mean`, `lambda_std`: of the coefficients λ, if the generator learns some; of the edges of this process
          if several share the graph.
        - `num_negatives`, `num_skipped_anchors`: synthetic negatives, and anchors that have none.
        - `hardest_synthetic_similarity`, `hardest_real_similarity`: the largest cosine similarity of an anchor to one
          of its synthetic negatives, and to a real negative; both are means over anchors with synthetic negatives.
        - `embedding_gradient_norm`: Euclidean norm of the gradient of the embeddings, from all that is trained by them.
          If batches are gathered: of the embeddings of all processes, from this loss.
        - `generator_gradient_norm`: of the gradient that the generator's parameters hold now.
        """
        if not self.training:
            return as_floats(self._kept.evaluation)
        if not self._kept.training:
            return {}
        levels = {
            "metric_level": float(self.levels.metric.value),
            "generator_level": float(self.levels.generator.value),
        }
        levels = {name: level for name, level in levels.items() if not math.isinf(level)}
        gradients = {}
        if self._kept.gradient is not None:
            gradients["embedding_gradient_norm"] = self.embedding_gradient_norm
        if any(p.grad is not None for p in self.generator.parameters()):
            gradients["generator_gradient_norm"] = self.generator_gradient_norm
        return {**as_floats(self._kept.training), **levels, **gradients}

    def keep_values(self, values: Values, embeddings: Tensor, batch: Batch, negatives: SyntheticNegatives) -> None:
        """Keep what `logs` returns of a training batch; the phase "generation" adds to the phase before.

        Args:
            values: sub-losses and the synthetic weight, scalars.
            embeddings: (B, D), whose gradient is watched.
            batch: the nodes.
            negatives: of the batch.
        """
        names, before = list(values), self._kept.training
        values = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        again = batch.phase == "generation"
        if again:
            total = before.get("generator_loss", 0.0) + values["generator_loss"]
            values = {**values, **before, "generator_loss": total}
        for generator in self._generators():
            values.update(generator.observed)
        if not again:
            self._kept.watch_gradient(embeddings)
            values.update(similarities(batch, negatives))
        self._kept.training = values
        if self.collect_stats:
            found = {name: getattr(own, name, 0) for own in self._generators() for name in own.stat_names}
            found |= {name: values[name] for name in (*names, *COUNTS, *SIMILARITIES) if name in values}
            for name, value in found.items():
                setattr(self, name, float(value))

    def keep_evaluation(self, value: object) -> None:
        """Keep the wrapped loss's value of a batch in evaluation, if it is a number outside transforms."""
        if isinstance(value, Tensor) and value.numel() == 1 and not inside_transform():
            self._kept.evaluation = {"metric_loss": value.detach()}


@torch.no_grad()
def similarities(batch: Batch, negatives: SyntheticNegatives) -> Values:
    """Count negatives and skipped anchors, and compare the hardest synthetic negatives with the hardest real ones.

    Returns:
        `num_negatives` and `num_skipped_anchors`; and if there are negatives, `hardest_synthetic_similarity` and
        `hardest_real_similarity`: cosine similarities, means over the anchors that have both kinds.
    """
    if len(negatives) == 0:
        return {"num_negatives": 0, "num_skipped_anchors": batch.num_anchors}
    directions, _ = unit(batch.nodes)
    anchors = directions[: batch.num_anchors]
    with torch.autocast(directions.device.type, enabled=False):
        real = anchors @ directions.t()
    real = real.masked_fill_(batch.anchor_labels[:, None] == batch.labels, -math.inf).amax(dim=1)
    cosines = directions.new_empty(len(negatives))
    for rows, owners, out in parts(negatives.embeddings, negatives.anchors, cosines):
        rows = rows.to(directions.dtype)
        torch.linalg.vecdot(anchors.index_select(0, owners), rows, out=out)
        out.div_(length(rows).clamp_min(torch.finfo(rows.dtype).tiny))
    synthetic = torch.full_like(real, -math.inf).scatter_reduce(0, negatives.anchors, cosines, "amax")
    has, both = synthetic > -math.inf, (synthetic > -math.inf) & (real > -math.inf)
    return {
        "num_negatives": len(negatives),
        "num_skipped_anchors": batch.num_anchors - has.sum(),
        "hardest_synthetic_similarity": torch.where(both, synthetic, 0.0).sum() / both.sum(),
        "hardest_real_similarity": torch.where(both, real, 0.0).sum() / both.sum(),
    }


def as_floats(values: Values) -> dict[str, float]:
    """Return the values as Python's floats, which waits for the device."""
    return {name: float(value) for name, value in values.items()}
