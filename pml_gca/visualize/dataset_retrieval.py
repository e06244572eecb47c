"""Queries of a data set and what models retrieve for them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..utils.validation import check_positive_int
from .retrieval import indices, plot_retrieval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageDataset(Protocol):
    """The parts of a data set that are used here: (N,) labels from 0, a name for each label, (image, label) items."""

    labels: torch.Tensor
    classes: Sequence[str]

    def __getitem__(self, index: int, /) -> Any: ...


def choose_queries(dataset: ImageDataset, count: int, seed: int = 0) -> torch.Tensor:
    """Return the first image of each of `count` classes, chosen at random; of all classes if there are fewer.

    Args:
        dataset: to choose from.
        count: how many classes, at least one. Classes without images do not count.
        seed: of the choice, at least 0. The global random state is neither read nor changed.

    Returns:
        int64 tensor of shape (Q,): indices into `dataset`.

    Raises:
        TypeError, ValueError: `count` or `seed` is not as described, or there are no images.
    """
    check_positive_int("count", count)
    check_positive_int("seed", seed, minimum=0)
    labels = dataset.labels.cpu()
    if len(labels) == 0:
        raise ValueError("dataset has no images; expected at least one")
    source = torch.Generator().manual_seed(seed)
    classes = torch.randperm(len(dataset.classes), generator=source, device="cpu")
    present = classes[torch.isin(classes, labels)][:count]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in present])


def plot_dataset_retrieval(
    dataset: ImageDataset,
    queries: torch.Tensor,
    neighbours: Mapping[str, torch.Tensor],
    *,
    title: str | None = None,
) -> "Figure":
    """Show queries of a data set and their nearest images, as `plot_retrieval` does. Read only the images shown.

    Args:
        dataset: images of shape (C, H, W) in [0, 1], C = 1 (grey) or 3 (RGB), with their labels and class names.
        queries: indices into `dataset`, shape (Q,).
        neighbours: for each model's name, indices into `dataset` of shape (Q, k), nearest first. All are shown.
        title: title of the figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an argument is not as described.
    """
    size = len(dataset.labels)
    queries = indices("queries", queries, size, 1)
    if not isinstance(neighbours, Mapping) or not neighbours:
        raise ValueError("neighbours must map at least one model's name to indices")
    each = [indices(f"neighbours[{name!r}]", value, size, 2) for name, value in neighbours.items()]
    for name, value in zip(neighbours, each, strict=True):
        if value.shape != (len(queries), each[0].shape[1]):
            raise ValueError(
                f"neighbours[{name!r}] has shape {tuple(value.shape)}; expected {(len(queries), each[0].shape[1])}: "
                "a row for each query, and the same k for all models"
            )
    found = torch.stack(each)  # (models, Q, k)
    shown, place = torch.cat([queries, found.flatten()]).unique(return_inverse=True)
    return plot_retrieval(
        torch.stack([dataset[index][0] for index in shown.tolist()]),
        dataset.labels[shown],
        place[: len(queries)],
        dict(zip(neighbours, place[len(queries) :].view_as(found), strict=True)),
        top=found.shape[2],
        class_names=dataset.classes,
        title=title,
    )
