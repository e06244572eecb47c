"""Image models of the paper, for PML's `models={"trunk": build_backbone(...), "embedder": build_head(...)}`."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.transforms import IMAGENET, InputConfig
from ..utils.optional_imports import import_timm, import_torchvision
from ..utils.validation import check_flag, check_positive_int, check_string, suggestion

RESNET50, GOOGLENET, DINO_VITS16 = "resnet50", "googlenet", "dino_vits16"
BACKBONES = (RESNET50, GOOGLENET, DINO_VITS16)
TIMM_NAMES = {DINO_VITS16: "vit_small_patch16_224.dino"}
BATCH_NORM, PATCH_EMBEDDING = "batch_norm", "patch_embedding"
CLASSIFICATION_LAYERS = ("fc.", "aux1.", "aux2.")  # of torchvision's models, not used here


class AverageAndMaxPool(nn.Module):
    """Average pooling plus max pooling, (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)


class _StayInEvaluation:
    """Replacement for a module's `train` that keeps it in evaluation mode.

    It is an object, not a closure: copies and pickles of the module then refer to themselves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self.module, False)


def build_backbone(
    name: str, *, pretrained: bool = True, frozen: str | None = None, image_size: int = 224
) -> nn.Module:
    """Build an image model without classification layer, (B, 3, H, W) to (B, `num_features`).

    - `"resnet50"`: torchvision's, with the sum of average and max pooling; 2048 features.
    - `"googlenet"`: torchvision's, without auxiliary heads and dropout; 1024 features.
    - `"dino_vits16"`: timm's `vit_small_patch16_224.dino`, self-supervised; 384 features.
    - any other name: timm's model of that name, such as `"resnet50.a1_in1k"`.

    Parameters keep torchvision's or timm's names.

    Args:
        name: see above.
        pretrained: with ImageNet's weights, downloaded once; else with random ones.
        frozen: the part that never learns, also after `set_warm_up`. `"batch_norm"`: all batch normalisation keeps
            its scale, shift and statistics, in training too. `"patch_embedding"`: that of a vision transformer.
        image_size: side of the images in pixels, for models with one fixed size, such as vision transformers.

    Raises:
        ImportError: torchvision or timm is not installed.
        TypeError: an argument is not as above.
        ValueError: no model has that name, or it lacks the part to freeze.
        ConnectionError: the weights could not be downloaded.

    Examples:
        >>> trunk = build_backbone("resnet50", pretrained=False, frozen="batch_norm")
        >>> trunk.num_features
        2048
    """
    check_string("name", name)
    check_flag("pretrained", pretrained)
    check_positive_int("image_size", image_size)
    check_frozen(frozen)
    backbone: Any
    if name in (RESNET50, GOOGLENET):
        backbone = _from_torchvision(name, pretrained)
    else:
        backbone = _from_timm(name, pretrained, image_size)
    freeze(backbone, frozen)
    built: nn.Module = backbone
    return built


def build_head(num_features: int, embedding_size: int, *, orthogonal: bool = False) -> nn.Sequential:
    """Build the paper's head, batch normalisation and a linear layer: (B, `num_features`) to (B, `embedding_size`).

    With `orthogonal`, the linear layer starts with orthogonal weights and a bias of 0, else as PyTorch's do.

    Raises:
        TypeError, ValueError: a size is not a positive integer, or `orthogonal` is not a bool.
    """
    check_positive_int("num_features", num_features)
    check_positive_int("embedding_size", embedding_size)
    check_flag("orthogonal", orthogonal)
    linear = nn.Linear(num_features, embedding_size)
    if orthogonal:
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(num_features), linear)


def set_warm_up(backbone: nn.Module, warming_up: bool) -> None:
    """Stop all parameters of a backbone from learning, or let those that learned before learn again.

    The statistics of batch normalisation still follow the batches, unless frozen. An optimizer may hold all
    parameters from the start: it skips those without a gradient.

    Args:
        backbone: from `build_backbone`, or any module.
        warming_up: whether only the head should learn.
    """
    holder: Any = backbone
    resting = getattr(holder, "resting_parameters", None)
    if warming_up and resting is None:
        holder.resting_parameters = [p for p in backbone.parameters() if p.requires_grad]
        backbone.requires_grad_(False)
    elif not warming_up and resting is not None:
        for parameter in resting:
            parameter.requires_grad_(True)
        del holder.resting_parameters


def _from_torchvision(name: str, pretrained: bool) -> Any:
    models = import_torchvision().models
    model: Any
    if name == RESNET50:
        weights, model = models.ResNet50_Weights.IMAGENET1K_V1, models.resnet50()
        model.avgpool = AverageAndMaxPool()
    else:
        # torchvision rescales the input only for ImageNet's weights, from which the published checkpoints started.
        # Always rescale: a checkpoint may be loaded into random weights.
        weights = models.GoogLeNet_Weights.IMAGENET1K_V1
        model = models.googlenet(transform_input=True, aux_logits=False, init_weights=False)
        model.dropout = nn.Identity()
    model.num_features = model.fc.in_features
    model.fc = nn.Identity()
    if pretrained:
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise _no_weights(f"{weights} of torchvision", error) from error
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith(CLASSIFICATION_LAYERS)})
    return model


def input_config(name: str) -> InputConfig:
    """Return what a backbone was trained to take: for a model of timm its own configuration.

    The backbones of the paper have ImageNet's mean and standard deviation, and 224 pixels, as they were published.

    Args:
        name: as for `build_backbone`.

    Raises:
        ImportError: timm is not installed.
        TypeError, ValueError: `name` is not a string, or no model has that name.

    Example:
        >>> input_config("vit_base_patch16_siglip_224.webli").mean
        (0.5, 0.5, 0.5)
    """
    check_string("name", name)
    if name in BACKBONES:
        return IMAGENET
    config = import_timm().data.resolve_data_config(pretrained_cfg=_timm_config(name).to_dict())
    return InputConfig(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_fraction=config["crop_pct"],
        image_size=config["input_size"][-1],
    )


def _timm_config(name: str) -> Any:
    """Return timm's configuration of a model. Raise ValueError if there is none of that name."""
    timm = import_timm()
    timm_name = TIMM_NAMES.get(name, name)
    try:
        config = timm.get_pretrained_cfg(timm_name) if timm.is_model(timm_name) else None
    except RuntimeError:  # timm has the model, but not these weights
        config = None
    if config is None:
        meant = suggestion(name, [*BACKBONES, *timm.list_models(), *timm.list_pretrained()])
        raise ValueError(
            f"no backbone is called {name!r}{meant}; there are {', '.join(BACKBONES)}, and timm's models by name"
        )
    return config


def _from_timm(name: str, pretrained: bool, image_size: int) -> Any:
    timm, timm_name = import_timm(), TIMM_NAMES.get(name, name)
    options: dict[str, Any] = {"img_size": image_size} if _timm_config(name).fixed_input_size else {}
    try:
        model = timm.create_model(timm_name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise _no_weights(f"{timm_name} of timm", error) from error
    if hasattr(model, "head_hidden_size"):  # differs from num_features if layers follow the pooling
        model.num_features = model.head_hidden_size
    return model


def _no_weights(weights: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"could not download the weights {weights}; pretrained=False (--random-weights in the examples) builds the "
        f"model without them. The error was: {error}"
    )


def check_frozen(frozen: object) -> None:
    """Raise ValueError unless `frozen` names a part that can be frozen, or is None."""
    if frozen not in (BATCH_NORM, PATCH_EMBEDDING, None):
        raise ValueError(f"frozen must be {BATCH_NORM!r}, {PATCH_EMBEDDING!r} or None, got {frozen!r}")


def freeze(backbone: nn.Module, frozen: str | None) -> None:
    """Stop part of a backbone from learning, for good.

    Args:
        backbone: any module.
        frozen: see `build_backbone`.

    Raises:
        ValueError: `frozen` is not known, or the backbone has no such part.
    """
    found: list[nn.Module]
    check_frozen(frozen)
    if frozen is None:
        return
    if frozen == BATCH_NORM:
        found = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
        for module in found:
            module.train = _StayInEvaluation(module)  # type: ignore[method-assign]
            module.train()
    else:
        found = [module for name, module in backbone.named_children() if name == "patch_embed"]
    if not found:
        raise ValueError(
            f"frozen is {frozen!r}, but {type(backbone).__name__} has none; None freezes nothing (--set frozen=none in "
            "the examples)"
        )
    for module in found:
        module.requires_grad_(False)
