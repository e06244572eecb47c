"""Mine real negatives by learned correlations."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn

from ..distributed.arguments import CallArguments, Limits
from ..distributed.exchange import take_from_first
from ..distributed.gathering import gathered
from ..distributed.processes import Gathering
from ..generators import GlobalCorrelationGenerator
from ..generators.checks import check_generator
from ..losses.references import join_references
from ..utils.batch_checks import check_labels, check_not_swapped
from ..utils.callers import called_from
from ..utils.validation import check_pml_arguments, check_positive_int

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WRAPPER = "pytorch_metric_learning.utils.distributed"
REFUSED_INSIDE = (
    "GlobalCorrelationMiner(..., gather_across_devices=True) gathers the batch of all processes itself, and PML's "
    "DistributedMinerWrapper would do so once more. Take the wrapper away: call miner(embeddings, labels) with the "
    "rows of each process"
)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode within this context; every submodule then gets its mode back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


class GlobalCorrelationMiner(BaseMiner):
    """Mine real pairs or triplets: all positives, and the negatives that the learned correlations find hardest.

    A coefficient λ near 0 pulls a channel of the negative all the way to the distance of the anchor's positive; near
    1 the channel stays. For each anchor the negatives with the smallest mean coefficient are mined. Propagation runs
    in evaluation mode and without gradient; the generator keeps its mode and statistics.

    Args:
        generator: its correlations decide; best the one that the loss trains. The miner does not own, train or save
            it.
        negatives_per_anchor: number of negatives to mine for each anchor.
        output: `"triplets"`, each positive with each mined negative, or `"pairs"`.
        gather_across_devices: with `torch.distributed`, mine the rows of all processes, each of which calls the miner
            with its own rows. All return the same indices, of the global batch, for a loss that gathers likewise.
        process_group: of `torch.distributed`, whose processes gather; None for all.
        **kwargs: `collect_stats` and others, as for any PML miner.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Shapes:
        `miner(embeddings (B, D), labels (B,))` returns PML's indices, long: (a, p, n) or (a1, p, a2, n). With
        `ref_emb (R, D), ref_labels (R,)` positives and negatives are rows of the references.
    """

    def __init__(
        self,
        generator: GlobalCorrelationGenerator,
        *,
        negatives_per_anchor: int = 1,
        output: Literal["triplets", "pairs"] = "triplets",
        gather_across_devices: bool = False,
        process_group: "ProcessGroup | None" = None,
        **kwargs: Any,
    ) -> None:
        check_generator(generator, GlobalCorrelationGenerator)
        check_positive_int("negatives_per_anchor", negatives_per_anchor)
        if output not in ("triplets", "pairs"):
            raise ValueError(f"output must be 'triplets' or 'pairs', got {output!r}")
        check_pml_arguments(kwargs)
        gathering = Gathering(gather_across_devices, process_group)
        super().__init__(**kwargs)
        self.gathering = gathering
        self._generator = (generator,)  # a tuple hides it from PyTorch: the loss owns it
        self.negatives_per_anchor = negatives_per_anchor
        self.output = output

    @property
    def generator(self) -> GlobalCorrelationGenerator:
        """The generator whose correlations decide."""
        return self._generator[0]

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the mined indices, see the class.

        Raises:
            TypeError, ValueError: an argument is not as in the class; if batches are gathered, in any process, and then
                in all. Or the miner gathers batches, and is inside PML's `DistributedMinerWrapper`.
        """
        if self.gathering.enabled:
            return self._mine_gathered(CallArguments(embeddings, labels, None, ref_emb, ref_labels))
        check_not_swapped(embeddings, labels)
        mined: tuple[Tensor, ...] = super().forward(embeddings, labels, ref_emb, ref_labels)
        return mined

    @torch.compiler.disable
    def _mine_gathered(self, given: CallArguments) -> tuple[Tensor, ...]:
        """Mine the rows of all processes."""
        if called_from(WRAPPER):
            raise ValueError(REFUSED_INSIDE)
        limits = Limits(self.generator.num_classes, self.generator.largest_value)
        check = partial(check_not_swapped, given.embeddings, given.labels)
        with gathered(self.gathering, self.generator, given, mode="mining", check=check, limits=limits) as whole:
            mined: tuple[Tensor, ...] = super().forward(*whole[:2], *whole[3:])
        processes = self.gathering.processes()
        # On GPUs rounding differs from one process to the next, and may decide which negative is hardest.
        return mined if processes is None else take_from_first(mined, processes)

    @torch.compiler.disable
    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """Return the mined indices, see the class; PML's interface."""
        check_labels(labels, len(embeddings))
        has_references = ref_emb is not embeddings or ref_labels is not labels
        nodes, labels = embeddings, labels.long()  # torch supports few operations on unsigned integers
        node_labels, node_of = labels, torch.arange(len(labels), device=labels.device)
        if has_references:
            self.generator.batch(ref_emb, ref_labels, names=("ref_emb", "ref_labels")).finish()
            nodes, node_labels, node_of = join_references(embeddings, labels, ref_emb, ref_labels)
        with evaluating(self.generator):
            coefficients = self.generator.correlate(nodes, node_labels).mean_coefficients()[: len(labels), node_of]

        same = labels[:, None] == node_labels[node_of]
        is_anchor = torch.arange(len(labels), device=labels.device)[:, None] == node_of
        anchors, positives = (same & ~is_anchor).nonzero(as_tuple=True)
        count = min(self.negatives_per_anchor, coefficients.shape[1])
        chosen = coefficients.masked_fill(same, float("inf")).topk(count, dim=1, largest=False).indices
        mined = torch.zeros_like(same).scatter(1, chosen, True) & ~same
        if self.output == "pairs":
            return anchors, positives, *mined.nonzero(as_tuple=True)
        pair, negatives = mined[anchors].nonzero(as_tuple=True)
        return anchors[pair], positives[pair], negatives
