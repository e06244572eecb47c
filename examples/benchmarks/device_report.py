"""Run every check and measurement of a device in one go: tests, exactness, waits, times, memory and profiles."""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = "examples/benchmarks"


def parts(device: str, out: Path) -> dict[str, list[str]]:
    """Return the commands by name, each without Python, shortest first; what they write goes to `out`."""
    precisions = ["fp32", "tf32", "bf16"] if device == "cuda" else ["fp32", "bf16"]
    cost = [f"{BENCHMARKS}/step_cost.py", "--device", device, "--precision", *precisions]
    profile = [f"{BENCHMARKS}/profile_step.py", "--device", device, "--precision", "bf16"]
    replayed = ["--compile", "--cuda-graph"] if device == "cuda" else []
    return {
        "example": [
            *("examples/train_with_classifier.py", "--epochs", "1", "--iterations", "20"),
            *("--out", str(out.resolve() / "example"), "--overwrite"),
        ],
        "check": [f"{BENCHMARKS}/check_device.py", "--device", device],
        "profile": [*profile, "--batch-size", "81", "512"],
        "profile_compiled": [*profile, "--batch-size", "81", "512", "--compile"],
        "cost_81": [*cost, "--batch-size", "81", "--trunk", "resnet50", *replayed],
        "cost_large": [*cost, "--batch-size", "256", "512", "1024"],
        "tests": ["-m", "pytest", "-q", "-p", "no:cacheprovider"],
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        description="Run all checks and measurements of a device. Write the output of each part to a file of its own. "
        "A part whose file is there is not run again. Exit with 1 if a part fails.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="(default: runs/DEVICE)")
    names = list(parts("cuda", Path()))
    add("--only", nargs="+", choices=names, default=names, metavar="PART", help=f"some of {', '.join(names)}")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the parts that are missing, and say what became of each."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not importlib.import_module("torch").cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    out = args.out or Path("runs") / args.device
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {})
    failed = []
    for name, command in parts(args.device, out).items():
        file = out / f"{args.device}_{name}.txt"
        if name not in args.only:
            continue
        if file.exists():
            print(f"{name}: done before, see {file}")
            continue
        print(f"{name}: {' '.join(['python', *command])}", flush=True)
        began = time.monotonic()
        running = out / f"{args.device}_{name}.running"
        with running.open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, **streams).returncode
        kept = running.replace(out / f"{args.device}_{name}.failed" if code else file)
        if code:
            failed.append(name)
        else:
            kept.with_suffix(".failed").unlink(missing_ok=True)
        print(f"    {'failed' if code else 'done'} after {time.monotonic() - began:.0f} s, see {kept}", flush=True)
    sys.exit(f"device_report.py: {', '.join(failed)} failed; the same command runs them again" if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ndevice_report.py: stopped; finished parts are kept: the same command runs the others")
