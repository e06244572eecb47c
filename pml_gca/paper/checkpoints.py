"""Conversion of the authors' published checkpoints, image model and generator, to and from our modules.

Their files hold `feature_extractor.backbone.*`, `feature_extractor.fc.*` (the head), `gnn.*` and
`softmax_classifier.*`. In some, the backbone has unused classification layers.
"""

from collections.abc import Mapping
from math import isqrt
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import GlobalCorrelationGenerator
from ..utils.validation import check_positive_int, first_of
from .backbones import CLASSIFICATION_LAYERS, DINO_VITS16, RESNET50, build_backbone, build_head
from .published_names import count_layers, translate, translate_back
from .recipe import Recipe
from .recipes import find_recipe

BACKBONE, HEAD, CLASSIFIER = "feature_extractor.backbone.", "feature_extractor.fc.", "softmax_classifier.weight"
PARTS = ("feature_extractor.", "gnn.", "softmax_classifier.")
INNER = "model."  # the authors' ResNet-50 is a module inside another
WRAPPER = "module."  # prefix of all names in torch's data-parallel modules
SHOWN = 4  # names of each kind in an error message


def load_published_checkpoint(
    state_dict_or_path: Mapping[str, Any] | str | PathLike[str],
    recipe: Recipe | str,
    *,
    image_size: int | None = None,
) -> tuple[nn.Module, nn.Sequential, GlobalCorrelationGenerator]:
    """Load trunk, embedder and generator from one of the authors' checkpoints, in evaluation mode.

    The names for ResNet-50 and GoogLeNet are those of three published files. No file of a DINO vision transformer was
    available: its parameters are expected under the names that DINO and timm share, with or without the prefix
    `model.`.

    Args:
        state_dict_or_path: a state dict, or the path of one, which is read with `weights_only=True`. It may lie
            under the key `"state_dict"`, and its names may all start with `"module."`.
        recipe: the recipe that the checkpoint was trained by, or its name. It gives backbone and sizes, and settings
            that no parameter shows: heads, α, and the weights of the objective.
        image_size: side of the images in pixels. A vision transformer has one fixed size. None keeps that of the
            checkpoint; for another size the position embeddings are interpolated.

    Returns:
        trunk: (B, 3, H, W) to (B, `trunk.num_features`), with `recipe.frozen`.
        embedder: (B, `trunk.num_features`) to (B, `recipe.embedding_size`).
        generator: with the classes of the checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torchvision or timm is not installed.
        TypeError: `state_dict_or_path` is not a mapping, or `recipe` is neither a recipe nor a name.
        ValueError: there is no such recipe, or the checkpoint does not fit it. The message names the parameters that
            are missing, unexpected or of another shape.
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


def load_published_generator(
    state_dict_or_path: Mapping[str, Tensor] | str | PathLike[str], *, num_heads: int, **kwargs: Any
) -> GlobalCorrelationGenerator:
    """Load the generator alone from one of the authors' checkpoints.

    Classes, channels, layers and dtype are read off the parameters.

    Args:
        state_dict_or_path: a state dict, or the path of one, with the published names `gnn.*` and
            `softmax_classifier.*`. Other keys are ignored. Files are read with `weights_only=True`.
            `load_published_checkpoint` loads the image model, too.
        num_heads: H, which no parameter shows: 4 for CUB and Cars196, 2 for SOP and InShop.
        **kwargs: `alpha`, `dropout` and weights, as in the constructor of `GlobalCorrelationGenerator`.

    Raises:
        TypeError: `state_dict_or_path` is not a mapping of tensors.
        ValueError: the file cannot be read, or parameters are missing or have another shape. The message names them.
    """
    state = {
        name: torch.as_tensor(value, device="cpu")
        for name, value in read_checkpoint(state_dict_or_path).items()
        if name.startswith(("gnn.", "softmax_"))
    }
    try:
        num_classes, embedding_size = state["softmax_classifier.weight"].shape
    except (KeyError, ValueError):
        raise ValueError(
            "state_dict_or_path is not a published checkpoint; missing or not 2-D: softmax_classifier.weight"
        ) from None
    generator = GlobalCorrelationGenerator(
        num_classes, embedding_size, num_layers=max(count_layers(state), 1), num_heads=num_heads, **kwargs
    )
    generator.to(state["softmax_classifier.weight"].dtype)
    generator.load_state_dict(translate(state, generator.state_dict()))
    return generator


def published_state_dict(
    trunk: nn.Module, embedder: nn.Module, generator: GlobalCorrelationGenerator, recipe: Recipe | str
) -> dict[str, Tensor]:
    """Return a state dict under the authors' names, without their unused parameters.

    Args:
        trunk, embedder, generator: modules of the recipe, such as `load_published_checkpoint` returns.
        recipe: the recipe, or its name. The authors' names of the backbone depend on it.

    Raises:
        TypeError: `recipe` is neither a recipe nor a name.
        ValueError: there is no such recipe.
    """
    recipe = _recipe(recipe)
    return {
        **{_prefix(recipe) + name: value for name, value in trunk.state_dict().items()},
        **{HEAD + name: value for name, value in embedder.state_dict().items()},
        **translate_back(generator.state_dict(), len(generator.propagation.layers)),
    }


def read_checkpoint(state_dict_or_path: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint by name. Files are read to the CPU, with `weights_only=True`.

    A state dict may lie under the key `"state_dict"`, and its names may all start with `"module."`.

    Raises:
        TypeError: it is neither a mapping of names to tensors nor a path to one.
        ValueError: the file cannot be read.
    """
    state = state_dict_or_path
    if isinstance(state, (str, PathLike)):
        path = fspath(state)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a file that is no pickle can fail in any way
            raise ValueError(
                f"{path} is not a complete file of torch.save, or holds more than tensors; it is read with "
                "weights_only=True"
            ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise TypeError(
            "state_dict_or_path must be a mapping of parameter names to tensors, or the path of a file holding one, "
            f"got {type(state).__name__}"
        )
    named = {str(name): value for name, value in state.items()}
    prefix = WRAPPER if all(name.startswith(WRAPPER) for name in named) else ""
    return {name.removeprefix(prefix): value for name, value in named.items()}


def _recipe(recipe: object) -> Recipe:
    """Return the recipe, looked up if it is a name."""
    if isinstance(recipe, str):
        return find_recipe(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe or the name of one, got {type(recipe).__name__}")
    return recipe


def _prefix(recipe: Recipe) -> str:
    """Return the authors' prefix of the backbone's names."""
    return BACKBONE + INNER if recipe.backbone == RESNET50 else BACKBONE


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _canonical(state: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors of our parts, without classification layers, and without `model.` for DINO."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor) and k.startswith(PARTS)}
    backbone = _under(BACKBONE, tensors)
    if recipe.backbone == DINO_VITS16 and all(name.startswith(INNER) for name in backbone):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(BACKBONE)}
        tensors |= {BACKBONE + name.removeprefix(INNER): value for name, value in backbone.items()}
    unused = tuple(_prefix(recipe) + layer for layer in CLASSIFICATION_LAYERS)
    return {name: value for name, value in tensors.items() if not name.startswith(unused)}


def _image_size(state: Mapping[str, Tensor]) -> int:
    """Return the image size of a vision transformer in the checkpoint, 224 for other backbones."""
    positions, patches = state.get(f"{BACKBONE}pos_embed"), state.get(f"{BACKBONE}patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return 224
    return isqrt(positions.shape[1]) * patches.shape[-1]  # isqrt drops the class token's position


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], recipe: Recipe) -> None:
    """Raise ValueError unless `state` has the names and shapes of `expected`."""
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
        raise ValueError(f"this is not a published checkpoint of the recipe {recipe.name}; {problems}")
