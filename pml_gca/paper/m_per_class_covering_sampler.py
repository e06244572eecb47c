"""Batches of M samples per class, like those of PML's `MPerClassSampler`, that leave out fewer samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..utils.validation import check_positive_int


class MPerClassCoveringSampler(Sampler[int]):
    """Draw batches of M samples per class, and use every sample of a class once before any repeats.

    PML's `MPerClassSampler` draws the samples of each batch independently: an epoch misses many and repeats others.
    Here each class has its samples in a random order. Batches work through that order, across epochs, and then a new
    one is drawn. A batch repeats a sample only if its class has fewer than M. Each batch draws its classes uniformly,
    as in PML, and an epoch therefore still misses some samples.

    Args:
        labels: labels of the data set, shape (N,); numbers of any type, or names.
        m: samples M of each class in a batch.
        batch_size: samples in a batch, a multiple of M.
        length_before_new_iter: samples of an epoch. The last batch is dropped if it is not full.
        seed: seed of all draws. Nothing else influences them.

    Raises:
        TypeError, ValueError: `labels` are not 1-D, or of several kinds; `m`, `batch_size` or
            `length_before_new_iter` is not a positive integer, or `seed` not an integer of at least 0;
            `batch_size` is not a multiple of `m`, or exceeds M samples of every class, or an epoch.

    Examples:
        >>> sampler = MPerClassCoveringSampler([0, 0, 0, 0, 7, 7, 7, 7], m=2, batch_size=4, length_before_new_iter=8)
        >>> sorted(sampler)  # two batches of both classes: all samples
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        labels: Tensor | np.ndarray | Sequence[Any],
        m: int,
        batch_size: int,
        length_before_new_iter: int,
        *,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("m", m),
            ("batch_size", batch_size),
            ("length_before_new_iter", length_before_new_iter),
        ):
            check_positive_int(name, value)
        check_positive_int("seed", seed, minimum=0)
        if batch_size % m:
            raise ValueError(f"batch_size must be a multiple of m, {m}, got {batch_size}")
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        if values.ndim != 1:
            raise ValueError(f"labels must be 1-D, one of each sample, got {values.ndim}-D, shape {values.shape}")
        try:
            _, classes, sizes = np.unique(values, return_inverse=True, return_counts=True)
        except TypeError as error:  # such as None among numbers
            raise TypeError(f"labels must be numbers or names, all of one kind: {error}") from None
        order = classes.argsort(kind="stable")
        self.members = [rows.tolist() for rows in np.split(order, sizes.cumsum())[:-1]]
        if batch_size > m * len(self.members):
            raise ValueError(
                f"batch_size must be at most {m * len(self.members)}, {m} samples of each of {len(self.members)} "
                f"classes, got {batch_size}"
            )
        if batch_size > length_before_new_iter:
            raise ValueError(
                f"length_before_new_iter must be at least one batch of {batch_size}, got {length_before_new_iter}"
            )
        self.m, self.batch_size = m, batch_size
        self.num_batches = length_before_new_iter // batch_size
        self.generator = torch.Generator().manual_seed(int(seed))
        self.waiting: list[list[int]] = [[] for _ in self.members]

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Draw all samples of an epoch at once: then it does not matter how many a loader fetches ahead."""
        rows: list[int] = []
        for _ in range(self.num_batches):
            for label in self._permutation(len(self.members))[: self.batch_size // self.m]:
                rows += self._take(label)
        return iter(rows)

    def _take(self, label: int) -> list[int]:
        """Return the next M samples of a class."""
        taken: list[int] = []
        while len(taken) < self.m:
            if not self.waiting[label]:
                rows = self.members[label]
                new_order = [rows[i] for i in self._permutation(len(rows))]
                self.waiting[label] = sorted(
                    new_order, key=taken.__contains__
                )  # samples already in this batch come last
            missing = self.m - len(taken)
            taken += self.waiting[label][:missing]
            self.waiting[label] = self.waiting[label][missing:]
        return taken

    def _permutation(self, size: int) -> list[int]:
        drawn: list[int] = torch.randperm(size, generator=self.generator, device="cpu").tolist()
        return drawn

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that the next epoch depends on."""
        return {
            "generator": self.generator.get_state(),
            "waiting": torch.tensor([row for rows in self.waiting for row in rows], dtype=torch.long, device="cpu"),
            "sizes": torch.tensor([len(rows) for rows in self.waiting], dtype=torch.long, device="cpu"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a sampler of the same labels stopped.

        Raises:
            KeyError: `state` does not come from `state_dict`.
            ValueError: it belongs to other labels.
        """
        waiting = [rows.tolist() for rows in state["waiting"].split(state["sizes"].tolist())]
        if len(waiting) != len(self.members) or any(
            not set(rows) <= set(own) for rows, own in zip(waiting, self.members, strict=True)
        ):
            raise ValueError("the state belongs to a sampler of other labels; pass the labels of that sampler")
        self.generator.set_state(state["generator"])
        self.waiting = waiting
