import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import layouts
from torch import nn

from pml_gca.datasets import load_benchmark
from pml_gca.paper import evaluate, metric_names


class Colours(nn.Module):
    """A model that maps images to their mean colours."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def slow_metrics(queries, query_labels, references, reference_labels, recall_at, among_themselves):
    """Metrics by a loop over queries that sorts all references by distance."""
    hits, precision, r_precision = {k: [] for k in recall_at}, [], []
    for i, query in enumerate(queries):
        others = [j for j in range(len(references)) if not (among_themselves and j == i)]
        order = sorted(others, key=lambda j: np.linalg.norm(query - references[j]))
        same = [reference_labels[j] == query_labels[i] for j in order]
        r = sum(same)
        if r == 0:
            continue
        for k in recall_at:
            hits[k].append(any(same[:k]))
        r_precision.append(sum(same[:r]) / r)
        precision.append(sum(sum(same[: n + 1]) / (n + 1) for n in range(r) if same[n]) / r)
    found = {f"recall_at_{k}": np.mean(hits[k]) for k in recall_at}
    return {**found, "mean_average_precision_at_r": np.mean(precision), "r_precision": np.mean(r_precision)}


def embed(dataset):
    rows = torch.stack([dataset[i][0].mean(dim=(1, 2)) for i in range(len(dataset))])
    return nn.functional.normalize(rows).numpy(), dataset.labels.tolist()


@pytest.mark.parametrize("name", ["cub", "inshop"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_equal_those_of_a_slow_search(name, split, tmp_path):
    getattr(layouts, f"write_{name}")(tmp_path)
    benchmark = load_benchmark(name, tmp_path, image_size=16, val_fraction=0.4)
    found = evaluate(Colours(), nn.Identity(), benchmark, split, batch_size=5, device=torch.device("cpu"))
    assert list(found) == metric_names(benchmark)
    if split == "val":
        queries = references = embed(benchmark.val)
    else:
        queries, references = (embed(part) for part in (list(benchmark.test.values()) * 2)[:2])
    alone = split == "val" or len(benchmark.test) == 1
    expected = slow_metrics(*queries, *references, benchmark.recall_at, among_themselves=alone)
    assert found == pytest.approx(expected)
    assert 0 < found["recall_at_1"] <= 1


PEAKS = """
import re, sys, torch
from pathlib import Path
from pml_gca.datasets import Benchmark
from pml_gca.paper import evaluate


class Pairs(torch.utils.data.Dataset):
    def __init__(self, size):
        self.labels = torch.arange(size) // 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return torch.rand(4), int(self.labels[row])


for size in map(int, sys.argv[1:]):
    benchmark = Benchmark("sop", None, None, {"test": Pairs(size)}, recall_at=(1, 10))
    evaluate(torch.nn.Identity(), torch.nn.Identity(), benchmark, batch_size=500, device=torch.device("cpu"))
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells a process's peak of memory")
def test_memory_does_not_grow_with_the_square_of_the_images():
    sizes = 2000, 8000
    # A process of its own, for a peak of its own, of torch's memory, faiss's and all else. (A new process inherits
    # getrusage's peak from the one that starts it.)
    command = [sys.executable, "-c", PEAKS, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    few, many = (1024 * int(line) for line in done.stdout.split())
    # It grows by 5 MB. A byte for each image and class would be 32 MB, for each pair of images 64 MB.
    assert 0 < many - few < sizes[1] ** 2 / 4


def test_bad_split(tmp_path):
    layouts.write_cub(tmp_path)
    benchmark = load_benchmark("cub", tmp_path, image_size=16, val_fraction=0)
    with pytest.raises(ValueError, match="split must be 'val' or 'test', got 'train'"):
        evaluate(Colours(), nn.Identity(), benchmark, "train")
    with pytest.raises(ValueError, match="has no validation classes"):
        evaluate(Colours(), nn.Identity(), benchmark, "val")
