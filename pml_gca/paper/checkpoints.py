"""The authors' published checkpoints, image model and generator, to and from PML's trunk and embedder.

Their files hold ``feature_extractor.backbone.*``, ``feature_extractor.fc.*`` (the head), ``gnn.*`` and
``softmax_classifier.*``. In some, the backbone has classification layers that are in no computation.
"""

from collections.abc import Mapping
from math import isqrt
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import GlobalCorrelationGenerator
from ..utils.text import first_of
from ..utils.validation import check_positive_int
from .backbones import CLASSIFICATION_LAYERS, DINO_VITS16, RESNET50, build_backbone, build_head
from .published_names import count_layers, read_checkpoint, read_state_dict, translate, translate_back
from .recipes import Recipe, find_recipe

BACKBONE, HEAD, CLASSIFIER = "feature_extractor.backbone.", "feature_extractor.fc.", "softmax_classifier.weight"
PARTS = ("feature_extractor.", "gnn.", "softmax_classifier.")
INNER = "model."  # the authors' ResNet-50 is a module within one
SHOWN = 4  # names of each kind, in an error


def load_published_checkpoint(
    state_dict_or_path: Mapping[str, Any] | str | PathLike[str],
    recipe: Recipe | str,
    *,
    image_size: int | None = None,
) -> tuple[nn.Module, nn.Sequential, GlobalCorrelationGenerator]:
    """Trunk, embedder and generator of one of the authors' checkpoints, in evaluation mode.

    ResNet-50 and GoogLeNet are read as three published files name them. No file of a DINO vision transformer was
    seen: its parameters are expected under the names of the original and of timm, which are the same, with or without
    ``model.`` in front.

    Args:
        state_dict_or_path: a state dict, or the path of one, which is read with ``weights_only=True``. It may lie
            under the key ``"state_dict"``, and its names may all begin with ``"module."``.
        recipe: what the checkpoint was trained by, or its name. It tells backbone and sizes, and what no parameter
            tells: heads, α, and the weights of the objective.
        image_size: side of the images in pixels. A vision transformer works at one size only, which None takes from
            the checkpoint; for another its position embeddings are interpolated.

    Returns:
        trunk: (B, 3, H, W) to (B, ``trunk.num_features``), with ``recipe.frozen``.
        embedder: (B, ``trunk.num_features``) to (B, ``recipe.embedding_size``).
        generator: of as many classes as the checkpoint has.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torchvision or timm is not installed.
        TypeError: it is no mapping; ``recipe`` is neither a recipe nor a name.
        ValueError: there is no such recipe, or it is no checkpoint of it; the message names what is missing,
            unexpected or of another shape.
    """
    recipe = _recipe(recipe)
    if image_size is not None:
        check_positive_int("image_size", image_size)
    state = _canonical(read_checkpoint(state_dict_or_path), recipe)
    trunk = build_backbone(recipe.backbone, pretrained=False, frozen=recipe.frozen, image_size=_image_size(state))
    num_features: Any = trunk.num_features
    embedder = build_head(num_features, recipe.embedding_size)
    settings = recipe.generator_settings
    num_classes = max(len(state[CLASSIFIER]), 1) if CLASSIFIER in state and state[CLASSIFIER].ndim else 1
    with torch.device("meta"):  # names and shapes only
        blank = GlobalCorrelationGenerator(num_classes, recipe.embedding_size, num_layers=recipe.num_layers, **settings)
    _check(state, published_state_dict(trunk, embedder, blank, recipe), recipe)
    dtype = state[CLASSIFIER].dtype
    trunk.to(dtype).load_state_dict(_under(_prefix(recipe), state))
    resize: Any = getattr(trunk, "set_input_size", None)
    if image_size is not None and resize is not None:
        resize(img_size=(image_size, image_size))
    embedder.to(dtype).load_state_dict(_under(HEAD, state))
    generator = load_published_generator(state, **settings)
    return trunk.eval(), embedder.eval(), generator.eval()


def published_state_dict(
    trunk: nn.Module, embedder: nn.Module, generator: GlobalCorrelationGenerator, recipe: Recipe | str
) -> dict[str, Tensor]:
    """A state dict under the authors' names, without the parameters that are in no computation.

    Args:
        trunk, embedder, generator: of the recipe's kinds, such as `load_published_checkpoint` returns.
        recipe: tells how the authors name the backbone.

    Raises:
        TypeError: ``recipe`` is neither a recipe nor a name.
        ValueError: there is no such recipe.
    """
    recipe = _recipe(recipe)
    return {
        **{_prefix(recipe) + name: value for name, value in trunk.state_dict().items()},
        **{HEAD + name: value for name, value in embedder.state_dict().items()},
        **translate_back(generator.state_dict(), len(generator.propagation.layers)),
    }


def _recipe(recipe: object) -> Recipe:
    """A recipe, of its name too."""
    if isinstance(recipe, str):
        return find_recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe or the name of one, got {type(recipe).__name__}")
    return recipe


def _prefix(recipe: Recipe) -> str:
    """What the authors put in front of the backbone's names."""
    return BACKBONE + INNER if recipe.backbone == RESNET50 else BACKBONE


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _canonical(state: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """What a checkpoint has of our parts, but for classification layers, and without ``model.`` if it is a DINO's."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor) and k.startswith(PARTS)}
    backbone = _under(BACKBONE, tensors)
    if recipe.backbone == DINO_VITS16 and all(name.startswith(INNER) for name in backbone):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(BACKBONE)}
        tensors |= {BACKBONE + name.removeprefix(INNER): value for name, value in backbone.items()}
    unused = tuple(_prefix(recipe) + layer for layer in CLASSIFICATION_LAYERS)
    return {name: value for name, value in tensors.items() if not name.startswith(unused)}


def _image_size(state: Mapping[str, Tensor]) -> int:
    """Side of the images that a vision transformer is for; any for other backbones."""
    positions, patches = state.get(f"{BACKBONE}pos_embed"), state.get(f"{BACKBONE}patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return 224
    return isqrt(positions.shape[1]) * patches.shape[-1]  # one position more, that of the class token, is no side more


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], recipe: Recipe) -> None:
    """Raise ValueError unless ``state`` has the names and shapes of ``expected``."""
    unused = [name for name in state if ".update_node." in name]
    found = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected and name not in unused],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    if any(found.values()):
        problems = "; ".join(f"{kind}: {first_of(names, SHOWN)}" for kind, names in found.items() if names)
        raise ValueError(f"this is no published checkpoint of the recipe {recipe.name}; {problems}")


def load_published_generator(
    state_dict_or_path: Mapping[str, Tensor] | str | PathLike[str], *, num_heads: int, **kwargs: Any
) -> GlobalCorrelationGenerator:
    """A generator with the parameters of one of the authors' checkpoints.

    Classes, channels and layers are read off the parameters, and so is the dtype.

    Args:
        state_dict_or_path: a state dict, or the path of one, with the published names ``gnn.*`` and
            ``softmax_classifier.*``; other keys are ignored. Files are read with ``weights_only=True``.
            `load_published_checkpoint` loads the image model, too.
        num_heads: H, which no parameter tells: 4 for CUB and Cars196, 2 for SOP and InShop.
        **kwargs: ``alpha``, ``dropout`` and weights, as in the constructor.

    Raises:
        TypeError: not a mapping of tensors.
        ValueError: parameters are missing or of another shape, and the message names them; or the file cannot be
            read.
    """
    state = read_state_dict(state_dict_or_path)
    try:
        num_classes, embedding_size = state["softmax_classifier.weight"].shape
    except (KeyError, ValueError):
        raise ValueError(
            "state_dict_or_path is no published checkpoint; missing or not 2-D: softmax_classifier.weight"
        ) from None
    generator = GlobalCorrelationGenerator(
        num_classes, embedding_size, num_layers=max(count_layers(state), 1), num_heads=num_heads, **kwargs
    )
    generator.to(state["softmax_classifier.weight"].dtype)
    generator.load_state_dict(translate(state, generator.state_dict()))
    return generator
