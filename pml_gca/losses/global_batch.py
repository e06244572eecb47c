"""The batch of a loss with a generator: its own rows, or those of all processes; and PML's wrapper for processes."""

import warnings
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch.distributed as dist
from pytorch_metric_learning.losses import MultipleLosses
from torch import nn

from ..distributed.arguments import CallArguments, Limits
from ..distributed.gathering import gathered
from ..distributed.processes import Gathering
from ..generators.base_generator import BaseGenerator
from ..generators.hardest_negative_generator import HardestNegativeGenerator
from ..generators.propagating import Propagating
from ..utils.callers import called_from
from ..utils.validation import check_flag
from .families import (
    angular_synthetic_loss,
    joint_tuple_synthetic_loss,
    labelled_synthetic_loss,
    nca_synthetic_loss,
    synthetic_loss,
    triplet_synthetic_loss,
    tuple_synthetic_loss,
)
from .references import check_arguments

WRAPPER = "pytorch_metric_learning.utils.distributed"
REFUSED_INSIDE = (
    "HardNegativeGenerationLoss(..., gather_across_devices=True) gathers the batch of all processes itself, and PML's "
    "DistributedLossWrapper would do so once more. Take the wrapper away: call loss(embeddings, labels) with the rows "
    "of each process; DistributedDataParallel(loss) may stay"
)
ANY_ORDER = (
    angular_synthetic_loss,
    joint_tuple_synthetic_loss,
    labelled_synthetic_loss,
    nca_synthetic_loss,
    triplet_synthetic_loss,
    tuple_synthetic_loss,
)
WRONG_INSIDE = (
    "DistributedLossWrapper around HardNegativeGenerationLoss is not exact: {reasons}. Take the wrapper away and build "
    "the loss with gather_across_devices=True: every process then computes the loss of the whole batch, with exact "
    "gradients."
)


def whole_batch(
    loss: Any, generator: BaseGenerator, gathering: Gathering, given: CallArguments, phase: str | None
) -> AbstractContextManager[CallArguments]:
    """Return the context for the computation of a loss, which gets the arguments of all processes; see `gathered`.

    Args:
        loss: the whole loss, with its generator.
        generator: the same generator.
        gathering: of the loss.
        given: the arguments in this process.
        phase: of training; None in evaluation or without gradients, where any values are taken.

    Raises:
        TypeError, ValueError: on entering it: an argument is not as the loss takes it, here or in another process.
    """
    if phase is None:
        return gathered(gathering, loss, given, mode="the wrapped loss alone")
    check = partial(check_arguments, loss.loss, generator, *given, memory=loss.memory)
    limits = Limits(generator.num_classes, generator.largest_value)
    mode = f"training, phase {phase}" + ", with shared edges" * loss.shard_edges
    if loss.memory is not None:
        mode += f", with a memory of {loss.memory.size} from iteration {loss.memory.start} on"
    return gathered(gathering, loss, given, mode=mode, check=check, limits=limits)


def check_shards(shard_edges: bool, gathering: Gathering, generator: BaseGenerator) -> None:
    """Raise TypeError or ValueError unless processes can share the edges of the generator's graph, if they shall."""
    check_flag("shard_edges", shard_edges)
    if shard_edges and not gathering.enabled:
        raise ValueError("shard_edges=True shares the graph of a gathered batch: set gather_across_devices=True, too")
    if not shard_edges or (isinstance(generator, Propagating) and generator.propagation.has_edges):
        return
    of_layers = " without layers (num_layers=0)" * isinstance(generator, Propagating)
    raise ValueError(
        f"shard_edges=True shares the work of the generator's graph, and {type(generator).__name__}{of_layers} has "
        "none: set shard_edges=False"
    )


class WrapperWatch:
    """Refuse PML's `DistributedLossWrapper` around a loss that gathers; warn once where it is wrong around another."""

    def __init__(self) -> None:
        self._warned = False

    def begin_batch(self, loss: Any, gathers: bool, phase: str | None, given: CallArguments) -> None:
        """Look for the wrapper among the callers.

        Raises:
            ValueError: it is there, and the loss gathers.
        """
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (gathers or (several and not self._warned)) or not called_from(WRAPPER):
            return
        if gathers:
            raise ValueError(REFUSED_INSIDE)
        reasons = faults_inside_wrapper(loss, phase, given, dist.get_world_size())
        if reasons:
            self._warned = True
            warnings.warn(WRONG_INSIDE.format(reasons="; ".join(reasons)), UserWarning, stacklevel=5)


def faults_inside_wrapper(loss: Any, phase: str | None, given: CallArguments, size: int) -> list[str]:
    """Return what is wrong with a loss inside PML's `DistributedLossWrapper` in `size` processes.

    Each process has its own order of the rows, and its own random draws. Gradients are right where neither matters, and
    the loss has no parameters, whose gradients would be multiplied.
    """
    if phase is None:
        return [f"its value is {size} times that of the loss"]
    reasons = []
    if any(p.requires_grad for p in loss.parameters()):
        reasons.append(f"gradients of its own parameters are {size} times too large")
    if given.ref_emb is not None and not given.repeats_batch:
        reasons.append("references, such as those of efficient=True, have no gradient")
    if not (type(loss.generator) is HardestNegativeGenerator and takes_any_order(loss.loss)):
        reasons.append("each process has its own order of the rows and its own random draws")
    return reasons


def takes_any_order(loss: nn.Module) -> bool:
    """Return whether a loss is known not to depend on the order of its rows, nor on random draws."""
    if isinstance(loss, MultipleLosses):
        members = loss.losses.values() if loss.is_dict else loss.losses
        return all(takes_any_order(member) for member in members)
    return synthetic_loss.dispatch(type(loss)) in ANY_ORDER and getattr(loss, "triplets_per_anchor", "all") == "all"
