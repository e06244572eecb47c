"""Warn if most anchors get no synthetic negatives."""

import warnings

from ..generators.base_generator import SyntheticNegatives
from ..generators.batch import Batch

PATIENCE = 20  # batches in a row before the warning
FEW_NEGATIVES = (
    "In {batches} batches in a row most anchors had no synthetic negatives ({without} of {anchors} in the last one). "
    "An anchor needs another sample of its class in the batch, and a sample of another class. Draw batches by "
    "pytorch_metric_learning.samplers.MPerClassSampler(labels, m=3, batch_size=...), not by shuffle=True; or make "
    "them larger."
)


class AnchorWatch:
    """Warn once if, batch after batch, more than half of the anchors have no synthetic negatives.

    One such batch is fine. Many teach the generator little, and the loss is then nearly the wrapped loss alone. What is
    counted here is known on the host: no device is waited for.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._warned = False

    def observe(self, batch: Batch, negatives: SyntheticNegatives) -> None:
        """Count a training batch, and warn if due."""
        without = (negatives.num_skipped_anchors or 0) if len(negatives) else batch.num_anchors
        self._in_a_row = self._in_a_row + 1 if 2 * without > batch.num_anchors else 0
        if self._in_a_row < PATIENCE or self._warned:
            return
        self._warned = True
        message = FEW_NEGATIVES.format(batches=PATIENCE, without=without, anchors=batch.num_anchors)
        warnings.warn(message, UserWarning, stacklevel=7)
