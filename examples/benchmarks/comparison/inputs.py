"""Data and network of a cell: characters and a small network, or a folder of images and a pretrained backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from comparison.frozen import VIEWS, FrozenFeatures, load_frozen
from comparison.networks import WIDTHS, Embedder, FineTuned
from pml_gca.datasets import ClassFolder, Glyphs


@dataclass(frozen=True)
class Inputs:
    """The data of a cell. The settings hold fingerprints: paths and devices are no part of a result.

    Attributes:
        data: folder of class folders; None for characters in 16 fonts.
        weights: file of the backbone's weights; None for timm's own.
        device: that it trains on.
        cache: folder for the outputs of frozen layers.
        unreadable: as for `ClassFolder`.
    """

    data: Path | None = None
    weights: Path | None = None
    device: str = "cpu"
    cache: Path = Path("runs/frozen")
    unreadable: str = "stop"

    def settings(self, backbone: str | None, frozen_through: str | None = None) -> dict[str, Any]:
        """Return the columns that tell these data and this network from others.

        Raises:
            ValueError: the folder of images is missing or holds no class folders.
        """
        if self.data is None:
            return {"widths": list(WIDTHS)}
        data, weights = self._fingerprints
        frozen = {} if frozen_through is None else {"frozen_through": frozen_through, "views": VIEWS}
        return {"data": data, "backbone": backbone, "weights": weights, **frozen}

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Of data and weights. Taken once: every cell asks, and to look at all files takes seconds on a slow disk."""
        assert self.data is not None
        weights = "timm" if self.weights is None else hashlib.sha256(self.weights.read_bytes()).hexdigest()[:12]
        return folder_fingerprint(self.data), weights


def folder_fingerprint(folder: Path) -> str:
    """Return how many images a folder of class folders holds, with a digest of their names and sizes.

    Raises:
        ValueError: it is missing, or holds no file in a folder.
    """
    files = sorted(file for file in folder.glob("*/*") if file.is_file())
    if not files:
        raise ValueError(f"--data must be a folder of class folders with images, got {folder}")
    lines = (f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n" for file in files)
    return f"{len(files)} images, {hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}"


def load_split(settings: Mapping[str, Any], inputs: Inputs, split: str) -> Any:
    """Return a data set of a cell: images, or what the frozen layers of its backbone return for them.

    Args:
        settings: of the cell.
        inputs: where it finds its data.
        split: `"train"`, `"val"` or `"test"`, with classes of their own.
    """
    size, augment = settings["image_size"], settings["augment"]
    if name := settings.get("frozen_through"):
        fixed = (settings[source] for source in ("backbone", "weights", "data"))
        return load_views(inputs, *fixed, name, size, augment, split)
    return load_images(inputs.data, size, augment, split, inputs.unreadable)


@lru_cache(maxsize=8)
def load_views(
    inputs: Inputs, backbone: str, weights: str, data: str, name: str, image_size: int, augment: bool, split: str
) -> FrozenFeatures:
    """Return what the frozen layers return for a data set; each process reads it once.

    Args:
        inputs: where the images are.
        backbone: model of timm.
        weights: fingerprint.
        data: fingerprint.
        name: of the last frozen module.
        image_size: side, in pixels.
        augment: distort training images.
        split: see `load_split`.
    """
    images = load_images(inputs.data, image_size, augment, split, inputs.unreadable)
    told = repr((backbone, weights, data, name, image_size, VIEWS, images.augment, split))
    file = inputs.cache / f"{split}_{hashlib.sha256(told.encode()).hexdigest()[:12]}.npy"
    return load_frozen(images, FineTuned(backbone, inputs.weights, 1), name, file)


@lru_cache(maxsize=8)
def load_images(data: Path | None, image_size: int, augment: bool, split: str, unreadable: str) -> Any:
    """Return a data set of images; each process reads it once.

    Args:
        data: see `Inputs`.
        image_size: side, in pixels.
        augment: distort training images differently each time.
        split: see `load_split`.
        unreadable: see `Inputs`.
    """
    options: dict[str, Any] = {"augment": augment} if split == "train" else {}
    if data is None:
        return Glyphs(split, image_size=image_size, progress=False, **options)
    return ClassFolder(data, split, image_size=image_size, unreadable=unreadable, progress=False, **options)


def build_network(settings: Mapping[str, Any], inputs: Inputs) -> Embedder | FineTuned:
    """Return the network of a cell, on its device."""
    size = settings["embedding_size"]
    if inputs.data is None:
        return Embedder(settings["image_size"], size).to(inputs.device)
    network = FineTuned(settings["backbone"], inputs.weights, size)
    if name := settings.get("frozen_through"):
        network.start_after(name, settings["image_size"])
    network.to(inputs.device)
    if inputs.device.startswith("cuda") and not network.takes_features:
        network.record_graph(settings["classes_per_batch"] * settings["samples_per_class"], settings["image_size"])
    return network
