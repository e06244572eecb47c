"""Retrieval as the paper reports it, by PML's tester."""

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
    """What is evaluated: ``recall_at_K`` for the K of the data set, MAP@R and R-precision."""
    return [*(f"recall_at_{k}" for k in benchmark.recall_at), "mean_average_precision_at_r", "r_precision"]


def same_label(a: Tensor, b: Tensor) -> Tensor:
    """Whether labels agree. Given a function PML counts class by class; of its own accord, all classes times images."""
    return a == b


def build_tester(
    benchmark: Benchmark, *, batch_size: int, workers: int, device: torch.device, **kwargs: Any
) -> GlobalEmbeddingSpaceTester:
    """PML's tester on L2-normalised embeddings.

    For N images it holds N · K neighbours, K being the largest of ``recall_at`` and of the classes' sizes, never N².
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
    epoch: int = 0,
    datasets: Mapping[str, Dataset[Any]] | None = None,
) -> dict[str, float]:
    """As `evaluate`, by a tester that is at hand; ``datasets`` may take the place of the split's own."""
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
    """Warn of images of ``"val"`` or ``"test"`` that do not count, before it is evaluated.

    Raises:
        ValueError: there are no validation classes, or nothing to find in the split.
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
    """Recall@K, MAP@R and R-precision of a model on classes it has not seen.

    Queries search the whole split but themselves; those of In-shop search the gallery.

    Args:
        trunk: images to features.
        embedder: features to embeddings, which are L2-normalised here.
        benchmark: of `load_benchmark`.
        split: ``"val"`` or ``"test"``.
        batch_size: images at a time.
        workers: processes that load images.
        device: None for a GPU if there is one.

    Returns:
        Value in [0, 1] of each of `metric_names`.

    Raises:
        TypeError: ``batch_size`` or ``workers`` is no integer, or ``device`` is no device.
        ValueError: one of them is out of range; ``split`` is neither; there are no validation classes; or no image
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
    """In place of PML's hook, which logs."""
