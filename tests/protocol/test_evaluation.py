import layouts
import numpy as np
import pytest
import torch
from torch import nn

from pml_gca.datasets import load_benchmark
from pml_gca.protocol import evaluate, metric_names


class Colours(nn.Module):
    """Images to their mean colours."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def slow_metrics(queries, query_labels, references, reference_labels, recall_at, among_themselves):
    """Each query's references sorted by distance, one query at a time."""
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
def test_metrics_are_those_of_a_slow_search(name, split, tmp_path):
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


def test_bad_split(tmp_path):
    layouts.write_cub(tmp_path)
    benchmark = load_benchmark("cub", tmp_path, image_size=16, val_fraction=0)
    with pytest.raises(ValueError, match="split must be 'val' or 'test', got 'train'"):
        evaluate(Colours(), nn.Identity(), benchmark, "train")
    with pytest.raises(ValueError, match="has no validation classes"):
        evaluate(Colours(), nn.Identity(), benchmark, "val")
