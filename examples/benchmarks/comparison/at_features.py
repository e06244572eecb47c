"""Synthetic negatives made of the backbone's features, which the head then embeds."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pml_gca.generators import BaseGenerator
from pml_gca.losses import synthetic_loss
from pml_gca.losses.families import SyntheticBatch
from pml_gca.losses.loss_wrapper import without_regularizers


def embed_alike(head: Any, rows: Tensor, batch: Tensor) -> Tensor:
    """Embed (R, F) rows as a head of BatchNorm and further layers embeds a batch, by the statistics of the batch.

    Rows that were pulled together vary less: normalised by themselves, they would be pulled apart again. They leave no
    trace in the running statistics.
    """
    norm, *rest = head
    mean, variance = batch.mean(dim=0), batch.var(dim=0, unbiased=False)
    normalised = (rows - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    embedded: Tensor = nn.Sequential(*rest)(normalised)
    return embedded


def loss_at_features(
    loss: nn.Module, generator: BaseGenerator, network: Any, features: Tensor, embeddings: Tensor, labels: Tensor
) -> Tensor:
    """Return J_syn with negatives that a generator makes of features.

    Args:
        loss: of PML.
        generator: without objectives; its channels are the features.
        network: its `head` embeds them.
        features: (B, F), what the head took.
        embeddings: (B, D), what it made of them.
        labels: (B,) long.
    """
    made = generator(features, labels)
    made = replace(made, embeddings=embed_alike(network.head, made.embeddings, features))
    with without_regularizers(loss):
        return synthetic_loss(loss, SyntheticBatch(embeddings, labels, embeddings, labels, made))
