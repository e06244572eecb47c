"""Retrieval metrics as the paper reports them, computed by PML's tester."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..datasets import Benchmark, check_queries
from ..utils import RecallCalculator
from ..utils.validation import check_device, check_positive_int


def metric_names(benchmark: Benchmark) -> list[str]:
    """Return the metrics' names: `recall_at_K` for each K of the data set, then MAP@R and R-precision."""
    return [*(f"recall_at_{k}" for k in benchmark.recall_at), "mean_average_precision_at_r", "r_precision"]


def same_label(a: Tensor, b: Tensor) -> Tensor:
    """Return where labels agree. With such a function PML counts class by class, not in a classes x images table."""
    return a == b


def build_tester(
    benchmark: Benchmark, *, batch_size: int, workers: int, device: torch.device, **kwargs: Any
) -> GlobalEmbeddingSpaceTester:
    """Return PML's tester, which evaluates L2-normalised embeddings.

    It holds N · K neighbours of N images, never N² distances. K is the largest number in `recall_at`, or the size
    of the largest class if that is larger.
    """
    # PML's own metrics need no more neighbours than the largest class has members.
    calculator = RecallCalculator(
        recall_at=tuple(benchmark.recall_at),
        include=metric_names(benchmark),
        k="max_bin_count",
        label_comparison_fn=same_label,
        device=device,
    )
    return GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator,
        batch_size=batch_size,
        dataloader_num_workers=workers,
        data_device=device,
        **kwargs,
    )


def run_tester(
    tester: GlobalEmbeddingSpaceTester,
    benchmark: Benchmark,
    split: str,
    trunk: nn.Module,
    embedder: nn.Module,
    *,
    epoch: int = 0,
    datasets: Mapping[str, Dataset[Any]] | None = None,
) -> dict[str, float]:
    """Evaluate like `evaluate`, with a given tester. `datasets`, if given, replaces the data sets of the split."""
    splits = None if split == "val" else benchmark.splits_to_eval
    if datasets is None:
        datasets = benchmark.test
        if split == "val":
            assert benchmark.val is not None
            datasets = {"val": benchmark.val}
    found = tester.test(dict(datasets), epoch, trunk, embedder, splits_to_eval=splits)
    (accuracies,) = found.values()
    return {name: float(accuracies[f"{name}_level0"]) for name in metric_names(benchmark)}


def check_split(benchmark: Benchmark, split: str) -> None:
    """Warn about images of `"val"` or `"test"` that evaluation cannot count.

    Raises:
        ValueError: there are no validation classes, or no image of the split has another of its class to find.
    """
    if split == "val" and benchmark.val is None:
        raise ValueError("split is 'val', but the benchmark has no validation classes: val_fraction was 0")
    parts = [benchmark.val] if split == "val" else list(benchmark.test.values())
    note = check_queries(f"the {'validation' if split == 'val' else 'test'} set of {benchmark.name}", *parts)
    if note is not None:
        warnings.warn(note, stacklevel=3)


def evaluate(
    trunk: nn.Module,
    embedder: nn.Module,
    benchmark: Benchmark,
    split: str = "test",
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Return Recall@K, MAP@R and R-precision of a model on unseen classes.

    Queries search all other images of the split; those of In-shop search the gallery.

    Args:
        trunk: images to features.
        embedder: features to embeddings, which are L2-normalised here.
        benchmark: from `load_benchmark`.
        split: `"val"` or `"test"`.
        batch_size: images per batch.
        workers: number of processes that load images.
        device: where to compute; None for a GPU if there is one.

    Returns:
        The value in [0, 1] of each of `metric_names`.

    Raises:
        TypeError: `batch_size` or `workers` is not an integer, or `device` is not a device.
        ValueError: one of them is out of range; `split` is neither; there are no validation classes; or no image
            has another of its class to find.
    """
    check_positive_int("batch_size", batch_size)
    check_positive_int("workers", workers, minimum=0)
    device = check_device(device)
    if split not in ("val", "test"):
        raise ValueError(f"split must be 'val' or 'test', got {split!r}")
    check_split(benchmark, split)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tester = build_tester(benchmark, batch_size=batch_size, workers=workers, device=device, end_of_testing_hook=quiet)
    return run_tester(tester, benchmark, split, trunk.to(device), embedder.to(device))


def quiet(tester: Any) -> None:
    """Do nothing: replaces PML's end-of-testing hook, which logs."""
