"""PML's wrappers of losses, here also for losses with a generator; PML checks the inner loss by its class name."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..utils.batch_checks import as_long
from .hard_negative_generation_loss import HardNegativeGenerationLoss


class TakesGenerationLoss:
    """Let a PML wrapper take a `HardNegativeGenerationLoss` around each loss that it supports."""

    WITHOUT_GATHERING: str
    WITHOUT_MEMORY: str
    INSTEAD: str

    def __init__(self, loss: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(loss, type):
            raise TypeError(f"loss must be a loss, got the class {loss.__name__}. Make one: {loss.__name__}(...)")
        if isinstance(loss, BaseGenerator):
            wrapped = "HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)"
            raise TypeError(f"loss must be a loss, got the generator {type(loss).__name__}: give {wrapped}")
        if isinstance(loss, HardNegativeGenerationLoss):
            self.check_loss_support(type(loss.loss).__name__)
            if loss.gathering.enabled:
                raise ValueError(self.WITHOUT_GATHERING)
            if loss.memory is not None:
                raise ValueError(f"{self.WITHOUT_MEMORY}; got memory_size={loss.memory.size}")
        super().__init__(loss, *args, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Check a class name, as PML does.

        Raises:
            TypeError: PML does not support the class.
        """
        if loss_name == HardNegativeGenerationLoss.__name__:
            return
        try:
            super().check_loss_support(loss_name)  # type: ignore[misc]
        except Exception as error:  # PML raises no other class
            raise TypeError(f"PML's {cls.__name__} does not take {loss_name}. {cls.INSTEAD}") from error


class SelfSupervisedLoss(TakesGenerationLoss, losses.SelfSupervisedLoss):
    """PML's loss of two views, `loss(embeddings, ref_emb)`, also around a `HardNegativeGenerationLoss`.

    Each sample and its view are a class. The generator's `num_classes` must therefore be the largest batch size.

    Raises:
        TypeError: PML does not support the loss, or the one inside it; the message says what to write instead.
        ValueError: the loss inside it gathers batches.
    """

    INSTEAD = (
        "Call the loss itself, with each sample and its view as a class: labels = torch.arange(len(embeddings)); "
        "loss(torch.cat([embeddings, views]), labels.repeat(2))"
    )
    WITHOUT_GATHERING = (
        "SelfSupervisedLoss numbers the samples of each process from 0, so different samples would share a label. Call "
        "the loss itself: labels = rank * batch_size + torch.arange(batch_size); loss(torch.cat([embeddings, views]), "
        "labels.repeat(2))"
    )
    WITHOUT_MEMORY = (
        "SelfSupervisedLoss numbers the samples of each batch from 0, so different samples would share a label in a "
        "memory. Build the loss with memory_size=0"
    )

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """Compute PML's loss of (B, D) embeddings and their (B, D) views.

        Raises:
            ValueError: in training, the batch is larger than the generator's `num_classes`.
        """
        if isinstance(self.loss, HardNegativeGenerationLoss) and self.loss.training and torch.is_grad_enabled():
            most = self.loss.generator.num_classes
            if len(embeddings) > most:
                raise ValueError(
                    f"embeddings must be at most {most}, the generator's num_classes, as each sample and its view are "
                    f"a class here; got {len(embeddings)}. Make the generator for the largest batch size: "
                    f"num_classes={len(embeddings)}"
                )
        value: Tensor = super().forward(embeddings, ref_emb)
        return value


class CrossBatchMemory(TakesGenerationLoss, losses.CrossBatchMemory):
    """PML's memory of earlier batches, also around a `HardNegativeGenerationLoss`.

    Remembered embeddings become nodes of the graph, which grows with the square of its nodes. Use a `memory_size` of
    a few hundred; for more, that of `HardNegativeGenerationLoss` itself, without this wrapper. A batch that is refused,
    or has no gradients (`torch.no_grad()`), is not remembered.

    Raises:
        TypeError: PML does not support the loss, or the one inside it; the message says what to write instead.
        ValueError: the loss inside it gathers batches.
    """

    INSTEAD = (
        "Give the loss a memory of its own, which any loss may have: "
        "HardNegativeGenerationLoss(loss, generator, memory_size=256)"
    )
    WITHOUT_GATHERING = (
        "CrossBatchMemory pairs the rows of its own process with its memory, and the loss inside it would gather those "
        "of all processes. Give the loss a memory of its own, which all processes share: "
        "HardNegativeGenerationLoss(..., gather_across_devices=True, memory_size=256)"
    )
    WITHOUT_MEMORY = "CrossBatchMemory is a memory: build the loss inside it with memory_size=0, or use that loss alone"

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
        """Compute PML's loss of the batch and the memory; arguments are PML's."""
        memory = self.embedding_memory.clone(), self.label_memory.clone(), self.queue_idx, self.has_been_filled
        remember = False
        try:
            value: Tensor = super().forward(embeddings, as_long(labels), indices_tuple, enqueue_mask)
            remember = torch.is_grad_enabled()
        finally:
            if not remember:
                self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled = memory
        return value
