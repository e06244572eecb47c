"""Models, loss, optimizers and schedules of a recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ..correlation.blocks import initialize_attention
from ..generators import GlobalCorrelationGenerator
from ..losses import HardNegativeGenerationLoss
from ..trainers import AlternatingTrainer, AutocastTrainer
from .backbones import build_backbone, build_head, freeze
from .options import Options
from .recipes import Recipe


@dataclass
class Parts:
    """What PML's trainers are made of, under PML's names."""

    models: dict[str, nn.Module]
    loss_funcs: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    lr_schedulers: dict[str, Any]
    gradient_clippers: dict[str, Callable[[], Any]]

    @property
    def generator(self) -> GlobalCorrelationGenerator | None:
        """The generator of hard negatives, if there is one."""
        return getattr(self.loss_funcs["metric_loss"], "generator", None)

    def with_state(self) -> dict[str, Any]:
        """Everything that a checkpoint must hold."""
        groups = (self.models, self.loss_funcs, self.optimizers, self.lr_schedulers)
        return {name: part for group in groups for name, part in group.items()}

    def trainer(self, recipe: Recipe, options: Options, **kwargs: Any) -> AutocastTrainer:
        """The trainer of the schedule that was asked for. Where no generator follows an objective, there is but one."""
        alternates = self.generator is not None and self.generator.learns and options.schedule == "alternating"
        return (AlternatingTrainer if alternates else AutocastTrainer)(
            models=self.models,
            optimizers=self.optimizers,
            loss_funcs=self.loss_funcs,
            lr_schedulers=self.lr_schedulers,
            gradient_clippers=self.gradient_clippers,
            batch_size=recipe.batch_size,
            freeze_trunk_batchnorm=False,  # a backbone keeps frozen what is to be frozen
            data_device=options.torch_device,
            dataloader_num_workers=options.workers,
            autocast_dtype=torch.bfloat16 if options.amp else None,
            **kwargs,
        )


def cosine_to_zero(epochs: int, epoch: int) -> float:
    """Factor of a learning rate after so many epochs."""
    return 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))


def halving(recipe: Recipe, epoch: int) -> float:
    """Factor of the embedder's learning rate after so many epochs."""
    return float(recipe.lr_decay ** (epoch // recipe.lr_decay_epochs))


def constant(epoch: int) -> float:
    """No schedule."""
    return 1.0


def clip_values(parameters: list[nn.Parameter], limit: float) -> None:
    """torch's ``clip_grad_value_``, which fails where no parameter has a gradient, as in a warm-up."""
    if any(p.grad is not None for p in parameters):
        clip_grad_value_(parameters, limit)


def build_parts(recipe: Recipe, options: Options, num_classes: int, backbone: nn.Module | None = None) -> Parts:
    """Build everything that a recipe trains, on the device of ``options``.

    Args:
        recipe: the paper's settings.
        options: what it leaves open.
        num_classes: of training.
        backbone: an image model of your own, in place of the recipe's, with an attribute ``num_features``.

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
    head = build_head(num_features, recipe.embedding_size, recipe.orthogonal_head)
    models = {"trunk": backbone.to(device), "embedder": head.to(device)}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    schedulers: dict[str, Any] = {}
    for name, model in models.items():
        learned = [p for p in model.parameters() if p.requires_grad]
        if learned:
            optimizer = AdamW(learned, lr=recipe.embedder_lr, weight_decay=recipe.weight_decay)
            optimizers[f"{name}_optimizer"] = optimizer
            schedulers[f"{name}_scheduler_by_epoch"] = LambdaLR(optimizer, partial(halving, recipe))

    loss = options.build_loss(num_classes, recipe.embedding_size, recipe.samples_per_class)
    own_lr = recipe.proxy_lr_factor * recipe.embedder_lr
    own = list(loss.parameters())
    groups: list[dict[str, Any]] = [{"params": own, "lr": own_lr}] if own else []
    factors: list[Callable[[int], float]] = [partial(halving, recipe)] if own else []
    if options.generator == "gca":
        generator = GlobalCorrelationGenerator(
            num_classes, recipe.embedding_size, num_layers=recipe.num_layers, **recipe.generator_settings
        )
        if recipe.xavier_attention:
            initialize_attention(generator)
        loss = HardNegativeGenerationLoss(loss, generator, recipe.beta, level_momentum=None)
        groups = loss.parameter_groups(recipe.generator_lr, recipe.classifier_lr, own_lr)
        groups[1]["weight_decay"] = recipe.classifier_weight_decay
        factors = [partial(cosine_to_zero, recipe.epochs), constant, *factors]
    loss = loss.to(device)
    if groups:
        optimizer = optimizers["metric_loss_optimizer"] = AdamW(groups, weight_decay=recipe.weight_decay)
        schedulers["metric_loss_scheduler_by_epoch"] = LambdaLR(optimizer, factors)
    clipped = {**models, "metric_loss": loss}
    return Parts(
        models=models,
        loss_funcs={"metric_loss": loss},
        optimizers=optimizers,
        lr_schedulers=schedulers,
        gradient_clippers={
            f"{name}_grad_clipper": partial(clip_values, list(module.parameters()), recipe.gradient_clip)
            for name, module in clipped.items()
        },
    )
