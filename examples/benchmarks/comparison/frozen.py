"""A cheap form of fine-tuning: early layers are frozen, and their outputs computed once, for some views per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pml_gca.utils import runs
from pml_gca.utils.files import write_atomically

VIEWS = 12
"""Distorted views of each training image. Training draws one of them whenever it meets the image."""


def cut_after(trunk: nn.Module, name: str) -> None:
    """Let a model start after one of its modules: that module, and all before it, return what they are given.

    Args:
        trunk: whose modules run one after the other, in the order in which they are registered.
        name: of the module, such as `"blocks.4"`.
    """
    holder = trunk
    *outer, last = name.split(".")
    for part in [*outer, last]:
        for child in list(holder._modules):
            if child == part:
                break
            setattr(holder, child, nn.Identity())
        if part != last:
            holder = holder.get_submodule(part)
    setattr(holder, last, nn.Identity())


def output_of(trunk: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a module of a model returns for a batch of images, and what the model does.

    Raises:
        ValueError: there is no such module.
    """
    if not name or name not in dict(trunk.named_modules()):
        stages = ", ".join(str(stage["module"]) for stage in getattr(trunk, "feature_info", []))
        raise ValueError(f"--freeze-through must name a module of the backbone, such as {stages}; got {name!r}")
    kept: list[Tensor] = []
    hook = trunk.get_submodule(name).register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        output: Tensor = trunk(images)
    hook.remove()
    return kept[0], output


class FrozenFeatures:
    """The views of a data set, as a model's frozen layers return them. An item is `(features, label)`.

    Args:
        features: (V, M, C, S, S) half precision, V views of each of M images.
        labels: (M,) long.
    """

    def __init__(self, features: np.ndarray[Any, Any], labels: Tensor) -> None:
        self.features, self.labels = features, labels
        self.num_classes = len(labels.unique())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return a view of each, drawn by torch's global random number generator."""
        views = torch.randint(len(self.features), (len(rows),)).tolist()
        chosen = torch.from_numpy(self.features[views, list(rows)]).float()
        return list(zip(chosen.unbind(), self.labels[list(rows)].tolist(), strict=True))


def load_frozen(images: Any, network: Any, name: str, file: Path) -> FrozenFeatures:
    """Return the views of a data set, from a file if it is there.

    Args:
        images: data set of (3, S, S) images; if it distorts them there are `VIEWS` views of each, else one.
        network: `FineTuned`, whole.
        name: of the last frozen module of its trunk.
        file: keeps them, for these images, this network and this name.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        count = VIEWS if images.augment else 1
        views = []
        with tqdm(total=count * len(images), desc=f"frozen layers: {images.split}", unit="image") as bar:
            for view in range(count):
                runs.set_seed(view)
                parts = []
                for rows in torch.arange(len(images)).split(512):
                    batch = torch.stack([image for image, _ in images.__getitems__(rows.tolist())])
                    parts.append(output_of(network.trunk, name, network.normalized(batch))[0].half())
                    bar.update(len(rows))
                views.append(torch.cat(parts))
        write_array(file, torch.stack(views).numpy())
    return FrozenFeatures(np.load(file, mmap_mode="r"), images.labels)


def write_array(file: Path, values: np.ndarray[Any, Any]) -> None:
    """Write an array of NumPy; a killed process leaves no part of it."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, values)

    write_atomically(file, write)
