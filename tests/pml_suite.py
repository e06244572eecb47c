"""Run PML's own test suite with our loss in place of each of its losses.

    python tests/pml_suite.py --mode eval FOLDER
    python tests/pml_suite.py --mode training --generator mixup --trainer alternating FOLDER/losses

FOLDER is the `tests` folder of PML's sources, or a part of it; pytest's options come last. Every call of a loss that
our wrapper accepts is made through a wrapper. In evaluation its value, dtype and gradients must equal PML's, bit by
bit, and PML's test continues with it, or with PML's loss where that narrows its parameters, which ours keeps wide. In
training everything must be finite, and J_m must be PML's value; PML's test continues with PML's loss.
`RecallCalculator` replaces `AccuracyCalculator`; a trainer of ours, with a wrapped metric loss, replaces
`MetricLossOnly` and `TrainWithClassifier`. Failed tests are run again by PML alone, to find which of them also fail
there.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pml_routing import GENERATORS, Routing
from PIL import Image
from pytorch_metric_learning import trainers
from pytorch_metric_learning.utils import accuracy_calculator
from pytorch_metric_learning.utils.common_functions import NUMPY_RANDOM
from record_keeper import RecordKeeper
from torchvision import datasets

from pml_gca import HardNegativeGenerationLoss
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer
from pml_gca.utils.recall_calculator import RecallCalculator

TRAINERS = {"autocast": AutocastTrainer, "alternating": AlternatingTrainer}
LEFT_OUT = {  # part of a test's id: why the test is not run
    "datasets/": "downloads",
    "test_tuples_to_weights_sampler": "downloads",
    "test_inference": "downloads",
    "test_accuracy_calculator_large_k": "takes minutes",
    "test_cross_batch_memory.py::TestCrossBatchMemory::test_sanity_check": "takes minutes",
}


def training_class(base):
    """Return a subclass of our trainer that wraps the metric loss and adds an optimizer for it."""

    class Trainer(base):
        def __init__(self, *, loss_funcs, optimizers, **kwargs):
            loss = loss_funcs.get("metric_loss")
            if loss is not None and kwargs["models"]:
                wrapper = HardNegativeGenerationLoss(loss, GENERATORS["global-correlation"](100, 64))
                loss_funcs = {**loss_funcs, "metric_loss": wrapper}
                optimizers = {**optimizers, "metric_loss_optimizer": torch.optim.AdamW(wrapper.parameter_groups(1e-4))}
            super().__init__(loss_funcs=loss_funcs, optimizers=optimizers, **kwargs)

    return Trainer


class Pictures(torch.utils.data.Dataset):
    """Random images instead of CIFAR100, which PML's test of trainers would download."""

    def __init__(self, folder, train, transform, **_):
        Path(folder).mkdir(exist_ok=True)
        self.targets, self.transform = [i % 100 for i in range(10000)], transform
        self.pixels = np.random.default_rng(train).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.pixels[i % 100])), self.targets[i]


def stand_in_for_clone(command):
    """Write a small network and its checkpoint, instead of cloning one with git."""
    folder = Path(command.split()[-1])
    (folder / "pretrained_models").mkdir(parents=True)
    (folder / "resnet.py").write_text(NETWORK)
    namespace = {}
    exec(NETWORK, namespace)
    state = torch.nn.DataParallel(namespace["resnet20"]()).state_dict()
    torch.save({"state_dict": state}, folder / "pretrained_models" / "resnet20-12fca82f.th")


NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 64, 8, 8), nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(64, 10)

resnet20 = Net
"""


class Plugin:
    """A pytest plugin: track the running test, leave some out, and collect the ids of failed tests."""

    def __init__(self, routing):
        self.routing, self.left_out, self.failed, self.outcomes = routing, Counter(), [], Counter()

    def pytest_collection_modifyitems(self, items):
        def reason(item):
            return next((why for part, why in LEFT_OUT.items() if part in item.nodeid), None)

        self.left_out.update(filter(None, map(reason, items)))
        items[:] = [item for item in items if reason(item) is None]

    def pytest_runtest_logstart(self, nodeid):
        self.routing.where = nodeid
        torch.manual_seed(0)  # PML's tests draw random numbers, and some fail by chance
        NUMPY_RANDOM.seed(0)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)


def put_ours_in_place(patch, trainer):
    patch.setattr(accuracy_calculator, "AccuracyCalculator", RecallCalculator)
    for name in ("MetricLossOnly", "TrainWithClassifier"):
        patch.setattr(trainers, name, training_class(TRAINERS[trainer]))
    for name in ("query", "table_exists"):
        patch.setattr(RecordKeeper, name, with_child_names(getattr(RecordKeeper, name)))


def with_child_names(method, query=RecordKeeper.query):
    """Let PML's tests find the records of a loss, which are those of the wrapper's child."""

    def call(keeper, text, *args, **kwargs):
        for wanted in re.findall(r"metric_(loss_NTXentLoss\w*)", text):
            tables = [row["name"] for row in query(keeper, "SELECT name FROM sqlite_master")]
            text = text.replace(f"metric_{wanted}", next((t for t in tables if t.endswith(wanted)), wanted))
        return method(keeper, text, *args, **kwargs)

    return call


def run_tests(options, rest, scratch):
    """Run the tests in the folder `scratch`, which they write to; return counts, and the ids of failed tests."""
    paths = [Path(test.split("::")[0]).resolve() for test in options.tests]
    ids = [str(path) + test[len(test.split("::")[0]) :] for path, test in zip(paths, options.tests, strict=True)]
    root = next(p for p in (paths[0], *paths[0].parents) if p.is_dir() and not (p / "__init__.py").exists())
    routing = Routing(options.mode, options.generator)
    plugin = Plugin(routing)
    arguments = ["-c", "pytest.ini", "--rootdir", str(root), "-p", "no:cacheprovider", "-q", "-W", "ignore"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scratch)
        patch.syspath_prepend(scratch)
        Path("pytest.ini").touch()
        patch.setenv("TEST_DEVICE", os.environ.get("TEST_DEVICE", "cpu"))  # else PML's tests use a GPU
        patch.setattr(os, "system", stand_in_for_clone)
        patch.setattr(datasets, "CIFAR100", Pictures)
        if options.mode != "plain":
            put_ours_in_place(patch, options.trainer)
        with routing if options.mode != "plain" else nullcontext():
            pytest.main([*arguments, *rest, *ids], plugins=[plugin])
    return routing, plugin, [str(root / name) for name in plugin.failed]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+", help="a folder, a file, or ids of tests")
    parser.add_argument("--mode", choices=("eval", "training", "plain"), required=True, help="plain: PML alone")
    parser.add_argument("--generator", choices=GENERATORS, default="global-correlation")
    parser.add_argument("--trainer", choices=TRAINERS, default="autocast")
    options, rest = parser.parse_known_args()
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        routing, plugin, failed = run_tests(options, rest, scratch)
    print(f"\nPML's tests, mode {options.mode}, generator {options.generator}, trainer {options.trainer}")
    print(f"tests: {counted(plugin.outcomes)}; left out: {counted(plugin.left_out)}")
    print(f"calls: {counted(routing.counts)}")
    for title, kind in (("not through the wrapper", routing.aside), ("wrong", routing.failures)):
        print("".join(f"{title}: {number} x {what}\n" for what, number in kind.most_common()), end="", flush=True)
    in_pml = set()
    if failed and options.mode != "plain":
        again = [sys.executable, str(here), *failed, "--mode", "plain", *rest]
        found = subprocess.run(again, capture_output=True, text=True).stdout
        in_pml = {line.removeprefix("failed: ") for line in found.splitlines() if line.startswith("failed: ")}
    for name in failed:
        print(f"failed in PML as well: {name}" if name in in_pml else f"failed: {name}")
    return bool(routing.failures or set(failed) - in_pml)


def counted(counter):
    return ", ".join(f"{number} {what}" for what, number in sorted(counter.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
