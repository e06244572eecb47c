"""A killed training goes on as if nothing had happened; the ranks beside a lost one end with an error."""

import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import killed_training
from helpers.distributed_training import checkpoint
from helpers.states import assert_bitwise_equal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = subprocess.run(
        [sys.executable, "-m", "helpers.killed_training", str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def result(folder):
    """The result of a run, but for the time it took."""
    found = json.loads((folder / "distributed" / "result.json").read_text())
    del found["history"]["seconds_per_iteration"]
    return found


def test_a_training_killed_four_times_ends_as_an_unbroken_one(folder):
    ends = json.loads((folder / "found.json").read_text())["ends"]
    assert ends == {**dict.fromkeys(killed_training.MOMENTS, signal.SIGKILL), "none": 0}
    assert_bitwise_equal(checkpoint(folder / "killed"), checkpoint(folder / "unbroken"))
    assert_bitwise_equal(result(folder / "killed"), result(folder / "unbroken"))


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_other_rank_ends_with_an_error_within_the_timeout(how, folder):
    found = json.loads((folder / "found.json").read_text())["ranks"][how]
    assert found["error"]
    assert found["unchanged"]
    assert found["seconds"] < killed_training.TIMEOUT + 5
