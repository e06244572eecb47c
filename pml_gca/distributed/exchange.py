"""What processes tell each other before they share a batch: numbers, and what is wrong with their input."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..utils.host import to_device
from .processes import Processes

ERRORS: tuple[type[Exception], ...] = (TypeError, ValueError, RuntimeError)  # raised again as what they are


def gather_tensor(x: Tensor, processes: Processes) -> Tensor:
    """Return the tensors of all processes, (W, ...), in the order of ranks; they have one shape and dtype."""
    sent = x.detach().contiguous().flatten().view(torch.uint8)  # backends differ in the dtypes that they take
    received = sent.new_empty(processes.size, len(sent))
    dist.all_gather(list(received), sent, group=processes.group)
    return received.view(x.dtype).view(processes.size, *x.shape)


def gather_padded(rows: Tensor, sizes: Sequence[int], processes: Processes) -> Tensor:
    """Return the (R, ...) rows of all processes in the order of ranks, for `sizes`, the R of each."""
    most = max(sizes)
    if most == 0:
        return rows.detach().clone()
    if min(sizes) == most:
        return gather_tensor(rows, processes).flatten(0, 1)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = gather_tensor(padded, processes)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_texts(text: str, device: torch.device, processes: Processes) -> list[str]:
    """Return a text of each process."""
    letters = to_device(torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu"), device)
    size = torch.tensor(len(letters), device=device)
    sizes = gather_tensor(size, processes).tolist()
    parts = gather_padded(letters, sizes, processes).cpu().split(sizes)
    return [bytes(part.tolist()).decode() for part in parts]


def take_from_first(tensors: Sequence[Tensor], processes: Processes) -> tuple[Tensor, ...]:
    """Return the 1-D tensors of the first process; the others may hold other values, and other sizes."""
    sizes = torch.tensor([len(x) for x in tensors], device="cpu")
    found: list[int] = gather_tensor(to_device(sizes, tensors[0].device), processes)[0].tolist()
    values = torch.cat(list(tensors)) if processes.rank == 0 else tensors[0].new_empty(sum(found))
    source = 0 if processes.group is None else dist.get_global_rank(processes.group, 0)
    dist.broadcast(values, source, group=processes.group)
    return values.split(found)


def exchange(
    numbers: Sequence[int],
    measured: Tensor,
    facts: Mapping[str, str],
    error: Exception | None,
    processes: Processes,
) -> list[list[int]]:
    """Tell all processes some numbers, in one collective, and find out together whether to go on.

    The host waits for the device once, for the numbers.

    Args:
        numbers: known to the host.
        measured: (M,) long, further numbers, on the device.
        facts: what must be the same in all processes, and what it is here.
        error: what is wrong with this process's input.

    Returns:
        The numbers of each process, followed by its measured ones.

    Raises:
        TypeError, ValueError, RuntimeError: in every process, if the input of one is wrong or facts differ. The message
            names ranks and reasons.
    """
    device = measured.device
    digest = int.from_bytes(hashlib.blake2b(json.dumps(facts).encode(), digest_size=7).digest(), "big")
    head = torch.tensor([error is not None, digest, *numbers], dtype=torch.long, device="cpu")
    table = gather_tensor(torch.cat([to_device(head, device), measured]), processes).tolist()
    if any(row[0] for row in table):
        raise_everywhere(error, device, processes)
    if len({row[1] for row in table}) > 1:
        raise_difference(facts, device, processes)
    return [row[2:] for row in table]


def raise_everywhere(error: Exception | None, device: torch.device, processes: Processes) -> None:
    """Raise the errors of all processes in each of them; at least one has one."""
    kind = next((i for i, known in enumerate(ERRORS) if isinstance(error, known)), len(ERRORS) - 1)
    texts = gather_texts("" if error is None else f"{kind}{error}", device, processes)
    reasons = [f"{processes.name(rank)}: {text[1:]}" for rank, text in enumerate(texts) if text]
    first = next(text for text in texts if text)
    raise ERRORS[int(first[0])]("; ".join(reasons)) from error


def raise_difference(facts: Mapping[str, str], device: torch.device, processes: Processes) -> None:
    """Raise ValueError for the first fact that is not the same in all processes."""
    found = [json.loads(text) for text in gather_texts(json.dumps(facts), device, processes)]
    name = next(name for name in found[0] if len({of_rank.get(name) for of_rank in found}) > 1)
    first: dict[str, int] = {}
    for rank, of_rank in enumerate(found):
        first.setdefault(of_rank.get(name), rank)
    values = ", ".join(f"{value} on {processes.name(rank)}" for value, rank in first.items())
    raise ValueError(f"{name} must be the same in all processes, got {values}")
