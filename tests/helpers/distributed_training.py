"""Run examples/train_distributed.py on a few small images, in this process or in each one of torchrun.

torchrun --nproc-per-node 2 -m helpers.distributed_training FOLDER
"""

import sys
from pathlib import Path

import torch
import train_distributed

SETTINGS = ("--iterations", "3", "--classes-per-batch", "3", "--image-size", "16", "--embedding-size", "8")
DRAWS = ("--shard-edges",)  # GCA-HNG draws random numbers
NO_DRAWS = ("--generator", "hardest")


class Images(torch.utils.data.Dataset):
    """Six noisy images of each of some classes; `noise` is drawn anew with each access."""

    def __init__(self, num_classes, seed, noise):
        source = torch.Generator().manual_seed(seed)
        self.num_classes, self.noise = num_classes, noise
        self.labels = torch.arange(num_classes).repeat_interleave(6)
        patterns = torch.rand(num_classes, 1, 16, 16, generator=source)
        self.images = patterns[self.labels] + 0.3 * torch.rand(len(self.labels), 1, 16, 16, generator=source)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.images[row] + self.noise * torch.rand(1, 16, 16), int(self.labels[row])


def train(out, epochs, *options):
    """Call the example's `main` in double precision; images are noisy where the generator draws, too."""
    noise = 0.1 * (options[: len(DRAWS)] == DRAWS)
    torch.set_default_dtype(torch.float64)
    load_data = train_distributed.load_data
    train_distributed.load_data = lambda args: {
        "train": Images(5, 0, noise),
        "val": Images(3, 1, 0),
        "test": Images(3, 2, 0),
    }
    try:
        train_distributed.main([*SETTINGS, *options, "--epochs", str(epochs), "--out", str(out)])
    finally:
        train_distributed.load_data = load_data
        torch.set_default_dtype(torch.float32)


def checkpoint(folder):
    """What a run has computed, and what it needs to go on."""
    content = torch.load(folder / "distributed" / "checkpoint.pt", weights_only=True)
    del content["history"]["seconds_per_iteration"], content["processes"], content["identity"]
    return content


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    train(folder / "unbroken", 2, *DRAWS)
    train(folder / "broken", 1, *DRAWS)
    train(folder / "broken", 2, *DRAWS, "--resume")
    train(folder / "other_number", 1, *NO_DRAWS)
