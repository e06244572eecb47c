"""The batch that a generator is called with."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..correlation.edge_list import EdgeList
from ..distributed.processes import Processes
from ..utils.batch_checks import check_counts, check_label_range, count_unusable
from ..utils.dtypes import compute_dtype
from ..utils.host import HostCopy

PHASES = ("all", "embedding", "generation")


class HostValues:
    """Labels on the host, and the check of a batch's values, in one copy from the device.

    The copy starts here, and `wait` waits for it once: the device works in between. On the host the check is done here.

    Args:
        embeddings: (N, D), floating.
        labels: (N,) long, on the same device.
        num_classes: labels must lie in [0, `num_classes`).
        largest: the largest value that embeddings may have.
        names: of the two arguments, for messages.
        num_checked: how many of the first rows are checked; all by default.

    Raises:
        ValueError: as `wait`, for a batch on the host.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        largest: float,
        names: tuple[str, str],
        num_checked: int | None = None,
    ) -> None:
        self._num_classes, self._largest, self._names, self._num_checked = num_classes, largest, names, num_checked
        checked = embeddings[:num_checked]
        self._count, self._dtype = checked.numel(), checked.dtype
        self._copy = HostCopy(torch.cat([labels, count_unusable(checked, largest)]))
        self._labels: Tensor | None = None
        if self._copy.ready:
            self.wait()

    def wait(self) -> Tensor:
        """Return the labels on the host, (N,) long.

        Raises:
            ValueError: a label is out of range, or a value of the embeddings is not finite or too large.
        """
        if self._labels is None:
            values = self._copy.wait()
            labels, counts = values[:-3], values[-3:]
            check_label_range(labels[: self._num_checked], self._num_classes, self._names[1])
            check_counts(counts.tolist(), self._names[0], self._count, self._dtype, self._largest)
            self._labels = labels
        return self._labels


@dataclass(frozen=True)
class Batch:
    """A batch as generators take it. `BaseGenerator.batch` makes one, and checks shapes and dtypes.

    Attributes:
        embeddings: (N, D), floating. Rows from `num_anchors` on are references.
        labels: (N,) long, on the device of the embeddings.
        num_anchors: A, how many of the first rows are anchors.
        host: labels on the host, and the check of all values.
        phase: the half of an alternating schedule that is computed: `"embedding"`, `"generation"`, or `"all"` for
            both at once. See `HardNegativeGenerationLoss.phase`.
        processes: those that share the work of the graph, and have the same batch; None for no sharing.
        num_memory: M, how many of the last references are a memory: the graph has no edges among them.
    """

    embeddings: Tensor
    labels: Tensor
    num_anchors: int
    host: HostValues
    phase: str = "all"
    processes: Processes | None = None
    num_memory: int = 0

    @cached_property
    def anchors(self) -> Tensor:
        """The first A embeddings: (A, D). All terms share this view, which fixes the order of the gradient's sums."""
        return self.embeddings[: self.num_anchors]

    @property
    def anchor_labels(self) -> Tensor:
        """Labels of the anchors: (A,) long, on the device of the embeddings."""
        return self.labels[: self.num_anchors]

    @property
    def nodes(self) -> Tensor:
        """All embeddings, references without gradient: (N, D) in float32 or wider."""
        nodes = torch.cat([self.anchors, self.embeddings[self.num_anchors :].detach()])
        return nodes.to(compute_dtype(nodes))

    @property
    def edges(self) -> EdgeList | None:
        """The edges of the graph that this process computes; None for those of all pairs of nodes."""
        if self.processes is None and not self.num_memory:
            return None
        return EdgeList.share(len(self.embeddings), self.processes, self.num_memory)

    def wants(self, objective: str) -> bool:
        """Return whether an objective counts in this `phase`. Others need not be computed.

        `"generation_loss"` belongs to the phase `"generation"`, every other objective to `"embedding"`.
        """
        return self.phase == "all" or (objective == "generation_loss") == (self.phase == "generation")

    def labels_on_host(self) -> Tensor:
        """Return the labels on the host, (N,) long; wait for the device at the first call.

        Raises:
            ValueError: a label is out of range, or a value of the embeddings is not finite or too large.
        """
        return self.host.wait()

    def finish(self) -> None:
        """Raise what `labels_on_host` raises, for a generator that did not ask for the labels."""
        self.host.wait()
