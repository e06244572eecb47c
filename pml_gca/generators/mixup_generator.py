"""Mixed negatives after Metrix: Venkataramanan et al., ICLR 2022, https://arxiv.org/abs/2106.04990"""

import math

import torch
from torch import Tensor

from ..utils.norms import unit
from ..utils.validation import check_flag, check_number
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .directions import mix, mix_directions
from .planning import NegativePairs, on_device, plan_negative_pairs


class MixupGenerator(BaseGenerator):
    r"""Negatives mixed with positives, after Metrix: the half of it that negatives alone can carry.

    In Metrix an anchor meets mixtures of a positive p and a negative n,

    $$v = \lambda\,p + (1 - \lambda)\,n, \quad \lambda \sim \text{Beta}(a, a), \quad a = 2$$

    each counted as a negative with weight 1 − λ and as a positive with weight λ. A synthetic negative here has no
    weight, and is no positive. The draw carries the weight instead: λ ~ Beta(a, a + 1), whose density is that of
    Beta(a, a) times 2 (1 − λ). There is one mixture for every anchor and negative sample, with a positive drawn at
    random. Metrix is written for losses that add up a function of each negative. For these, the sum over the mixtures
    has the expectation of Metrix's weighted sum over negatives, times 2 over the number of positives.

    This is the negative half of Metrix on embeddings, and no more. Mixtures are no positives. Pairs of other kinds,
    inputs and hidden features are not mixed. None are chosen by hardness. The term has the weight 1 beside the metric
    loss. For proxy and classification losses a mixture is one more sample of n's class, although p has the larger
    share in 5 of 16 draws.

    Anchors without a positive generate nothing, and are counted.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        concentration: a > 0. Large values draw λ near ½, small ones near 0 and 1.
        normalize: mix directions: p, n and the mixture have unit length. The mixture is then scaled to
            λ ‖p‖ + (1 − λ) ‖n‖, the scale that losses on unnormalised embeddings expect. Else mix the embeddings as
            they are.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = MixupGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 4 negatives each
        torch.Size([24, 8])
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        concentration: float = 2.0,
        normalize: bool = True,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_number("concentration", concentration)
        check_flag("normalize", normalize)
        if concentration == 0:
            raise ValueError(f"concentration must be above 0, got {concentration}")
        self.concentration = float(concentration)
        self.normalize = normalize

    def generate(
        self,
        batch: Batch,
        metric_level: Tensor | float = math.inf,
        *,
        shares: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> SyntheticNegatives:
        """Mix negatives with positives; the metric level has no influence.

        Args:
            batch: of P pairs of an anchor and a negative, ordered by anchor and then by negative.
            metric_level: not used.
            shares: (P,) in [0, 1], instead of drawn λ.
            steps: (P,) long, instead of drawn positives: how many positives to skip after the anchor's next one, from 0
                to the number of positives − 1.
        """
        self.reset_stats()
        nodes = batch.nodes
        plan = on_device(plan_negative_pairs(batch.labels_on_host(), batch.num_anchors), nodes.device)
        if shares is None:
            shares = self._draw_shares(nodes, plan)
        if steps is None:
            steps = draw_steps(plan)
        share, ends = shares.to(nodes.dtype)[:, None], (plan.positives_after(steps), plan.negatives)
        if self.normalize:
            directions, lengths = unit(nodes)
            positive, negative = ((directions.index_select(0, end), lengths.index_select(0, end)) for end in ends)
            synthetic = mix_directions(positive, negative, share)
        else:
            positives, negatives = (nodes.index_select(0, end) for end in ends)
            synthetic = mix(positives, negatives, share, normalize=False)
        self.observe(num_negatives=len(synthetic), num_skipped_anchors=plan.num_skipped_anchors)
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype),
            plan.labels,
            plan.anchors,
            num_skipped_anchors=plan.num_skipped_anchors,
        )

    def _draw_shares(self, nodes: Tensor, plan: NegativePairs) -> Tensor:
        """Draw λ of each pair: (P,)."""
        a = nodes.new_full((len(plan.anchors),), self.concentration)
        # torch's check of the arguments would wait for the device.
        return torch.distributions.Beta(a, a + 1, validate_args=False).sample()


def draw_steps(plan: NegativePairs) -> Tensor:
    """Draw a positive of each pair's anchor, all equally likely: (P,) long, as `positives_after` takes them."""
    count = plan.num_positives[plan.anchors]
    draws = torch.rand(len(count), dtype=torch.float32, device=count.device)
    return torch.minimum((draws * count).long(), count - 1)  # rounding may reach the count itself
