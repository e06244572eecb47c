"""The choices that a recipe leaves open."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from ..losses import NAMED_LOSSES
from ..names import GENERATORS, LOSS_ALONE
from ..utils.validation import check_flag, check_positive_int, count_of, make_plain, suggestion
from .published_n_pairs_loss import PublishedNPairsLoss

SCHEDULES = ("alternating", "one_backward")
SELECTIONS = ("val", "test", "last")
SAMPLERS = ("covering", "random")
OF_THE_MACHINE = ("seed", "device", "workers", "eval_batch_size")  # or of one run; others identify an experiment


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices that a recipe leaves open.

    Attributes:
        loss: a name in `pml_gca.losses.NAMED_LOSSES`, or a function of `(num_classes, embedding_size)`. Here
            `"n_pairs"` means `PublishedNPairsLoss`.
        generator: a name in `pml_gca.generators.NAMED_GENERATORS`, or `"none"` for the loss alone.
        schedule: `"alternating"` as published, or `"one_backward"`, which is faster.
        select_on: which epoch is reported. `"val"`: the best on held-out training classes. `"test"`: the best on
            the test classes, as in the published code, which flatters. `"last"`: the last.
        sampler: `"covering"`: batches use every image of a class once before any repeats, as published.
            `"random"`: each batch draws its images at random, as PML's sampler does, and more are left out.
        seed: seed of weights, batches and crops.
        amp: bfloat16 autocast in training.
        device: where to train; None for a GPU if there is one.
        workers: number of processes that load images.
        pretrained: start from ImageNet's weights.
        image_size: side of the crops, in pixels.
        evaluate_every: epochs between evaluations.
        eval_batch_size: batch size in evaluation.

    Raises:
        TypeError, ValueError: a value is none of the above, or out of range.
    """

    loss: str | Callable[[int, int], nn.Module] = "n_pairs"
    generator: str = "gca"
    schedule: str = "alternating"
    select_on: str = "val"
    sampler: str = "covering"
    seed: int = 0
    amp: bool = False
    device: str | None = None
    workers: int = 0
    pretrained: bool = True
    image_size: int = 224
    evaluate_every: int = 1
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        generators = (*GENERATORS, LOSS_ALONE)
        choices = {"generator": generators, "schedule": SCHEDULES, "select_on": SELECTIONS, "sampler": SAMPLERS}
        for name, known in choices.items():
            found = getattr(self, name)
            if found not in known:
                meant = suggestion(str(found), known)
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {found!r}{meant}")
        if not isinstance(self.loss, str) and not callable(self.loss):
            raise TypeError(
                f"loss must be a name or a function of (num_classes, embedding_size), got {type(self.loss).__name__}"
            )
        if isinstance(self.loss, str) and self.loss not in NAMED_LOSSES:
            raise ValueError(
                f"no loss is called {self.loss!r}{suggestion(self.loss, NAMED_LOSSES)}; there are "
                f"{', '.join(NAMED_LOSSES)}"
            )
        for name in ("image_size", "evaluate_every", "eval_batch_size"):
            check_positive_int(name, getattr(self, name))
        for name in ("seed", "workers"):
            check_positive_int(name, getattr(self, name), minimum=0)
        for name in ("amp", "pretrained"):
            check_flag(name, getattr(self, name))
        make_plain(self)
        check_device(self.torch_device)

    @property
    def torch_device(self) -> torch.device:
        """Where to train."""
        chosen = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.device(chosen)
        except RuntimeError:
            raise ValueError(f"device must be cpu, cuda, cuda:1 or the like, got {chosen!r}") from None

    @property
    def loss_name(self) -> str:
        """Name of the loss, or of the function that makes it."""
        if isinstance(self.loss, str):
            return self.loss
        made_by = self.loss if hasattr(self.loss, "__qualname__") else type(self.loss)  # such as a partial
        return f"{made_by.__module__}:{made_by.__qualname__}"

    @property
    def title(self) -> str:
        """Name of loss and generator in tables and figures."""
        return self.loss_name if self.generator == LOSS_ALONE else f"{self.loss_name} + {GENERATORS[self.generator]}"

    def identity(self) -> dict[str, Any]:
        """Return the options that must agree for runs to share a table."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in OF_THE_MACHINE}
        return {**settings, "loss": self.loss_name}

    def unlike_the_paper(self) -> dict[str, Any]:
        """Return the options that make results incomparable with the paper's.

        Loss, generator and choice of epoch are left out: tables name them anyway.
        """
        paper = {
            "schedule": "alternating",
            "sampler": "covering",
            "amp": False,
            "pretrained": True,
            "image_size": 224,
        }
        return {name: getattr(self, name) for name, value in paper.items() if getattr(self, name) != value}

    def build_loss(self, num_classes: int, embedding_size: int, samples_per_class: int) -> nn.Module:
        """Return the metric loss, without a generator."""
        if self.loss == "n_pairs":
            return PublishedNPairsLoss(samples_per_class)
        make = NAMED_LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        return make(num_classes, embedding_size)


def check_device(device: torch.device) -> None:
    """Raise ValueError if there is no such device."""
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found == 0:
            raise ValueError(f"device is '{device}', but torch finds no GPU")
        if device.index is not None and device.index >= found:
            raise ValueError(f"device is '{device}', but torch finds {count_of(found, 'GPU')}, numbered from 0")
    elif device.type == "meta":
        raise ValueError("device is 'meta', which computes nothing")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but torch finds none")
