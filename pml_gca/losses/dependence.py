"""Whether a loss of one's own feels the synthetic negatives, asked before the first batch that has some."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from pytorch_metric_learning.losses import MultipleLosses
from torch import Tensor, nn

from .families import FORMS, SyntheticBatch, synthetic_loss

TRUSTED = ("pytorch_metric_learning.", "pml_gca.")  # their losses are tested


def check_dependence(loss: nn.Module, batch: SyntheticBatch) -> None:
    """Raise if a loss of one's own, or one in a ``MultipleLosses``, makes nothing of synthetic negatives.

    Copies of the loss are called, with the same random numbers; on the CPU where the batch is on a GPU, which would
    report a wrong index too late. A copy that fails otherwise says nothing: the loss itself will.

    Raises:
        ValueError: its value does not depend on the synthetic rows, or it looks for rows that it was not given.
    """
    for member in own_losses(loss):
        try:
            feels = depends_on_negatives(member, batch)
        except IndexError as error:
            raise ValueError(
                f"loss {type(member).__name__} looks pairs up in a batch that is too small for them, as if it took "
                f"no ref_emb ({error}). {FORMS}"
            ) from error
        except Exception:
            continue
        if not feels:
            raise ValueError(
                f"loss {type(member).__name__} cannot learn from synthetic negatives as it is registered: its value "
                f"does not depend on the synthetic rows, wherever they lie. {FORMS}"
            )


def own_losses(loss: nn.Module) -> Iterator[nn.Module]:
    """The losses that are no exact type of PML or of this package."""
    if isinstance(loss, MultipleLosses):
        for member in loss.losses.values() if loss.is_dict else loss.losses:
            yield from own_losses(member)
    elif not type(loss).__module__.startswith(TRUSTED):
        yield loss


def depends_on_negatives(loss: nn.Module, batch: SyntheticBatch) -> bool:
    """Whether rows are connected with the value, or change it, for some place of them.

    A margin that is kept has no gradient, so that rows from their own place to the anchor are tried.
    """
    device = batch.embeddings.device
    if device.type == "cuda":
        loss, batch = copy.deepcopy(loss).cpu(), to_cpu(batch)
    first: Tensor | None = None
    for rows in places(batch):
        leaf = rows.detach().requires_grad_()
        moved = replace(batch, negatives=replace(batch.negatives, embeddings=leaf))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            value = synthetic_loss(copy.deepcopy(loss), moved)
        if value.requires_grad and torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] is not None:
            return True
        if first is not None and not torch.equal(value, first):
            return True
        first = value.detach()
    return False


def places(batch: SyntheticBatch) -> Iterator[Tensor]:
    """(S, D) synthetic rows where they are, and ever nearer to their anchors; beyond them last."""
    rows, anchors = batch.negatives.embeddings, batch.embeddings[batch.negatives.anchors]
    for share in (0.0, 0.5, 0.9, 1.0, 0.99, 2.0):
        yield torch.lerp(rows.detach(), anchors.detach().to(rows.dtype), share)


def to_cpu(batch: SyntheticBatch) -> SyntheticBatch:
    """A detached copy on the CPU."""
    negatives = replace(
        batch.negatives,
        **{name: getattr(batch.negatives, name).detach().cpu() for name in ("embeddings", "labels", "anchors")},
        objectives={},
    )
    tensors = {name: getattr(batch, name).detach().cpu() for name in ("embeddings", "labels", "nodes", "node_labels")}
    return SyntheticBatch(**tensors, negatives=negatives)
