"""Train a small network in several processes: `torchrun --nproc-per-node 2 examples/train_distributed.py`.

Each process takes its part of every batch, and all compute the loss of the whole batch. Without torchrun it is one
process. Batches and evaluation do not depend on the number of processes.
"""

import argparse
import os
import sys

from parsers import SAMPLES_PER_CLASS, distributed_arguments

if __name__ == "__main__":
    distributed_arguments()  # shows --help and typing errors before the imports below, which take seconds

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler, Subset
from tqdm import tqdm
from train_with_classifier import METRICS, build_loss, build_models, load_data

from pml_gca.distributed import gather_batch
from pml_gca.paper import MPerClassCoveringSampler
from pml_gca.utils import RecallCalculator, TrainingRun, runs
from pml_gca.utils.command_line import told_when_stopped
from pml_gca.utils.validation import count_of

NAME = "distributed"
OTHER_PROCESSES = (
    "{name}: processes: {now}, were {before}. The batches are the same; distortions, dropout and merging are not"
)


class SharedBatches(Sampler[list[int]]):
    """Batches of M images per class, of which each process takes its part, after torch's `DistributedSampler`.

    All processes draw the same batches from the seed and the epoch. They do not depend on the number of processes.

    Args:
        labels: of the data set.
        m: images of each class in a batch.
        batch_size: images in a batch, in all processes together.
        num_batches: of an epoch.
        seed: of the draws.
        rank, size: which process of how many this is.

    Raises:
        ValueError: a batch has fewer images than there are processes.
    """

    def __init__(
        self, labels: Sequence[int] | Tensor, m: int, batch_size: int, num_batches: int, seed: int, rank: int, size: int
    ) -> None:
        if size > batch_size:
            raise ValueError(
                f"{size} processes cannot share a batch of {batch_size} images: start at most {batch_size}"
            )
        self.labels, self.m, self.batch_size, self.num_batches = labels, m, batch_size, num_batches
        self.seed, self.rank, self.size, self.epoch = seed, rank, size, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        seed, length = runs.seed_of_epoch(self.seed, self.epoch), self.batch_size * self.num_batches
        whole = MPerClassCoveringSampler(self.labels, self.m, self.batch_size, length, seed=seed)
        for batch in torch.tensor(list(whole)).split(self.batch_size):
            yield batch.tensor_split(self.size)[self.rank].tolist()


def join_processes() -> tuple[int, int, torch.device]:
    """Join the processes that torchrun has started. Return the rank, their number, and the device of this one."""
    has_gpus = torch.cuda.is_available()
    if "RANK" not in os.environ:
        return 0, 1, torch.device("cuda" if has_gpus else "cpu")
    device = torch.device("cuda", dist.get_node_local_rank()) if has_gpus else torch.device("cpu")
    if has_gpus:
        if device.index >= (count := torch.cuda.device_count()):
            sys.exit(f"each process needs a GPU of its own: give torchrun --nproc-per-node {count}")
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group()  # NCCL for GPUs, gloo for CPUs
    return dist.get_rank(), dist.get_world_size(), device


def in_first(function: Callable[[], Any]) -> Any:
    """Call a function in the first process. Return in all what it returns there, or raise its error in all."""
    found: list[Any] = [None, None]  # result and error
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found[0] = function()
        except (OSError, ValueError) as error:
            found[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def parallel(module: nn.Module) -> nn.Module:
    """Return a module whose gradients are averaged over processes, if there are several and it has gradients."""
    has_gradients = any(p.requires_grad for p in module.parameters())
    return DistributedDataParallel(module) if dist.is_initialized() and has_gradients else module


def resume(run: TrainingRun, parts: dict[str, Any], size: int) -> dict[str, Any]:
    """Load the checkpoint in all processes, and say if they are another number than before. Return the history."""
    content = run.restore(parts)
    epochs = [run.epoch] * size
    if size > 1:
        dist.all_gather_object(epochs, run.epoch)
    if len(set(epochs)) > 1:
        raise ValueError(
            f"{run.checkpoint_file} is not the same file for all processes: choose a shared folder as --out"
        )
    before = content.get("processes", size)
    if before != size:
        print(OTHER_PROCESSES.format(name=NAME, now=size, before=before))
    return content.get("history", {"seconds_per_iteration": [], **{metric: [] for metric in METRICS}})


def evaluate(network: nn.Sequential, dataset: Any, device: torch.device, rank: int, size: int) -> dict[str, float]:
    """Return metrics of retrieval: each process embeds a part of the images, and the first one compares them."""
    mine = torch.arange(len(dataset)).tensor_split(size)[rank]
    loader = DataLoader(Subset(dataset, mine.tolist()), batch_size=256)
    embedder = network[-1]
    assert isinstance(embedder, nn.Linear)
    parts = [torch.zeros(0, embedder.out_features, device=device)]  # a process may have no image
    network.eval()
    with torch.no_grad():
        parts += [F.normalize(network(images.to(device))) for images, _ in loader]
    network.train()
    embeddings, labels = gather_batch(torch.cat(parts), dataset.labels[mine].to(device))
    calculator = RecallCalculator(recall_at=(1, 2, 4, 8), include=tuple(METRICS), k="max_bin_count")
    return in_first(lambda: calculator.get_accuracy(embeddings.cpu(), labels.cpu()))


def train_epoch(
    network: nn.Module, loss: nn.Module, optimizers: Sequence[Any], loader: Any, device: torch.device, quiet: bool
) -> float:
    """Train for one epoch. Return the median of its seconds per iteration."""
    times = [time.perf_counter()]
    bar = tqdm(loader, disable=quiet, leave=False)
    for images, labels in bar:
        for optimizer in optimizers:
            optimizer.zero_grad()
        value = loss(network(images.to(device)), labels.to(device))
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        bar.set_postfix(loss=f"{value.item():.3f}")  # of the whole batch, the same in all processes
        times.append(time.perf_counter())
    return statistics.median(end - start for start, end in pairwise(times))


def peak_memory(device: torch.device) -> str:
    """Return the most memory that this process has held so far."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f} GB"


def train(args: argparse.Namespace, data: dict[str, Any], rank: int, size: int, device: torch.device) -> dict[str, Any]:
    """Train, or resume. Return the learning curve, and the metrics on unseen classes."""
    run = TrainingRun(args.out / NAME, NAME, seed=args.seed)
    if (finished := run.read_result(args.epochs)) is not None:
        return finished
    training_set, num_classes = data["train"], data["train"].num_classes
    batch_size = min(args.classes_per_batch, num_classes) * SAMPLES_PER_CLASS
    batches = SharedBatches(training_set.labels, SAMPLES_PER_CLASS, batch_size, args.iterations, args.seed, rank, size)
    loader = DataLoader(training_set, batch_sampler=batches)

    runs.set_seed(args.seed)  # all processes begin with the same network
    # GroupNorm looks at one image alone, so that it does not matter which process has which images.
    norm = partial(nn.GroupNorm, 8)
    models = build_models(training_set[0][0].shape[0], num_classes, args.embedding_size, norm)
    network = nn.Sequential(models["trunk"], models["embedder"]).to(device)
    shared = {"gather_across_devices": True, "shard_edges": args.shard_edges}
    loss, groups = build_loss(args.generator, args, num_classes, **shared)
    loss.to(device)
    adamw = partial(torch.optim.AdamW, lr=args.lr, weight_decay=1e-4)
    optimizers = {"network_optimizer": adamw(network.parameters())}
    if any(group["params"] for group in groups):
        optimizers["loss_optimizer"] = adamw(groups)
    parts = {"network": network, "loss": loss, **optimizers}
    history = resume(run, parts, size)
    in_parallel = parallel(network), parallel(loss)

    for epoch in run.epochs(args.epochs):
        batches.set_epoch(epoch)
        runs.set_seed(runs.seed_of_epoch(runs.seed_of_epoch(args.seed, epoch), rank))  # distortions differ
        seconds = train_epoch(*in_parallel, tuple(optimizers.values()), loader, device, rank > 0)
        memory = peak_memory(device)
        found = evaluate(network, data["val"], device, rank, size)
        for key, value in {**found, "seconds_per_iteration": seconds}.items():
            history[key].append(value)
        processes = count_of(size, "process", "processes")
        cost = f"{seconds:.3f} s per iteration of {batch_size} images, {processes}, {memory} in the first"
        print(f"{NAME}: validation Recall@1 {100 * found['recall_at_1']:.1f}%, {cost}")
        in_first(lambda: run.save(parts, history=history, processes=size))
    result = {"metrics": evaluate(network, data["test"], device, rank, size), "history": history}
    return in_first(lambda: run.finish(result))


def main(argv: list[str] | None = None) -> None:
    args, (rank, size, device) = distributed_arguments(argv), join_processes()
    data: dict[str, Any] = {}
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "resume", "overwrite")}

    def claim() -> None:
        runs.claim_folder(args.out, settings, resume=args.resume, overwrite=args.overwrite, runs=(NAME,))
        (args.out / NAME).mkdir(exist_ok=True)

    with redirect_stdout(None) if rank else nullcontext():
        try:
            in_first(lambda: data.update(load_data(args)))  # once, as characters are drawn and kept at first
            with redirect_stderr(None):
                data = data or load_data(args)
            in_first(claim)
            result = train(args, data, rank, size, device)
        except (OSError, ValueError) as error:
            sys.exit(str(error))
        found = ", ".join(f"{title} {100 * result['metrics'][metric]:.1f}" for metric, title in METRICS.items())
        print(f"\nUnseen classes: {data['test'].num_classes} with {len(data['test'])} images, in percent: {found}")


if __name__ == "__main__":
    with told_when_stopped("finished epochs are kept: the same command with --resume goes on"):
        main()
    if dist.is_initialized():
        dist.destroy_process_group()
