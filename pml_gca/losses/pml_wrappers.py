"""PML's losses around other losses. PML checks those by class name; here one with a generator passes, too."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from ..utils.validation import as_long
from .hard_negative_generation_loss import HardNegativeGenerationLoss


class TakesGenerationLoss:
    """Let a wrapper of PML take a ``HardNegativeGenerationLoss`` around each loss that it takes."""

    def __init__(self, loss: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(loss, HardNegativeGenerationLoss):
            self.check_loss_support(type(loss.loss).__name__)
        super().__init__(loss, *args, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """PML's check of a class's name.

        Raises:
            Exception: PML does not support it.
        """
        if loss_name != HardNegativeGenerationLoss.__name__:
            super().check_loss_support(loss_name)  # type: ignore[misc]


class SelfSupervisedLoss(TakesGenerationLoss, losses.SelfSupervisedLoss):
    """PML's loss of two views, ``loss(embeddings, ref_emb)``, around a ``HardNegativeGenerationLoss``, too.

    Each sample and its view are a class, so that the generator's ``num_classes`` is the largest batch size.

    Raises:
        Exception: PML does not support the loss, or the one inside it.
    """

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """As PML's.

        Raises:
            ValueError: in training, the batch is larger than the generator's ``num_classes``.
        """
        if isinstance(self.loss, HardNegativeGenerationLoss) and self.loss.training and torch.is_grad_enabled():
            most = self.loss.generator.num_classes
            if len(embeddings) > most:
                raise ValueError(
                    f"embeddings must be at most {most}, the generator's num_classes, as each sample and its view are "
                    f"a class here; got {len(embeddings)}. Give the generator the largest batch size: "
                    f"num_classes={len(embeddings)}"
                )
        value: Tensor = super().forward(embeddings, ref_emb)
        return value


class CrossBatchMemory(TakesGenerationLoss, losses.CrossBatchMemory):
    """PML's memory of earlier batches, around a ``HardNegativeGenerationLoss``, too.

    What it remembers becomes nodes of the graph, which grows with the square of its nodes: take a ``memory_size`` of a
    few hundred. A batch that is refused, and one without gradients (``torch.no_grad()``), is not remembered.

    Raises:
        Exception: PML does not support the loss, or the one inside it.
    """

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: int
    has_been_filled: bool

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """As PML's."""
        memory = self.embedding_memory.clone(), self.label_memory.clone(), self.queue_idx, self.has_been_filled
        remember = False
        try:
            value: Tensor = super().forward(embeddings, as_long(labels), indices_tuple, enqueue_mask)
            remember = torch.is_grad_enabled()
        finally:
            if not remember:
                self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled = memory
        return value
