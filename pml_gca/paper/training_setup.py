"""Models, loss, optimizers, schedules and sampler of a training run, as PML's trainers take them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import samplers
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ..correlation.blocks import initialize_attention
from ..datasets import Benchmark
from ..generators import NAMED_GENERATORS, BaseGenerator, GlobalCorrelationGenerator
from ..losses import HardNegativeGenerationLoss
from ..names import LOSS_ALONE
from ..trainers import AlternatingTrainer, AutocastTrainer
from ..utils.validation import suggestion
from .backbones import build_backbone, build_head, freeze
from .evaluation import check_split
from .m_per_class_covering_sampler import MPerClassCoveringSampler
from .options import Options
from .recipe import GENERATOR_OPTIONS, OF_THE_GRAPH, Recipe

CONTROLS = ("constant", "random")
"""Generators that are GCA-HNG with other coefficients λ."""


@dataclass
class TrainingSetup:
    """The arguments of PML's trainers, under PML's names."""

    models: dict[str, nn.Module]
    loss_funcs: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    lr_schedulers: dict[str, Any]
    gradient_clippers: dict[str, Callable[[], Any]]

    @property
    def generator(self) -> BaseGenerator | None:
        """The generator of hard negatives, if there is one."""
        return getattr(self.loss_funcs["metric_loss"], "generator", None)

    def with_state(self) -> dict[str, Any]:
        """Return everything that a checkpoint must hold, by name."""
        groups = (self.models, self.loss_funcs, self.optimizers, self.lr_schedulers)
        return {name: part for group in groups for name, part in group.items()}

    def trainer(self, recipe: Recipe, options: Options, **kwargs: Any) -> AutocastTrainer:
        """Return the trainer of the chosen schedule. A generator without an objective has nothing to alternate with."""
        alternates = self.generator is not None and self.generator.has_objective and options.schedule == "alternating"
        return (AlternatingTrainer if alternates else AutocastTrainer)(
            models=self.models,
            optimizers=self.optimizers,
            loss_funcs=self.loss_funcs,
            lr_schedulers=self.lr_schedulers,
            gradient_clippers=self.gradient_clippers,
            batch_size=recipe.batch_size,
            freeze_trunk_batchnorm=False,  # the backbone keeps its frozen parts frozen by itself
            data_device=options.torch_device,
            dataloader_num_workers=options.workers,
            autocast_dtype=torch.bfloat16 if options.amp else None,
            **kwargs,
        )


def cosine_to_zero(epochs: int, epoch: int) -> float:
    """Return the factor of a learning rate that falls to 0 along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))


def stepwise_decay(recipe: Recipe, epoch: int) -> float:
    """Return the factor of the embedder's learning rate, which falls every `lr_decay_epochs`."""
    return float(recipe.lr_decay ** (epoch // recipe.lr_decay_epochs))


def constant(epoch: int) -> float:
    """Return 1: no schedule."""
    return 1.0


def clip_values(parameters: list[nn.Parameter], limit: float) -> None:
    """Clip gradients value by value. torch's function alone fails if no parameter has a gradient, as in a warm-up."""
    if any(p.grad is not None for p in parameters):
        clip_grad_value_(parameters, limit)


def build_training_setup(
    recipe: Recipe, options: Options, num_classes: int, *, backbone: nn.Module | None = None
) -> TrainingSetup:
    """Build everything that a recipe trains, on the device of `options`.

    Args:
        recipe: the paper's settings, or yours.
        options: the choices that the recipe leaves open.
        num_classes: number of training classes.
        backbone: an image model of your own instead of the recipe's, with an attribute `num_features`.

    Raises:
        ValueError: as for `build_backbone`, the generator and the loss.
    """
    device = options.torch_device
    if backbone is None:
        backbone = build_backbone(
            recipe.backbone, pretrained=options.pretrained, frozen=recipe.frozen, image_size=options.image_size
        )
    else:
        freeze(backbone, recipe.frozen)
    num_features: Any = backbone.num_features
    head = build_head(num_features, recipe.embedding_size, orthogonal=recipe.orthogonal_head)
    models = {"trunk": backbone.to(device), "embedder": head.to(device)}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    schedulers: dict[str, Any] = {}
    for name, model in models.items():
        learned = [p for p in model.parameters() if p.requires_grad]
        if learned:
            optimizer = AdamW(learned, lr=recipe.embedder_lr, weight_decay=recipe.weight_decay)
            optimizers[f"{name}_optimizer"] = optimizer
            schedulers[f"{name}_scheduler_by_epoch"] = LambdaLR(optimizer, partial(stepwise_decay, recipe))

    loss = options.build_loss(num_classes, recipe.embedding_size, recipe.samples_per_class)
    own_lr = recipe.proxy_lr_factor * recipe.embedder_lr
    own = list(loss.parameters())
    groups: list[dict[str, Any]] = [{"params": own, "lr": own_lr}] if own else []
    factors: list[Callable[[int], float]] = [partial(stepwise_decay, recipe)] if own else []
    if options.generator != LOSS_ALONE:
        generator = build_generator(recipe, options, num_classes)
        loss = HardNegativeGenerationLoss(loss, generator, beta=recipe.beta, level_momentum=None)
        groups = loss.parameter_groups(recipe.generator_lr, classifier_lr=recipe.classifier_lr, loss_lr=own_lr)
        of_generator = groups[: len(groups) - len(factors)]
        for group in of_generator[1:]:  # after what generates, its auxiliary classifier
            group["weight_decay"] = recipe.classifier_weight_decay
        first = [partial(cosine_to_zero, recipe.epochs) for _ in of_generator[:1]]
        factors = [*first, *(constant for _ in of_generator[1:]), *factors]
    loss = loss.to(device)
    if any(group["params"] for group in groups):
        optimizer = optimizers["metric_loss_optimizer"] = AdamW(groups, weight_decay=recipe.weight_decay)
        schedulers["metric_loss_scheduler_by_epoch"] = LambdaLR(optimizer, factors)
    clipped = {**models, "metric_loss": loss}
    return TrainingSetup(
        models=models,
        loss_funcs={"metric_loss": loss},
        optimizers=optimizers,
        lr_schedulers=schedulers,
        gradient_clippers={
            f"{name}_grad_clipper": partial(clip_values, list(module.parameters()), recipe.gradient_clip)
            for name, module in clipped.items()
        },
    )


def build_generator(recipe: Recipe, options: Options, num_classes: int) -> BaseGenerator:
    """Return the generator of these options; of the recipe's settings it gets those in `taken_settings`."""
    given = {"num_layers": recipe.num_layers, **recipe.generator_settings}
    taken = {name: given[name] for name in taken_settings(options.generator) if name in given}
    generator = NAMED_GENERATORS[options.generator](num_classes, recipe.embedding_size, **taken)
    if isinstance(generator, GlobalCorrelationGenerator) and recipe.xavier_attention:
        initialize_attention(generator)
    return generator


def unused_settings(generator: str) -> set[str]:
    """Return the names of the settings in a recipe that another generator than GCA-HNG, or the loss alone, ignores.

    Raises:
        ValueError: there is no such generator.
    """
    if generator not in (*NAMED_GENERATORS, LOSS_ALONE):
        known = (LOSS_ALONE, *NAMED_GENERATORS)
        raise ValueError(f"no generator is called {generator!r}{suggestion(generator, known)}: {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):  # first weights are drawn
        made = None if generator == LOSS_ALONE else NAMED_GENERATORS[generator](2, 2)
    groups = [] if made is None else [group for group in made.parameter_groups(lr=1.0) if group["params"]]
    used = {
        **dict.fromkeys(taken_settings("gca"), False),
        **dict.fromkeys(taken_settings(generator), True),
        "beta": made is not None and made.has_objective,
        "generator_lr": len(groups) > 0,
        "classifier_lr": len(groups) > 1,
        "classifier_weight_decay": len(groups) > 1,
        "xavier_attention": isinstance(made, GlobalCorrelationGenerator),
    }
    return {name for name, is_used in used.items() if not is_used}


def taken_settings(generator: str) -> tuple[str, ...]:
    """Return the settings of a recipe that a generator takes, by its name: GCA-HNG all, its controls those they share.

    Others have settings of their own papers.
    """
    if generator == "gca":
        return ("num_layers", *OF_THE_GRAPH, *GENERATOR_OPTIONS)
    return ("alpha", "merging") if generator in CONTROLS else ()


def check_feasible(recipe: Recipe, benchmark: Benchmark, options: Options) -> None:
    """Raise ValueError if no batch can be filled, no epoch can be chosen, or evaluation has nothing to find."""
    if benchmark.train.num_classes < recipe.classes_per_batch:
        raise ValueError(
            f"classes_per_batch is {recipe.classes_per_batch}, but there are {benchmark.train.num_classes} training "
            f"classes; set fewer, as by --set classes_per_batch={benchmark.train.num_classes}"
        )
    if options.select_on == "val" and benchmark.val is None:
        raise ValueError("select_on is 'val', but there are no validation classes: val_fraction is 0")
    evaluated = ["val", "test"] if options.select_on == "val" else ["test"]
    for split in evaluated:
        check_split(benchmark, split)


def build_sampler(
    recipe: Recipe, options: Options, benchmark: Benchmark, iterations: int
) -> MPerClassCoveringSampler | samplers.MPerClassSampler:
    """Return the sampler of batches for `iterations` iterations. Small classes have their samples repeated."""
    labels, size = benchmark.train.labels, recipe.batch_size
    if options.sampler == "random":
        return samplers.MPerClassSampler(labels, recipe.samples_per_class, size, iterations * size)
    return MPerClassCoveringSampler(labels, recipe.samples_per_class, size, iterations * size, seed=options.seed)
