"""The networks that contenders train: a small one, fast on a CPU, and a pretrained backbone that they fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, channels_last, nn

from comparison.frozen import cut_after, output_of
from pml_gca.paper.backbones import build_backbone, build_head
from pml_gca.utils.optional_imports import import_timm

TRUNK_LR_FACTOR = 0.15
"""Learning rate of the backbone in units of the head's."""


class FineTuned(nn.Module):
    """A backbone of timm with frozen BatchNorm, and the paper's head: BatchNorm and a linear layer.

    Args:
        name: one of timm's models.
        weights: file of its pretrained weights; None downloads timm's.
        embedding_size: channels D of the embeddings.

    Takes (B, 3, S, S) images in [0, 1], returns (B, D).

    Raises:
        ValueError: there is no such model, or the file holds the weights of another one.
        ConnectionError: the weights cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path | None, embedding_size: int) -> None:
        super().__init__()
        trunk: Any = build_backbone(name, pretrained=weights is None, frozen="batch_norm")
        if weights is not None:
            load_weights(trunk, weights, import_timm().create_model(name))
        config = trunk.pretrained_cfg
        for statistic in ("mean", "std"):
            self.register_buffer(statistic, torch.tensor(config[statistic]).view(1, 3, 1, 1))
        self.trunk = trunk.to(memory_format=channels_last)  # on a CPU a step takes two thirds of the time
        self.num_features: int = trunk.num_features
        self.head = build_head(self.num_features, embedding_size)
        self.takes_features = False

    def start_after(self, name: str, image_size: int) -> None:
        """Drop the modules of the backbone up to one of them: from now on, the network takes what that one returns.

        Args:
            name: of the module.
            image_size: S.

        Raises:
            ValueError: there is no such module, or the modules do not run one after the other.
        """
        images = torch.rand(2, 3, image_size, image_size)
        outputs, whole = output_of(self.trunk, name, images)
        cut_after(self.trunk, name)
        self.takes_features = True
        with torch.no_grad():
            if (self.trunk(outputs) - whole).abs().max() > 1e-4 * whole.abs().max():
                raise ValueError(f"the backbone uses more than the output of {name}; choose another module")

    def normalized(self, images: Tensor) -> Tensor:
        """Return what the backbone takes, (B, 3, S, S), for images in [0, 1]."""
        return ((images - self.mean) / self.std).contiguous(memory_format=channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's pooled features: (B, num_features)."""
        given = images.contiguous(memory_format=channels_last) if self.takes_features else self.normalized(images)
        pooled: Tensor = self.trunk(given)
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) embeddings."""
        embeddings: Tensor = self.head(self.features(images))
        return embeddings

    def record_graph(self, batch_size: int, image_size: int) -> None:
        """Replay training steps of the backbone as CUDA graphs: its many small kernels cost more to launch than to run.

        Args:
            batch_size: B of every training batch from now on; other batches run as before, in evaluation.
            image_size: S.
        """
        images = torch.rand(batch_size, 3, image_size, image_size, device=self.mean.device)
        self.train()
        torch.cuda.make_graphed_callables(self.trunk, (images,))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimizer groups: the head at `lr`, the backbone at `TRUNK_LR_FACTOR` of it."""
        trunk = [p for p in self.trunk.parameters() if p.requires_grad]
        return [{"params": trunk, "lr": lr * TRUNK_LR_FACTOR}, {"params": list(self.head.parameters()), "lr": lr}]


def load_weights(trunk: nn.Module, file: Path, whole: nn.Module) -> None:
    """Load the tensors of a file into a backbone, in order: other packages give the same layers other names.

    Args:
        trunk: without classification layer.
        file: of `torch.save`: a state dict of the same architecture, its classification layer at the end or absent.
        whole: the same architecture with its classification layer, whose tensors the file may hold, too.

    Raises:
        ValueError: the file cannot be read, or a tensor is missing, left over or of another shape; the message names
            the first.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
        tensors = {str(name): torch.as_tensor(value) for name, value in found.items()}
    except OSError:
        raise
    except Exception as error:  # unpickling raises errors of any type
        raise ValueError(f"{file} is no state dict written by torch.save ({type(error).__name__}: {error})") from error
    tensors = without_counters(tensors)
    own, complete = without_counters(trunk.state_dict()), without_counters(whole.state_dict())
    wanted = own if len(tensors) == len(own) else complete
    for (name, tensor), (other, value) in zip(wanted.items(), tensors.items(), strict=False):
        if tensor.shape != value.shape:
            raise ValueError(
                f"{file} holds the weights of another network: {other} has shape {tuple(value.shape)} where {name} has "
                f"{tuple(tensor.shape)}"
            )
    if len(wanted) != len(tensors):
        names = list(wanted if len(wanted) > len(tensors) else tensors)
        odd = f"it lacks {names[len(tensors)]}" if len(wanted) > len(tensors) else f"it also has {names[len(wanted)]}"
        raise ValueError(f"{file} holds the weights of another network: {odd}")
    renamed = dict(zip(wanted, tensors.values(), strict=True))
    trunk.load_state_dict({name: renamed[name] for name in own}, strict=False)


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without BatchNorm's batch counters, which some packages leave out."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


WIDTHS = (1, 24, 48, 96, 96)
STRIDE = 2  # of every convolution; pooling at full size would take most of the time


class Embedder(nn.Module):
    """Four strided convolutions, each with BatchNorm and ReLU, and a linear layer.

    Args:
        image_size: side S of the images, in pixels.
        embedding_size: channels D of the embeddings.

    Takes (B, 1, S, S) images, returns (B, D).
    """

    def __init__(self, image_size: int, embedding_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (narrow, wide) in enumerate(pairwise(WIDTHS)):
            kernel = 5 if number == 0 else 3
            convolution = nn.Conv2d(narrow, wide, kernel, stride=STRIDE, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU()]
        side = image_size
        for _ in WIDTHS[1:]:
            side = -(-side // STRIDE)
        self.num_features = WIDTHS[-1] * side**2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.num_features, embedding_size))
        self.layers.to(memory_format=channels_last)

    @property
    def head(self) -> nn.Module:
        """The linear layer."""
        return self.layers[-1]

    def features(self, images: Tensor) -> Tensor:
        """Return what the linear layer takes: (B, num_features)."""
        features: Tensor = self.layers[:-1](images.contiguous(memory_format=channels_last))
        return features

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.features(images))
        return embeddings

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups."""
        return [{"params": list(self.parameters()), "lr": lr}]
