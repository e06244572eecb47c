"""What a recipe leaves open."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..losses import NAMED_LOSSES
from ..recipes import suggestion

GENERATORS = ("gca", "none")
SCHEDULES = ("alternating", "one_backward")
SELECTIONS = ("val", "test", "last")


@dataclass(frozen=True)
class Options:
    """What a recipe leaves open.

    Attributes:
        loss: a name in ``pml_gca.losses.NAMED_LOSSES``, or a function of ``(num_classes, embedding_size)``.
        generator: ``"gca"``, or ``"none"`` for the loss alone.
        schedule: ``"alternating"`` as published, or ``"one_backward"``, which is faster.
        select_on: the epoch that is reported is the best on ``"val"``, held-out training classes; on ``"test"``, as in
            the published code, which flatters; or the ``"last"``.
        seed: of weights, batches and crops.
        amp: bfloat16 autocast in training.
        device: where to train.
        workers: processes that load images.
        pretrained: start from ImageNet's weights.
        image_size: side of the crops, in pixels.
        evaluate_every: epochs from one evaluation to the next.
        eval_batch_size: images at a time in evaluation.

    Raises:
        ValueError: a value is not one of those named above, or out of range.
    """

    loss: str | Callable[[int, int], nn.Module] = "n_pairs"
    generator: str = "gca"
    schedule: str = "alternating"
    select_on: str = "val"
    seed: int = 0
    amp: bool = False
    device: str = "cpu"
    workers: int = 0
    pretrained: bool = True
    image_size: int = 224
    evaluate_every: int = 1
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        for name, known in (("generator", GENERATORS), ("schedule", SCHEDULES), ("select_on", SELECTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if isinstance(self.loss, str) and self.loss not in NAMED_LOSSES:
            raise ValueError(
                f"no loss is called {self.loss!r}{suggestion(self.loss, NAMED_LOSSES)}; there are "
                f"{', '.join(NAMED_LOSSES)}"
            )
        if self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be at least 1, got {self.evaluate_every}")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but torch finds no GPU")

    def build_loss(self, num_classes: int, embedding_size: int) -> nn.Module:
        """The metric loss, without a generator."""
        make = NAMED_LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        return make(num_classes, embedding_size)
