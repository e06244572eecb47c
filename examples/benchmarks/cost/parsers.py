"""Arguments of step_cost.py, profile_step.py and check_device.py. They load no torch: `--help` is shown at once."""

import argparse
from pathlib import Path


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the options of a step's setting: sizes of batch and graph, and the device."""
    add = parser.add_argument
    add("--batch-size", type=int, nargs="+", default=[81], metavar="B", help="one or more sizes (default: 81)")
    add("--embedding-size", type=int, default=512, metavar="D", help="channels of an embedding (default: %(default)s)")
    add("--num-layers", type=int, default=2, metavar="K", help="propagation layers (default: %(default)s)")
    add("--num-heads", type=int, default=4, metavar="H", help="heads of the node attention (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")


def step_cost_parser() -> argparse.ArgumentParser:
    """Return the parser of step_cost.py."""
    parser = argparse.ArgumentParser(
        description="Measure time and memory of a training step of HardNegativeGenerationLoss. Compare them with a "
        "naive implementation of the same equations, with bare matrix products, and with the training of a trunk. "
        "Print a Markdown table.",
        epilog="Example: step_cost.py --batch-size 64 128 256 512 --edge-chunk-size 4096 --out cost --plot cost.png",
    )
    add = parser.add_argument
    add_setting(parser)
    add("--samples-per-class", type=int, default=3, metavar="M", help="in a batch (default: %(default)s)")
    add("--num-classes", type=int, metavar="N", help="training classes (default: 100, or as many as the largest batch)")
    add(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        nargs="+",
        default=["fp32"],
        help="one or more; tf32 needs a GPU, bf16 is autocast (default: fp32)",
    )
    what = "measure also with edges computed in chunks of N, which need less memory"
    add("--edge-chunk-size", type=int, nargs="+", default=[], metavar="N", help=what)
    what = "measure also with classify_among='batch', for many training classes"
    add("--classify-among-batch", action="store_true", help=what)
    add("--compile", action="store_true", help="measure also with generator.compile()")
    add("--cuda-graph", action="store_true", help="measure also as CUDA graphs, where they can be captured")
    add("--trunk", metavar="NAME", help="a torchvision classifier, such as resnet50: show the loss's share of training")
    add("--image-size", type=int, default=224, metavar="S", help="side of the trunk's images (default: %(default)s)")
    add("--repeats", type=int, default=5, metavar="R", help="how often to time each (default: %(default)s)")
    add("--threads", type=int, metavar="T", help="CPU threads (default: as many as torch takes by itself)")
    what = "largest batch that the naive implementation computes (default: %(default)s)"
    add("--naive-up-to", type=int, default=160, metavar="B", help=what)
    add("--no-memory", action="store_true", help="skip memory, which takes a fresh process for each row")
    add("--out", type=Path, metavar="DIR", help="write step_cost.md and step_cost.csv to this folder")
    add("--plot", type=Path, metavar="FILE.png", help="draw time and memory against the batch size")
    add("--probe", help=argparse.SUPPRESS)  # fresh processes are started with one of these two
    add("--first-step", help=argparse.SUPPRESS)
    return parser


def check_device_parser() -> argparse.ArgumentParser:
    """Return the parser of check_device.py."""
    parser = argparse.ArgumentParser(
        description="Train two steps with every generator, loss and precision. List the lines of code where the host "
        "waits for a GPU. Compare results with the CPU in float64 on the reference files of tests/data. Exit with 1 "
        "if a step fails.",
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu, ... (default: %(default)s)")
    return parser


def profile_step_parser() -> argparse.ArgumentParser:
    """Return the parser of profile_step.py."""
    parser = argparse.ArgumentParser(
        description="Profile a training step of HardNegativeGenerationLoss. Print its largest parts and kernels.",
    )
    add = parser.add_argument
    add_setting(parser)
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="(default: %(default)s)")
    add("--compile", action="store_true", help="call generator.compile()")
    add("--rows", type=int, default=15, metavar="R", help="of each table (default: %(default)s)")
    return parser
