"""PML's TrainWithClassifier in mixed precision, for losses that need to know when an epoch ends."""

from typing import Any

import torch
from pytorch_metric_learning.trainers import TrainWithClassifier
from torch import Tensor

from ..losses import HardNegativeGenerationLoss
from ..utils.dtypes import as_wide_as, outside_autocast


class AutocastTrainer(TrainWithClassifier):
    """PML's `TrainWithClassifier`, with forward passes under autocast if requested.

    The classifier is optional, as in PML, but PML's warning about a missing one is off; without it this is PML's
    `MetricLossOnly`. After every epoch the trainer calls `end_epoch()` of each `HardNegativeGenerationLoss` that the
    metric loss is or contains.

    Args:
        *args, **kwargs: as for PML's trainers.
        autocast_dtype: `torch.bfloat16`, or None for full precision.

    Raises:
        ValueError: `autocast_dtype` is another dtype. float16 would need a gradient scaler, which PML does not have.
    """

    def __init__(self, *args: Any, autocast_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        if autocast_dtype not in (None, torch.bfloat16):
            raise ValueError(f"autocast_dtype must be torch.bfloat16 or None, got {autocast_dtype}")
        self.autocast_dtype = autocast_dtype
        super().__init__(*args, **kwargs)

    def modify_schema(self) -> None:
        """Allow a classifier, without a warning if there is none."""
        super().modify_schema()
        self.schema["models"].important = ["embedder"]
        self.schema["loss_funcs"].important = ["metric_loss"]

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        device = torch.device(self.data_device).type
        return torch.autocast(device, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def calculate_loss(self, curr_batch: tuple[Any, Any]) -> None:
        """Compute PML's losses of a batch, under autocast."""
        with self.autocast():
            super().calculate_loss(curr_batch)

    def maybe_get_metric_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> Any:
        """Compute PML's metric loss. Proxies and class weights keep their precision, see `as_wide_as`."""
        loss = self.loss_funcs["metric_loss"]
        generated = generation_losses(loss)  # these look after themselves
        of_generators = {id(p) for found in generated for p in found.generator.parameters()}
        own = [p for p in loss.parameters() if id(p) not in of_generators]
        with outside_autocast([] if generated else own, embeddings):
            return super().maybe_get_metric_loss(as_wide_as(own, embeddings), labels, indices_tuple)

    def step_lr_schedulers(self, end_of_epoch: bool = False) -> None:
        """Step as PML does, and tell the losses about the end of an epoch: PML has no other call for it."""
        super().step_lr_schedulers(end_of_epoch=end_of_epoch)
        for loss in generation_losses(self.loss_funcs["metric_loss"]) if end_of_epoch else ():
            loss.end_epoch()


def generation_losses(loss: torch.nn.Module) -> list[HardNegativeGenerationLoss]:
    """Return the losses with a generator that `loss` is or contains, as PML's `MultipleLosses` may; each once."""
    return [module for module in loss.modules() if isinstance(module, HardNegativeGenerationLoss)]
