"""Check that a user-defined loss uses the synthetic negatives, at its first batch that has some."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pytorch_metric_learning.losses import MultipleLosses
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .families import CALL_FORMS, SyntheticBatch, synthetic_loss

TESTED = ("pytorch_metric_learning.", "pml_gca.")  # packages whose losses are known to use the negatives


def check_uses_negatives(loss: nn.Module, batch: SyntheticBatch) -> None:
    """Raise if a user-defined loss, or one inside a `MultipleLosses`, ignores the synthetic negatives.

    A copy of the loss is called, with the same random numbers. If the batch is on a GPU, the copy runs on the CPU,
    because a GPU reports an index out of range too late. Other errors of the copy are ignored: the loss itself will
    raise them.

    Raises:
        ValueError: the value does not depend on the synthetic rows, or the loss looks up rows that it was not given.
    """
    for member in custom_losses(loss):
        try:
            used = uses_negatives(copy.deepcopy(member), batch)
        except IndexError as error:
            raise ValueError(
                f"loss {type(member).__name__} looks pairs up in a batch that is too small for them, as if it took "
                f"no ref_emb ({error}). {CALL_FORMS}"
            ) from error
        except Exception:  # the loss itself will raise it, or works although its copy does not
            continue
        if not used:
            raise ValueError(
                f"loss {type(member).__name__} cannot learn from synthetic negatives as it is registered: its value "
                f"does not depend on the synthetic rows. {CALL_FORMS}"
            )


def custom_losses(loss: nn.Module) -> Iterator[nn.Module]:
    """Yield the losses whose exact type is defined outside PML and this package."""
    if isinstance(loss, MultipleLosses):
        for member in loss.losses.values() if loss.is_dict else loss.losses:
            yield from custom_losses(member)
    elif not type(loss).__module__.startswith(TESTED):
        yield loss


def uses_negatives(loss: nn.Module, batch: SyntheticBatch) -> bool:
    """Return whether the loss computes anything from the synthetic rows.

    The value alone would not tell: it does not depend on negatives that are all beyond a margin.
    """
    if batch.embeddings.is_cuda:
        loss, batch = loss.cpu(), to_cpu(batch)
    rows = batch.negatives.embeddings.detach().requires_grad_()  # nothing else has a gradient
    real = {name: getattr(batch, name).detach() for name in ("embeddings", "nodes")}
    batch = replace(batch, **real, negatives=replace(batch.negatives, embeddings=rows))
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), GradientUse() as use:
        value = synthetic_loss(loss.requires_grad_(False), batch)
    return use.found or value.requires_grad


class GradientUse(TorchFunctionMode):
    """Note whether a tensor with a gradient is used in a computation.

    Concatenating such a tensor with others, or reading its shape, does not count.
    """

    IGNORED = frozenset(
        {"__len__", "cat", "device", "dim", "dtype", "grad_fn", "is_complex", "is_cuda", "is_floating_point", "is_leaf"}
        | {"is_meta", "is_mps", "is_sparse", "layout", "ndim", "numel", "requires_grad", "shape", "size", "to", "type"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note whether an argument has a gradient, and call `func`."""
        name = getattr(func, "__name__", None)
        if (func.__self__.__name__ if name == "__get__" else name) not in self.IGNORED:
            self.found = self.found or has_gradient((args, kwargs))
        return func(*args, **(kwargs or {}))


def has_gradient(x: object) -> bool:
    """Return whether `x`, or a tensor in this collection, requires a gradient."""
    if isinstance(x, (list, tuple)):
        return any(map(has_gradient, x))
    if isinstance(x, dict):
        return any(map(has_gradient, x.values()))
    return isinstance(x, Tensor) and x.requires_grad


def to_cpu(batch: SyntheticBatch) -> SyntheticBatch:
    """Return a detached copy on the CPU."""
    negatives = replace(
        batch.negatives,
        **{name: getattr(batch.negatives, name).detach().cpu() for name in ("embeddings", "labels", "anchors")},
        objectives={},
    )
    tensors = {name: getattr(batch, name).detach().cpu() for name in ("embeddings", "labels", "nodes", "node_labels")}
    return SyntheticBatch(**tensors, negatives=negatives)
