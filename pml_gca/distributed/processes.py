"""The processes that share a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..utils.validation import check_flag

if TYPE_CHECKING:  # a torch without torch.distributed has no groups
    from torch.distributed import ProcessGroup

LOST = "process_group"  # in place of a group that a pickle could not hold


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch, seen from one of them.

    Attributes:
        group: torch's process group; None for all processes.
        rank: of this process in the group.
        size: W, the number of processes, at least 2.
    """

    group: "ProcessGroup | None"
    rank: int
    size: int

    def name(self, rank: int) -> str:
        """Return the name of a process for messages: its rank among all processes."""
        return f"rank {rank if self.group is None else dist.get_global_rank(self.group, rank)}"


def find_processes(group: "ProcessGroup | None" = None) -> Processes | None:
    """Return the processes of a group, or of all; None without torch.distributed, or if there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    size = dist.get_world_size(group)
    return Processes(group, dist.get_rank(group), size) if size > 1 else None


class Gathering:
    """Whether, and over which processes, a module gathers its batches. It belongs to one module.

    A copy in the same process gathers over the same group. A pickle cannot hold a group: what is loaded from it gathers
    over all processes; if it had a group of its own, it must be given one again.

    Args:
        enabled: whether it gathers at all.
        group: torch's process group; None for all processes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a group is given, but nothing is gathered.
    """

    def __init__(self, enabled: bool, group: "ProcessGroup | None" = None) -> None:
        check_flag("gather_across_devices", enabled)
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}. Only the "
                "members of a group can gather over it"
            )
        if group is not None and not enabled:
            raise ValueError("process_group is used with gather_across_devices=True only: set both, or neither")
        self.enabled = bool(enabled)
        self.group: ProcessGroup | str | None = group
        self.is_equal = False  # whether the processes are known to hold the same parameters

    def processes(self) -> Processes | None:
        """Return the processes to gather over; None if the module works alone.

        Raises:
            RuntimeError: the module comes from a pickle, and had a group of its own.
        """
        if isinstance(self.group, str):
            raise RuntimeError(
                "process_group cannot be saved in a pickle: build the loss again, with process_group=..., and call its "
                "load_state_dict"
            )
        return find_processes(self.group) if self.enabled else None

    def after_loading(self, *modules: nn.Module) -> None:
        """Let the next call take over the first process's values after one of these modules has loaded a state."""
        for module in modules:
            module.register_load_state_dict_post_hook(self._loaded)

    def _loaded(self, module: nn.Module, keys: object) -> None:
        self.is_equal = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gathering":
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "group": None if self.group is None else LOST, "is_equal": False}


@torch.no_grad()
def copy_from_first(module: nn.Module, device: torch.device, processes: Processes) -> None:
    """Give all processes the parameters and buffers of the first, as `DistributedDataParallel` does at its start.

    They stay where they are, and are sent from `device`: evaluation moves no module.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        kinds.setdefault(tensor.dtype, []).append(tensor)
    source = 0 if processes.group is None else dist.get_global_rank(processes.group, 0)
    for tensors in kinds.values():
        values = torch.cat([tensor.detach().flatten().to(device) for tensor in tensors])
        dist.broadcast(values.view(torch.uint8), source, group=processes.group)
        parts = values.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            found = part.view_as(tensor).to(tensor.device)
            if not torch.equal(tensor, found):  # a write would disturb a graph that is being built
                tensor.copy_(found)
