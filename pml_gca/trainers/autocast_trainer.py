"""PML's TrainWithClassifier in mixed precision, for losses that know of epochs."""

from typing import Any

import torch
from pytorch_metric_learning.trainers import TrainWithClassifier

from ..losses import HardNegativeGenerationLoss


class AutocastTrainer(TrainWithClassifier):
    """PML's ``TrainWithClassifier`` whose forward passes run under autocast, if asked.

    The classifier is optional, as it is in PML, but not missed: without one this is ``MetricLossOnly``. Every epoch
    ends with the ``end_epoch()`` of each `HardNegativeGenerationLoss` that the metric loss is or holds.

    Args:
        *args, **kwargs: as for PML's trainers.
        autocast_dtype: ``torch.bfloat16``, or None for full precision.

    Raises:
        ValueError: ``autocast_dtype`` is another one; float16 would need a gradient scaler, which PML has not.
    """

    def __init__(self, *args: Any, autocast_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        if autocast_dtype not in (None, torch.bfloat16):
            raise ValueError(f"autocast_dtype must be torch.bfloat16 or None, got {autocast_dtype}")
        self.autocast_dtype = autocast_dtype
        super().__init__(*args, **kwargs)

    def modify_schema(self) -> None:
        """Allow a classifier, without warning where there is none."""
        super().modify_schema()
        self.schema["models"].important = ["embedder"]
        self.schema["loss_funcs"].important = ["metric_loss"]

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        device = torch.device(self.data_device).type
        return torch.autocast(device, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def calculate_loss(self, curr_batch: tuple[Any, Any]) -> None:
        """PML's losses of a batch."""
        with self.autocast():
            super().calculate_loss(curr_batch)

    def step_lr_schedulers(self, end_of_epoch: bool = False) -> None:
        """As in PML; an epoch's end, which PML marks by this call alone, is told to the loss."""
        super().step_lr_schedulers(end_of_epoch=end_of_epoch)
        for loss in generation_losses(self.loss_funcs["metric_loss"]) if end_of_epoch else ():
            loss.end_epoch()


def generation_losses(loss: torch.nn.Module) -> list[HardNegativeGenerationLoss]:
    """The losses with a generator that ``loss`` is, or holds, as PML's ``MultipleLosses`` does; each once."""
    return [module for module in loss.modules() if isinstance(module, HardNegativeGenerationLoss)]
