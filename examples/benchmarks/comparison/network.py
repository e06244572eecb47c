"""The network that all contenders train: small, and fast on a CPU."""

from itertools import pairwise
from typing import Any

from torch import Tensor, channels_last, nn

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
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * side**2, embedding_size))
        self.layers.to(memory_format=channels_last)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(images.contiguous(memory_format=channels_last))
        return embeddings

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups."""
        return [{"params": list(self.parameters()), "lr": lr}]
