"""Prepare embeddings and labels for retrieval metrics.

PML casts labels to float32, which represents integers exactly only up to 2²⁴. Beyond that, distinct classes merge.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Comparison = Callable[[Tensor, Tensor], Tensor]
EXACT = 2**24  # whole numbers up to here are exact in float32
EXACT_DOUBLE = 2**53  # and up to here in float64


def to_tensor(name: str, value: object) -> Tensor:
    """Return a tensor or an array as a detached tensor.

    Raises:
        TypeError: `value` is neither, or holds something other than real numbers.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must hold real numbers, got a numpy array of {value.dtype}; turn class names into numbers "
                "with numpy.unique(names, return_inverse=True)[1]"
            )
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy array, got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    return value.detach()


def check_metric_names(name: str, metrics: Sequence[str]) -> None:
    """Raise unless `metrics` is a tuple or list of strings; the calculator checks whether it knows them."""
    if not isinstance(metrics, (tuple, list)):
        raise TypeError(f"{name} must be a tuple or list of names of metrics, got {type(metrics).__name__}")
    for metric in metrics:
        if not isinstance(metric, str):
            raise TypeError(f"{name} holds {metric!r}; expected names of metrics. K of Recall@K: recall_at=(1, 2, ...)")


def embeddings_to_search(query: object, reference: object, device: torch.device) -> tuple[Tensor, Tensor]:
    """Check and convert query and reference embeddings.

    Returns:
        (Q, D) and (R, D), float32, on `device`; one tensor twice if `reference` is `query`.

    Raises:
        TypeError: an argument is not a tensor or array of real numbers.
        ValueError: one is not 2-D or is empty, their channels differ, or a value is NaN or infinite.
    """
    given = {"query": query} if reference is query else {"query": query, "reference": reference}
    found, unusable = [], []
    for name, value in given.items():
        tensor = to_tensor(name, value)
        if tensor.ndim != 2 or len(tensor) == 0:
            raise ValueError(f"{name} must be at least one embedding, (N, D), got shape {tuple(tensor.shape)}")
        tensor = tensor.to(device, torch.float32)
        finite = tensor.isfinite()
        if not bool(finite.all()):
            nans, rows = int(tensor.isnan().sum()), int((~finite).any(dim=1).sum())
            infinite = tensor.numel() - int(finite.sum()) - nans
            unusable.append(
                f"{name} must be finite in float32, got {nans} NaN and {infinite} infinite of {tensor.numel()} values, "
                f"in {rows} of {len(tensor)} embeddings"
            )
        found.append(tensor)
    if unusable:
        raise ValueError("; ".join(unusable))
    if found[0].shape[1] != found[-1].shape[1]:
        raise ValueError(
            f"query and reference must have equally many channels, got {found[0].shape[1]} and {found[-1].shape[1]}"
        )
    return found[0], found[-1]


def exact_labels(name: str, value: object, count: int, of: str) -> Tensor:
    """Return labels on the host without loss: as int64, or in their own floating dtype.

    Raises:
        TypeError: `value` is not a tensor or array of real numbers.
        ValueError: there are not `count` labels, one is NaN, or one is beyond int64.
    """
    labels = to_tensor(name, value).cpu()
    if labels.ndim == 0 or len(labels) != count:
        raise ValueError(f"{name} must be as many as {of}: expected {count}, got shape {tuple(labels.shape)}")
    if labels.is_floating_point():
        if nans := int(labels.isnan().sum()):
            raise ValueError(f"{name} must be numbers, got {nans} NaN of {labels.numel()} labels")
        return labels
    if labels.dtype == torch.uint64 and (beyond := int((labels.numpy() > np.iinfo(np.int64).max).sum())):
        raise ValueError(
            f"{name} must fit into int64, got {beyond} of {labels.numel()} above 2**63 - 1; number the classes with "
            "numpy.unique(labels, return_inverse=True)[1]"
        )
    return labels.long()


def retrieval_labels(
    query_labels: object, reference_labels: object, counts: tuple[int, int], keep_columns: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return labels that stay distinct in float32.

    Args:
        query_labels: (Q, ...), real numbers.
        reference_labels: (R, ...), real numbers.
        counts: Q and R.
        keep_columns: keep labels of several columns as they are; otherwise equal rows become one class.

    Returns:
        Labels of queries and references on the host, and None if they are exact in float32. Otherwise class numbers
        in the order of the labels, and the (V,) label of each number.

    Raises:
        TypeError, ValueError: see `exact_labels`; or the labels of queries and references do not match.
    """
    query = exact_labels("query_labels", query_labels, counts[0], "query")
    reference = query
    if reference_labels is not query_labels:
        reference = exact_labels("reference_labels", reference_labels, counts[1], "reference")
    if query.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "query_labels and reference_labels must have the same columns, got shapes "
            f"{tuple(query.shape)} and {tuple(reference.shape)}"
        )
    if query.dtype != reference.dtype:
        for name, labels in (("query_labels", query), ("reference_labels", reference)):
            if int(((labels > EXACT) | (labels < -EXACT)).sum()):
                raise ValueError(
                    f"{name} are {labels.dtype} and hold values beyond 2**24, so query_labels ({query.dtype}) and "
                    f"reference_labels ({reference.dtype}) cannot be compared: pass both in one dtype"
                )
        query, reference = query.float(), reference.float()
    everything = torch.cat([query, reference])
    by_rows = everything.ndim > 1 and not keep_columns
    if not by_rows and is_exact_in_float32(everything):
        return query, reference, None
    values, numbers = everything.unique(return_inverse=True, dim=0 if by_rows else None)
    if len(values) > EXACT:
        raise ValueError(f"labels must be of at most 2**24 classes, got {len(values)}")
    first, second = numbers.split([len(query), len(reference)])
    return first, second, values


def check_begins_with_queries(query_labels: Tensor, reference_labels: Tensor) -> None:
    """Raise unless the references' labels begin with those of the queries."""
    count = len(query_labels)
    if count > len(reference_labels):
        raise ValueError(
            f"reference must begin with the queries if ref_includes_query is True: got {count} queries, but only "
            f"{len(reference_labels)} references"
        )
    if others := int((query_labels != reference_labels[:count]).reshape(count, -1).any(dim=1).sum()):
        raise ValueError(
            f"reference must begin with the queries if ref_includes_query is True: {others} of its first {count} "
            "labels differ"
        )


def is_exact_in_float32(labels: Tensor) -> bool:
    """Return whether a cast to float32 changes no label."""
    if labels.is_floating_point():
        return bool((labels.float() == labels).all())
    return not bool(((labels > EXACT) | (labels < -EXACT)).any())


def check_all_found(distances: object) -> None:
    """Raise if a search found too few neighbours: faiss then fills in wrong ones, at the largest float32 distance."""
    if not isinstance(distances, Tensor):  # a custom search may return none
        return
    usable = distances.abs() < torch.finfo(torch.float32).max
    if missing := usable.numel() - int(usable.sum()):
        raise ValueError(
            f"the search found no neighbour in {missing} of {usable.numel()} places. Either query and reference are "
            "too large for distances in float32: normalize or scale them. Or knn_func searches only a part of the "
            "references: let it search more, or request fewer neighbours by k"
        )


class ComparedValues:
    """Apply a comparison of labels to their class numbers.

    Args:
        comparison: compares labels. It gets float64, or int64 if float64 would change one; on an Apple GPU, which has
            no float64, int64 or float32.
        values: (V,) on the host, the label of each number.
        device: device of the labels to compare.
    """

    def __init__(self, comparison: Comparison, values: Tensor, device: torch.device) -> None:
        if device.type == "mps":  # which has no float64
            values = values.float() if values.is_floating_point() else values
        elif values.is_floating_point() or not bool(((values > EXACT_DOUBLE) | (values < -EXACT_DOUBLE)).any()):
            values = values.double()
        self.comparison, self.values = comparison, values.to(device)

    def __call__(self, a: Any, b: Any) -> Tensor:
        return self.comparison(self.values[a.long()], self.values[b.long()])
