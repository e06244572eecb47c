"""Whether a loss of one's own uses the synthetic negatives, asked before the first batch that has some."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pytorch_metric_learning.losses import MultipleLosses
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .families import FORMS, SyntheticBatch, synthetic_loss

TRUSTED = ("pytorch_metric_learning.", "pml_gca.")  # their losses are tested


def check_dependence(loss: nn.Module, batch: SyntheticBatch) -> None:
    """Raise if a loss of one's own, or one in a ``MultipleLosses``, makes nothing of synthetic negatives.

    A copy of the loss is called, with the same random numbers; on the CPU where the batch is on a GPU, which would
    report a wrong index too late. A copy that fails otherwise says nothing: the loss itself will.

    Raises:
        ValueError: its value does not depend on the synthetic rows, or it looks for rows that it was not given.
    """
    for member in own_losses(loss):
        try:
            uses_them = depends_on_negatives(copy.deepcopy(member), batch)
        except IndexError as error:
            raise ValueError(
                f"loss {type(member).__name__} looks pairs up in a batch that is too small for them, as if it took "
                f"no ref_emb ({error}). {FORMS}"
            ) from error
        except Exception:  # the loss itself will say it, or works where a copy does not
            continue
        if not uses_them:
            raise ValueError(
                f"loss {type(member).__name__} cannot learn from synthetic negatives as it is registered: its value "
                f"does not depend on the synthetic rows. {FORMS}"
            )


def own_losses(loss: nn.Module) -> Iterator[nn.Module]:
    """The losses that are no exact type of PML or of this package."""
    if isinstance(loss, MultipleLosses):
        for member in loss.losses.values() if loss.is_dict else loss.losses:
            yield from own_losses(member)
    elif not type(loss).__module__.startswith(TRUSTED):
        yield loss


def depends_on_negatives(loss: nn.Module, batch: SyntheticBatch) -> bool:
    """Whether anything is computed from the synthetic rows.

    It is not the value that is asked, which says nothing where every negative keeps a margin.
    """
    if batch.embeddings.is_cuda:
        loss, batch = loss.cpu(), to_cpu(batch)
    rows = batch.negatives.embeddings.detach().requires_grad_()  # nothing else has a gradient
    real = {name: getattr(batch, name).detach() for name in ("embeddings", "nodes")}
    batch = replace(batch, **real, negatives=replace(batch.negatives, embeddings=rows))
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), ReadsWithGradient() as reads:
        value = synthetic_loss(loss.requires_grad_(False), batch)
    return reads.found or value.requires_grad


class ReadsWithGradient(TorchFunctionMode):
    """Notices that a tensor with a gradient is computed with; to join it to others, or ask its shape, is not enough."""

    IDLE = frozenset(
        {"__len__", "cat", "device", "dim", "dtype", "grad_fn", "is_complex", "is_cuda", "is_floating_point", "is_leaf"}
        | {"is_meta", "is_mps", "is_sparse", "layout", "ndim", "numel", "requires_grad", "shape", "size", "to", "type"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch."""
        name = getattr(func, "__name__", None)
        if (func.__self__.__name__ if name == "__get__" else name) not in self.IDLE:
            self.found = self.found or has_gradient((args, kwargs))
        return func(*args, **(kwargs or {}))


def has_gradient(x: object) -> bool:
    """Whether a tensor, or one in a collection, requires a gradient."""
    if isinstance(x, (list, tuple)):
        return any(map(has_gradient, x))
    if isinstance(x, dict):
        return any(map(has_gradient, x.values()))
    return isinstance(x, Tensor) and x.requires_grad


def to_cpu(batch: SyntheticBatch) -> SyntheticBatch:
    """A detached copy on the CPU."""
    negatives = replace(
        batch.negatives,
        **{name: getattr(batch.negatives, name).detach().cpu() for name in ("embeddings", "labels", "anchors")},
        objectives={},
    )
    tensors = {name: getattr(batch, name).detach().cpu() for name in ("embeddings", "labels", "nodes", "node_labels")}
    return SyntheticBatch(**tensors, negatives=negatives)
