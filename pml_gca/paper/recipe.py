"""The settings of one experiment of the paper, and changes of them in words, as on a command line."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, get_args

import torch

from ..generators import GlobalCorrelationGenerator
from ..utils.validation import check_flag, check_number, check_positive_int, check_string, make_plain, suggestion
from .backbones import check_frozen

OF_THE_GRAPH = ("num_heads", "alpha", "classification_weight", "similarity_weight", "diversity_weight")
"""Fields of a recipe that are keywords of `GlobalCorrelationGenerator`, beside `num_layers`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one experiment of the paper.

    Attributes:
        name: e.g. `"resnet50_cub"`.
        backbone: see `build_backbone`.
        dataset: see `load_benchmark`.
        embedding_size: channels D.
        num_layers: K rounds of propagation.
        num_heads: H of the node attention.
        alpha: α in e^{-α/L}. It pulls the negatives in as the metric level L falls.
        beta: β in 1 - e^{-β/G}. It weights the negatives as the generator level G falls.
        classification_weight, similarity_weight, diversity_weight: w_c, w_s, w_d of the generator's objective.
        embedder_lr: learning rate of backbone and head.
        generator_lr: learning rate of the generator's propagation. It falls to 0 along a cosine.
        classes_per_batch, samples_per_class: the composition of a training batch.
        epochs: passes over as many images as the training set has.
        lr_decay_epochs: number of epochs after which `embedder_lr` is multiplied by `lr_decay`, again and again.
        warmup_epochs: first epochs, in which only the head of the image model learns.
        frozen: the part of the backbone that never learns: `"batch_norm"`, `"patch_embedding"` or None.
        lr_decay: see `lr_decay_epochs`.
        classifier_lr, classifier_weight_decay: of the generator's auxiliary classifier.
        proxy_lr_factor: learning rate of a loss's own parameters, such as proxies, in units of `embedder_lr`.
        weight_decay: of everything else.
        orthogonal_head: whether the head's linear layer starts with orthogonal weights and a bias of 0.
        gradient_clip: each value of a gradient is clipped to plus or minus this. Above 0.
        xavier_attention: whether the generator's attention starts as published (see `initialize_attention`) or as
            PyTorch's linear layers do.
        generator_options: further keywords of `GlobalCorrelationGenerator`, such as `{"merging": "mean"}`.

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range, or the generator refuses it.
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
            raise ValueError("gradient_clip must be above 0, or nothing learns; to clip nothing, set it to 1e9 or so")
        check_frozen(self.frozen)
        if not isinstance(self.generator_options, Mapping):
            raise TypeError(f"generator_options must be a mapping, got {type(self.generator_options).__name__}")
        for name in self.generator_options:
            if name not in GENERATOR_OPTIONS:
                raise ValueError(
                    f"generator_options takes {', '.join(GENERATOR_OPTIONS)}, got {name!r}"
                    f"{suggestion(name, GENERATOR_OPTIONS)}; settings that are fields of the recipe belong there"
                )
        make_plain(self)
        with torch.device("meta"):  # checks the rest without taking memory
            GlobalCorrelationGenerator(2, self.embedding_size, num_layers=0, **self.generator_settings)

    @property
    def batch_size(self) -> int:
        """Images of a training batch."""
        return self.classes_per_batch * self.samples_per_class

    @property
    def generator_settings(self) -> dict[str, Any]:
        """Keywords of `GlobalCorrelationGenerator`, without `num_layers`: a checkpoint's parameters tell that one."""
        return {**{name: getattr(self, name) for name in OF_THE_GRAPH}, **self.generator_options}

    def settings(self) -> dict[str, Any]:
        """Return all fields, with the generator's options in one flat dict. Options at their default are left out."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        options = values.pop("generator_options")
        return values | {k: v for k, v in options.items() if v != GENERATOR_OPTIONS[k].default}


GENERATOR_OPTIONS = {
    name: option
    for name, option in inspect.signature(GlobalCorrelationGenerator).parameters.items()
    if option.kind is option.KEYWORD_ONLY and name not in Recipe.__dataclass_fields__
}
"""The keywords that `generator_options` may hold, by name, with type and default."""

WORDS = {"true": True, "false": False}
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "none", str: "text"}


def changed_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Return the recipe with some fields, or options of its generator, changed.

    Args:
        recipe: the recipe to start from.
        changes: each `"FIELD=VALUE"`, such as `"alpha=3"`, `"frozen=none"` or `"merging=mean"`. If a field
            comes more than once, the last value counts.

    Raises:
        TypeError, ValueError: a word is not of this form, or as for `Recipe`.
    """
    kinds = {f.name: f.type for f in fields(recipe) if f.name not in ("name", "generator_options")}
    kinds |= {name: option.annotation for name, option in GENERATOR_OPTIONS.items()}
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in kinds:
            meant = suggestion(name, kinds)
            raise ValueError(f"--set takes FIELD=VALUE, with FIELD one of {', '.join(kinds)}; got {change!r}{meant}")
        values[name] = read_value(name, text, kinds[name])
    options = {name: values.pop(name) for name in GENERATOR_OPTIONS if name in values}
    return replace(recipe, **values, generator_options={**recipe.generator_options, **options})


def read_value(name: str, text: str, kind: Any) -> Any:
    """Return a word as a value of the type `kind`, or of one of its types if it is a union.

    Raises:
        ValueError: the word fits no type. The message says what `name` takes.
    """
    kinds = get_args(kind) or (kind,)
    word = text.strip()
    if NoneType in kinds and word.lower() == "none":
        return None
    if bool in kinds and word.lower() in WORDS:
        return WORDS[word.lower()]
    for number in (int, float):
        if number in kinds:
            try:
                return number(word)
            except ValueError:
                pass
    if str in kinds and word:
        return word
    expected = " or ".join(words for known, words in EXPECTED.items() if known in kinds)
    raise ValueError(f"--set {name} takes {expected}, got {text!r}")
