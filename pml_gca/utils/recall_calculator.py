"""Recall@K as retrieval papers report it, for PML's ``AccuracyCalculator`` and testers."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from pytorch_metric_learning.utils import accuracy_calculator as pml


def _check_recall_at(recall_at: Sequence[int]) -> tuple[int, ...]:
    expected = "expected a tuple or list of different positive ints"
    if not isinstance(recall_at, (tuple, list)):
        raise TypeError(f"recall_at is of type {type(recall_at).__name__}; {expected}")
    if len(recall_at) == 0:
        raise ValueError(f"recall_at is empty; {expected}")
    for value in recall_at:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"recall_at holds {value!r} of type {type(value).__name__}; {expected}")
        if value < 1:
            raise ValueError(f"recall_at holds {value}; {expected}")
    if len(set(recall_at)) < len(recall_at):
        raise ValueError(f"recall_at holds a value twice: {tuple(recall_at)}; {expected}")
    return tuple(recall_at)


class RecallCalculator(pml.AccuracyCalculator):
    """PML's ``AccuracyCalculator`` with one more metric, ``recall_at_K``, for each chosen K.

    A query scores 1 when at least one of its K nearest references has its label, else 0;
    ``recall_at_K`` is the mean over the queries. (PML's ``precision_at_1`` equals ``recall_at_1``; for
    larger K, precision is the share of the K neighbours with the query's label, which is not recall.)
    As in PML, queries without any match in the reference set are left out, and the result is nan if no
    query is left. With K larger than the reference set, recall is taken over all references.

    PML's own metrics are computed as ``AccuracyCalculator`` computes them with the same ``k``: where recall
    needs more neighbours than that, they are given the first ``k`` only. (Among references at exactly equal
    distance, a search for more neighbours may order them differently.) If only recall is asked for, no more
    than the largest K neighbours are searched, whatever ``k`` is.

    Args:
        recall_at: the K for which to compute recall; the metric's name is ``recall_at_4`` for K = 4.
        include: names of the metrics to compute, PML's or ``recall_at_K``; empty for all.
        exclude: names of metrics not to compute.
        avg_of_avgs: average within each class first, then over the classes.
        return_per_class: return a list with one value per class (in ascending order of label; classes
            whose queries are all left out have no entry) instead of a float.
        k: number of neighbours for PML's own metrics: an int, None (all references) or "max_bin_count".
        label_comparison_fn: as in PML: takes labels of shape (Q, 1, ...) and (Q, K, ...), or two equally long
            lists of labels, and returns which are of one class.
        device: where to compute; None for a GPU if there is one.
        knn_func: nearest-neighbour search; None for PML's ``FaissKNN`` (exact, L2), which needs faiss.
        kmeans_func: clustering for NMI and AMI; None for PML's ``FaissKMeans``.

    Raises:
        TypeError: ``recall_at`` is not a tuple or list, or holds something other than ints (a bool, too).
        ValueError: ``recall_at`` is empty, holds a value below 1 or one value twice; or as PML raises for
            its own arguments.

    Example:
        >>> import torch
        >>> calculator = RecallCalculator((1, 2), include=("recall_at_1", "recall_at_2"))
        >>> embeddings = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> calculator.get_accuracy(embeddings, torch.tensor([0, 0, 1, 1]))
        {'recall_at_1': 0.5, 'recall_at_2': 0.75}
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 2, 4, 8),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | str | None = None,
        label_comparison_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        device: torch.device | None = None,
        knn_func: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
        kmeans_func: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        if knn_func is None and find_spec("faiss") is None:
            raise ImportError("the neighbour search needs faiss: pip install 'pml-gca[eval]', or give knn_func")
        self.recall_at = _check_recall_at(recall_at)
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
            k=k,
            label_comparison_fn=label_comparison_fn,
            device=device,
            knn_func=knn_func,
            kmeans_func=kmeans_func,
        )

    def requires_knn(self) -> list[str]:
        """Names of the metrics that need a neighbour search: PML's and every ``recall_at_K``."""
        return [*super().requires_knn(), *self._recall_metrics]

    def determine_k(self, bin_counts: torch.Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """How many neighbours to search for each query, a match with itself not counted.

        Args:
            bin_counts: for each label of the queries, its number of references, shape (classes,).
            num_reference_embeddings: size of the reference set.
            ref_includes_query: whether the references begin with the queries.
        """
        current = self.get_curr_metrics()
        available = num_reference_embeddings - int(ref_includes_query)
        largest = max((self._recall_metrics.get(name, 0) for name in current), default=0)
        needed = min(largest, available)
        self._pml_k = None
        if any(name not in {*self._recall_metrics, *self.requires_clustering()} for name in current):
            # Not capped at `available`, so that PML's metrics are PML's for an oversized k, too.
            self._pml_k = super().determine_k(bin_counts, num_reference_embeddings, ref_includes_query)
            needed = max(needed, self._pml_k)
        return needed

    def _get_accuracy(self, function_dict: dict[str, Callable[..., Any]], **kwargs: Any) -> dict[str, Any]:
        pml_kwargs = dict(kwargs)
        if "knn_labels" in kwargs and self._pml_k is not None:
            for key in ("knn_labels", "knn_distances"):
                pml_kwargs[key] = kwargs[key][:, : self._pml_k]
        return {
            name: function(**(kwargs if name in self._recall_metrics else pml_kwargs))
            for name, function in function_dict.items()
        }

    def _recall(
        self,
        top: int,
        *,
        knn_labels: torch.Tensor,
        query_labels: torch.Tensor,
        not_lone_query_mask: torch.Tensor,
        label_counts: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> float | list[float]:
        """Recall@top from the labels of the neighbours, shape (Q, columns, ...), nearest first."""
        if not bool(not_lone_query_mask.any()):
            return pml.nan_accuracy(label_counts[0], self.return_per_class)
        # If PML's k is oversized, faiss pads the columns past the last reference. They cannot add a hit: a
        # query that reaches them has a match among the references before them, or it is not in the mask.
        query_labels = query_labels[not_lone_query_mask][:, None]
        same = self.label_comparison_fn(query_labels, knn_labels[not_lone_query_mask][:, :top]).bool()
        # Labels of several columns compared elementwise are the same when all their columns are.
        same = same.reshape(*same.shape[:2], -1).all(dim=-1)
        hit = same.any(dim=1).to(torch.float64)
        return pml.maybe_get_avg_of_avgs(hit, query_labels, self.avg_of_avgs, self.return_per_class)
