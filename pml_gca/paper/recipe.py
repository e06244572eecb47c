"""What one of the paper's experiments is made of."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..generators import GlobalCorrelationGenerator
from ..utils.text import suggestion
from ..utils.validation import check_flag, check_number, check_positive_int, check_string, make_plain

BATCH_NORM, PATCH_EMBEDDING = "batch_norm", "patch_embedding"


@dataclass(frozen=True)
class Recipe:
    """What one of the paper's experiments is made of.

    Attributes:
        name: e.g. ``"resnet50_cub"``.
        backbone: see `build_backbone`.
        dataset: see `load_benchmark`.
        embedding_size: channels D.
        num_layers: K rounds of propagation.
        num_heads: H of the node attention.
        alpha: α in e^{-α/L}, which pulls negatives in as the metric level L falls.
        beta: β in 1 - e^{-β/G}, which weights them as the generator level G falls.
        classification_weight, similarity_weight, diversity_weight: w_c, w_s, w_d of the generator's objective.
        embedder_lr: learning rate of backbone and head.
        generator_lr: of the generator's propagation; falls to 0 along a cosine.
        classes_per_batch, samples_per_class: of a training batch.
        epochs: passes over as many images as the training set has.
        lr_decay_epochs: ``embedder_lr`` is multiplied by ``lr_decay`` every so many epochs.
        warmup_epochs: first epochs, in which of the image model only the head learns.
        frozen: what of the backbone never learns: ``"batch_norm"``, ``"patch_embedding"`` or None.
        lr_decay: see ``lr_decay_epochs``.
        classifier_lr, classifier_weight_decay: of the generator's auxiliary classifier.
        proxy_lr_factor: learning rate of a loss's own parameters, such as proxies, in units of ``embedder_lr``.
        weight_decay: of everything else.
        orthogonal_head: whether the head's linear layer begins with orthogonal weights, and no bias.
        gradient_clip: gradients are clipped to plus or minus this, value by value; above 0.
        xavier_attention: whether the generator's attention starts as published, see
            `initialize_attention`, or as PyTorch's linear layers do.
        generator_options: further keywords of `GlobalCorrelationGenerator`, such as
            ``{"coefficients": 1.0, "merging": "hardest"}``, that take the method apart.

    Raises:
        TypeError, ValueError: a field is of the wrong type, or out of range, or the generator does not take it.
    """

    name: str
    backbone: str
    dataset: str
    embedding_size: int
    num_layers: int
    num_heads: int
    alpha: float
    beta: float
    classification_weight: float
    similarity_weight: float
    diversity_weight: float
    embedder_lr: float
    generator_lr: float
    classes_per_batch: int
    samples_per_class: int
    epochs: int
    lr_decay_epochs: int
    warmup_epochs: int
    frozen: str | None
    lr_decay: float = 0.5
    classifier_lr: float = 1e-3
    classifier_weight_decay: float = 1e-2
    proxy_lr_factor: float = 100.0
    weight_decay: float = 1e-4
    gradient_clip: float = 10.0
    orthogonal_head: bool = False
    xavier_attention: bool = True
    generator_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            if own.type is str:
                check_string(own.name, value)
            elif own.type is float:
                check_number(own.name, value)
            elif own.type is bool:
                check_flag(own.name, value)
            elif own.type is int and not (own.name == "warmup_epochs" and type(value) is int and value == 0):
                check_positive_int(own.name, value, minimum=0 if own.name == "num_layers" else 1)
        for name in ("classes_per_batch", "samples_per_class"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, or no batch has both positives and negatives, got 1")
        if self.gradient_clip == 0:
            raise ValueError(
                "gradient_clip must be above 0, or nothing learns; a large one, such as 1e9, clips nothing"
            )
        if self.frozen not in (BATCH_NORM, PATCH_EMBEDDING, None):
            raise ValueError(f"frozen must be {BATCH_NORM!r}, {PATCH_EMBEDDING!r} or None, got {self.frozen!r}")
        if not isinstance(self.generator_options, Mapping):
            raise TypeError(f"generator_options must be a mapping, got {type(self.generator_options).__name__}")
        for name in self.generator_options:
            if name not in GENERATOR_OPTIONS:
                raise ValueError(
                    f"generator_options must be of {', '.join(GENERATOR_OPTIONS)}, got {name!r}"
                    f"{suggestion(name, GENERATOR_OPTIONS)}; what the recipe has a field for is set there"
                )
        make_plain(self)
        with torch.device("meta"):  # checks the rest, and takes no memory
            GlobalCorrelationGenerator(2, self.embedding_size, num_layers=0, **self.generator_settings)

    @property
    def batch_size(self) -> int:
        """Images of a training batch."""
        return self.classes_per_batch * self.samples_per_class

    @property
    def generator_settings(self) -> dict[str, Any]:
        """Keywords of ``GlobalCorrelationGenerator`` that no parameter tells; ``num_layers`` is the one that does."""
        names = ("num_heads", "alpha", "classification_weight", "similarity_weight", "diversity_weight")
        return {**{name: getattr(self, name) for name in names}, **self.generator_options}

    def settings(self) -> dict[str, Any]:
        """All fields, and in the place of ``generator_options`` those that are not the generator's defaults."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        options = values.pop("generator_options")
        return values | {k: v for k, v in options.items() if v != GENERATOR_OPTIONS[k].default}


GENERATOR_OPTIONS = {
    name: option
    for name, option in inspect.signature(GlobalCorrelationGenerator).parameters.items()
    if option.kind is option.KEYWORD_ONLY and name not in Recipe.__dataclass_fields__
}
"""What ``generator_options`` may hold: by name, with type and default."""
