"""The global batch: the rows of all processes in the order of ranks, and random draws that all processes share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..utils.batch_checks import as_long
from ..utils.host import to_device
from .arguments import MEASURED, CallArguments, Limits, check_gatherable, facts_of, fingerprint, measure
from .exchange import exchange, gather_padded
from .processes import Gathering, Processes, copy_from_first

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OTHER_INDICES = (
    "indices_tuple must be that of the global batch, the same in all processes; got different ones. Mine the global "
    "batch: miner(*pml_gca.distributed.gather_batch(embeddings, labels)), or "
    "GlobalCorrelationMiner(generator, gather_across_devices=True)(embeddings, labels). PML's DistributedMinerWrapper "
    "orders the rows anew in each process"
)


class GatherRows(torch.autograd.Function):
    """Rows of all processes, (N, D). Own rows get W times their gradient: the mean over processes divides by W."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], processes: Processes) -> Tensor:
        ctx.sizes, ctx.processes = sizes, processes
        return gather_padded(rows, sizes, processes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.split(ctx.sizes)[ctx.processes.rank] * ctx.processes.size, None, None


@contextmanager
def shared_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `seed` on the host and on `device`; afterwards their generators are as before."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    accelerator = torch.get_device_module(device)
    with torch.random.fork_rng(devices=[device], device_type=device.type), accelerator.device(device):
        torch.default_generator.manual_seed(seed)
        accelerator.manual_seed(seed)
        yield


def device_of(given: CallArguments, module: nn.Module | None, processes: Processes) -> torch.device:
    """Return the device on which processes exchange: that of the embeddings, if it is one of the process group's."""
    if isinstance(given.embeddings, Tensor):
        device = given.embeddings.device
    else:  # an error, but the others must hear of it
        buffers = module.buffers() if module is not None else iter(())
        device = next((x.device for x in buffers), torch.device("cpu"))
    backends = dist.get_backend_config(processes.group)  # such as "cpu:gloo,cuda:nccl"
    kinds = [backend.split(":")[0] for backend in backends.split(",")]
    if device.type in kinds:
        return device
    return torch.device(kinds[0])


@contextmanager
def gathered(
    gathering: Gathering,
    module: nn.Module | None,
    given: CallArguments,
    *,
    mode: str = "training",
    check: Callable[[], None] = lambda: None,
    limits: Limits | None = None,
) -> Iterator[CallArguments]:
    """Give a context the rows of all processes instead of the own ones; random draws in it are the same in all.

    Rows are in the order of ranks; a process may have none. Own rows get W times the gradient of the value that every
    process computes. Three collectives: numbers, rows and labels; two more with references. The host waits for the
    device once, for the numbers. One number is drawn from the host's random generator; apart from that, the generators
    of host and device are afterwards as they were before. The first time, and after an error, parameters and buffers of
    `module` become those of the first process.

    Without other processes the context gets what was given.

    Args:
        gathering: of `module`.
        module: whose call it is.
        given: the arguments of this process.
        mode: what is computed; it must be the same in all processes.
        check: raises what is wrong with the arguments of this process, apart from their values.
        limits: what values are allowed; any if None.

    Raises:
        TypeError, ValueError, RuntimeError: in every process, if the arguments of one are wrong, or do not fit those of
            the others; ranks are named. The random generators are as they were.
    """
    processes = gathering.processes()
    if processes is None:
        check()
        yield given
        return
    state = torch.get_rng_state()
    try:
        seed, whole = gather_arguments(gathering, processes, module, given, mode, check, limits)
        with shared_draws(seed, whole.embeddings.device):
            yield whole
    except BaseException:
        torch.set_rng_state(state)
        gathering.is_equal = False  # others may have gone on, and have observed the batch
        raise


def gather_arguments(
    gathering: Gathering,
    processes: Processes,
    module: nn.Module | None,
    given: CallArguments,
    mode: str,
    check: Callable[[], None],
    limits: Limits | None,
) -> tuple[int, CallArguments]:
    """Return a seed that all processes share, and the arguments of all; parameters as for `gathered`."""
    error: Exception | None = None
    device = device_of(given, module, processes)
    seed = int(torch.empty((), dtype=torch.long, device="cpu").random_())
    rows, references = given.embeddings, None if given.repeats_batch else given.ref_emb
    numbers, facts = [seed, gathering.is_equal or module is None, 0, 0, False, False], {}
    measured = torch.zeros(2 * MEASURED + 1, dtype=torch.long, device=device)
    try:
        check()
        check_gatherable(given, device)
        facts = facts_of(given, mode, module)
        numbers[2:] = [len(rows), len(rows[:0] if references is None else references), rows.requires_grad,
                       references is not None and references.requires_grad]  # fmt: skip
        if limits is not None:
            measured[:MEASURED] = measure(rows, given.labels, limits.largest(rows.dtype))
            if references is not None:
                found = measure(references, given.ref_labels, limits.largest(references.dtype))
                measured[MEASURED:-1] = to_device(found, device)
        measured[-1:] = fingerprint(given.indices_tuple, device)
    except Exception as own:  # every process raises it
        error = own
    table = exchange([int(number) for number in numbers], measured, facts, error, processes)
    if limits is not None:
        check_values(table, given, limits, processes)
    if len({row[-1] for row in table}) > 1:
        raise ValueError(OTHER_INDICES)
    if module is not None and not all(row[1] for row in table):
        copy_from_first(module, device, processes)
    gathering.is_equal = True
    sizes, ref_sizes, learns, ref_learns = ([row[i] for row in table] for i in (2, 3, 4, 5))
    all_rows, all_labels = gather_rows(rows, given.labels, sizes, any(learns), processes)
    ref_rows, ref_labels = None, None
    if given.repeats_batch:
        ref_rows, ref_labels = all_rows, None if given.ref_labels is None else all_labels
    elif references is not None:
        ref_rows, ref_labels = gather_rows(references, given.ref_labels, ref_sizes, any(ref_learns), processes)
    return table[0][0], CallArguments(all_rows, all_labels, given.indices_tuple, ref_rows, ref_labels)


def check_values(table: list[list[int]], given: CallArguments, limits: Limits, processes: Processes) -> None:
    """Raise ValueError for what the processes have measured."""
    found = []
    for rank, row in enumerate(table):
        try:
            for count, start, rows, names in (
                (row[2], 6, given.embeddings, ("embeddings", "labels")),
                (row[3], 6 + MEASURED, given.ref_emb, ("ref_emb", "ref_labels")),
            ):
                if count:
                    assert rows is not None
                    limits.check(row[start : start + MEASURED], count * rows.shape[1], rows.dtype, names)
        except ValueError as error:
            found.append(f"{processes.name(rank)}: {error}")
    if found:
        raise ValueError("; ".join(found))


def gather_rows(
    rows: Tensor, labels: Tensor | None, sizes: Sequence[int], learns: bool, processes: Processes
) -> tuple[Tensor, Tensor | None]:
    """Return rows and labels of all processes; the rows have a gradient in all processes or in none."""
    everywhere: Tensor = GatherRows.apply(rows, sizes, processes)
    if learns and torch.is_grad_enabled() and not everywhere.requires_grad:
        everywhere.requires_grad_()
    if labels is None:
        return everywhere, None
    return everywhere, gather_padded(to_device(as_long(labels), rows.device), sizes, processes)


def gather_batch(
    embeddings: Tensor, labels: Tensor, process_group: "ProcessGroup | None" = None
) -> tuple[Tensor, Tensor]:
    """Return embeddings and labels of all processes, without gradient, for a miner or another look at the batch.

    Every process must call it. Rows are in the order of ranks, as in a `HardNegativeGenerationLoss` with
    `gather_across_devices=True`. With one process they are its own.

    Args:
        embeddings: (B, D), floating; any number of rows.
        labels: (B,), integers.
        process_group: of `torch.distributed`; None for all processes.

    Raises:
        TypeError, ValueError: in every process, if the arguments of one are not as above, or differ in D or dtype.
    """
    with gathered(Gathering(True, process_group), None, CallArguments(embeddings.detach(), labels)) as whole:
        assert whole.labels is not None
        return whole.embeddings.detach(), whole.labels
