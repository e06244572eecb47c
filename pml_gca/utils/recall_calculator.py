"""Recall@K as retrieval papers report it, for PML's `AccuracyCalculator` and testers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from typing import Any

import torch
from pytorch_metric_learning.utils import accuracy_calculator as pml
from torch import Tensor

from .retrieval_input import (
    ComparedValues,
    Comparison,
    check_all_found,
    check_begins_with_queries,
    check_metric_names,
    embeddings_to_search,
    retrieval_labels,
)
from .validation import check_device, check_flag, check_functions


def _check_recall_at(recall_at: Sequence[int]) -> tuple[int, ...]:
    expected = "expected a tuple or list of different positive ints"
    if not isinstance(recall_at, (tuple, list)):
        raise TypeError(f"recall_at is of type {type(recall_at).__name__}; {expected}")
    if len(recall_at) == 0:
        raise ValueError(f"recall_at is empty; {expected}")
    for value in recall_at:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"recall_at holds {value!r} of type {type(value).__name__}; {expected}")
        if value < 1:
            raise ValueError(f"recall_at holds {value}; {expected}")
    if len(set(recall_at)) < len(recall_at):
        raise ValueError(f"recall_at holds a value twice: {tuple(recall_at)}; {expected}")
    return tuple(int(value) for value in recall_at)


class RecallCalculator(pml.AccuracyCalculator):
    """PML's `AccuracyCalculator` with one more metric, `recall_at_K`, for each chosen K.

    A query scores 1 if at least one of its K nearest references has its label, else 0. `recall_at_K` is the mean over
    the queries. (PML's `precision_at_1` equals `recall_at_1`. For larger K, precision is the share of the K neighbours
    that have the query's label, which is not recall.) As in PML, queries without any match in the reference set are
    left out, and the result is nan if no query is left. If K exceeds the reference set, recall uses all references.

    PML's own metrics are those of `AccuracyCalculator` with the same `k`: if recall needs more neighbours, they get
    the first `k` only. (A search for more neighbours may order references at exactly equal distance differently.) If
    only recall is requested, only the largest K neighbours are searched, and `k` has no influence. Unlike in PML, a `k`
    larger than the reference set means all of it: PML then counts neighbours that do not exist.

    Metrics depend only on which labels are equal, not on their values: PML's float32 merges distinct ids from 2²⁴
    on. Labels of several columns are equal if all columns are.

    Args:
        include: names of the metrics to compute, PML's or `recall_at_K`; empty for all.
        exclude: names of metrics to leave out.
        avg_of_avgs: average within each class first, then over the classes.
        return_per_class: return a list with one value per class instead of a float, in ascending order of label.
            Classes without any query that has a match have no entry.
        k: number of neighbours for PML's own metrics: an int, None (all references) or "max_bin_count".
        label_comparison_fn: as in PML: takes labels of shape (Q, 1, ...) and (Q, K, ...), or two equally long
            lists of labels, and returns which belong to one class. It gets float32; float64 if float32 would change a
            label; int64 if float64 would.
        device: where to compute; None for a GPU if there is one.
        knn_func: Nearest-neighbour search; None for PML's `FaissKNN` (exact, L2), which needs faiss.
        kmeans_func: clustering for NMI and AMI; None for PML's `FaissKMeans`.
        recall_at: values of K; the metric's name is `recall_at_4` for K = 4.

    Raises:
        TypeError: `recall_at`, `include` or `exclude` is not a tuple or list, or holds something other than ints
            (bools are refused) or names; `k` is a bool; another argument is not of its type.
        ValueError: `recall_at` is empty, holds a value below 1 or a value twice; or as PML raises for its own
            arguments.

    Examples:
        >>> import torch
        >>> calculator = RecallCalculator(include=("recall_at_1", "recall_at_2"), recall_at=(1, 2))
        >>> embeddings = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> calculator.get_accuracy(embeddings, torch.tensor([0, 0, 1, 1]))
        {'recall_at_1': 0.5, 'recall_at_2': 0.75}
    """

    label_comparison_fn: Comparison

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | str | None = None,
        label_comparison_fn: Comparison | None = None,
        device: torch.device | str | None = None,
        knn_func: Callable[..., tuple[Tensor, Tensor]] | None = None,
        kmeans_func: Callable[..., Tensor] | None = None,
        *,
        recall_at: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        if knn_func is None and find_spec("faiss") is None:
            raise ImportError("the neighbour search needs faiss: pip install 'pml-gca[eval]', or give knn_func")
        self.recall_at = _check_recall_at(recall_at)
        check_metric_names("include", include)
        check_metric_names("exclude", exclude)
        if isinstance(k, bool):
            raise TypeError(f"k must be an int, None or 'max_bin_count', got {k}")
        check_flag("avg_of_avgs", avg_of_avgs)
        check_flag("return_per_class", return_per_class)
        check_functions(label_comparison_fn=label_comparison_fn, knn_func=knn_func, kmeans_func=kmeans_func)
        self._recall_metrics = {f"recall_at_{value}": value for value in self.recall_at}
        # PML collects every calculate_* attribute of the instance in its constructor.
        for name, value in self._recall_metrics.items():
            setattr(self, f"calculate_{name}", partial(self._recall, value))
        self._pml_k: int | None = None
        super().__init__(
            include=include,
            exclude=exclude,
            avg_of_avgs=avg_of_avgs,
            return_per_class=return_per_class,
            k=int(k) if isinstance(k, Integral) else k,
            label_comparison_fn=label_comparison_fn,
            device=check_device(device),
            knn_func=knn_func,
            kmeans_func=kmeans_func,
        )

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Compute the metrics of queries that search a reference set.

        Args:
            query: (Q, D) embeddings, a tensor or an array.
            query_labels: (Q,) or (Q, columns), integers or floats: anything that PML takes, and unsigned integers.
            reference: (R, D); None for the queries themselves: each query then searches all others.
            reference_labels: (R, ...), as `query_labels`.
            ref_includes_query: whether the references begin with the queries.
            include, exclude: names of the calculator's metrics to compute, and to leave out.

        Returns:
            Value of each metric by name.

        Raises:
            TypeError: an argument is not a tensor or array of real numbers; `include` or `exclude` holds other
                things than names.
            ValueError: an embedding is NaN or infinite in float32, or too large for a distance in float32; a label is
                NaN or beyond int64; sizes do not match; `include` names an unknown metric; the references do not
                begin with the queries although `ref_includes_query` is True.
        """
        check_metric_names("include", include)
        check_metric_names("exclude", exclude)
        if unknown := [name for name in include if name not in self.original_function_dict]:
            raise ValueError(f"include holds {unknown}; this calculator has {list(self.original_function_dict)}")
        if reference is None:
            if reference_labels is not None:
                raise ValueError("reference_labels are given without reference; give both, or none for the queries")
            reference, reference_labels, ref_includes_query = query, query_labels, True
        query, reference = embeddings_to_search(query, reference, self.device)
        counts = len(query), len(reference)
        custom = self.label_comparison_fn is not pml.EQUALITY
        query_labels, reference_labels, values = retrieval_labels(query_labels, reference_labels, counts, custom)
        if ref_includes_query:
            check_begins_with_queries(query_labels, reference_labels)
        with self._comparing(values if custom else None):
            found: dict[str, Any] = super().get_accuracy(
                query, query_labels, reference, reference_labels, ref_includes_query, include, exclude
            )
        return found

    @contextmanager
    def _comparing(self, values: Tensor | None) -> Iterator[None]:
        """Give the user's comparison the original `values` of numbered labels within this context."""
        comparison = self.label_comparison_fn
        if values is not None:
            self.label_comparison_fn = ComparedValues(comparison, values, self.device)
        try:
            yield
        finally:
            self.label_comparison_fn = comparison

    def requires_knn(self) -> list[str]:
        """Return the names of metrics that need a neighbour search: PML's and every `recall_at_K`."""
        return [*super().requires_knn(), "mean_reciprocal_rank", *self._recall_metrics]  # PML omits the second

    def determine_k(self, bin_counts: Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """Return how many neighbours to search for each query, not counting the query itself.

        Args:
            bin_counts: (classes,), number of references of each query label.
            num_reference_embeddings: size of the reference set.
            ref_includes_query: whether the references begin with the queries.
        """
        current = self.get_curr_metrics()
        available = num_reference_embeddings - int(ref_includes_query)
        largest = max((self._recall_metrics.get(name, 0) for name in current), default=0)
        needed = min(largest, available)
        self._pml_k = None
        if any(name not in {*self._recall_metrics, *self.requires_clustering()} for name in current):
            # Capped: faiss pads with copies of the last reference, other searches fail.
            wanted = super().determine_k(bin_counts, num_reference_embeddings, ref_includes_query)
            self._pml_k = min(wanted, available)
            needed = max(needed, self._pml_k)
        return needed if ref_includes_query else max(needed, 1)

    def _get_accuracy(self, function_dict: dict[str, Callable[..., Any]], **kwargs: Any) -> dict[str, Any]:
        distances = kwargs.get("knn_distances")
        check_all_found(distances)
        pml_kwargs = dict(kwargs)
        if "knn_labels" in kwargs and self._pml_k is not None:
            pml_kwargs["knn_labels"] = kwargs["knn_labels"][:, : self._pml_k]
            if isinstance(distances, Tensor):
                pml_kwargs["knn_distances"] = distances[:, : self._pml_k]
        return {
            name: function(**(kwargs if name in self._recall_metrics else pml_kwargs))
            for name, function in function_dict.items()
        }

    def _recall(
        self,
        top: int,
        *,
        knn_labels: Tensor,
        query_labels: Tensor,
        not_lone_query_mask: Tensor,
        label_counts: tuple[Tensor, Tensor],
        **kwargs: Any,
    ) -> float | list[float]:
        """Compute Recall@top from the (Q, K, ...) labels of the neighbours, nearest first."""
        if not bool(not_lone_query_mask.any()):
            return pml.nan_accuracy(label_counts[0], self.return_per_class)
        query_labels = query_labels[not_lone_query_mask][:, None]
        same = self.label_comparison_fn(query_labels, knn_labels[not_lone_query_mask][:, :top]).bool()
        # Labels of several columns are equal if all columns are.
        same = same.reshape(*same.shape[:2], -1).all(dim=-1)
        hit = same.any(dim=1).cpu().double()  # not every device has float64
        return pml.maybe_get_avg_of_avgs(hit, query_labels.cpu(), self.avg_of_avgs, self.return_per_class)
