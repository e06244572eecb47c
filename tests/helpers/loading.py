"""Small benchmarks, loaded without torchvision."""

from pathlib import Path
from typing import Any

from pml_gca.datasets import Benchmark, ClassSubset, load_benchmark

CLASSES, PER_CLASS = 6, 4
"""Classes of each half of a benchmark, and images of a class."""


def size_of(image: Any) -> Any:
    """A transform that keeps nothing but the size of an image."""
    return image.size


def load(name: str, root: Path, **arguments: Any) -> Benchmark:
    """Load a benchmark with `size_of` as its transforms."""
    return load_benchmark(name, root, **{"train_transform": size_of, "test_transform": size_of, **arguments})


def splits_of(benchmark: Benchmark) -> dict[str, ClassSubset]:
    """All splits by name."""
    assert benchmark.val is not None
    return {"train": benchmark.train, "val": benchmark.val, **benchmark.test}
