import os
import subprocess
import sys
from itertools import chain

import pytest
import torch
from helpers import distributed_training
from helpers.distributed_training import checkpoint
from helpers.states import assert_bitwise_equal
from train_distributed import SharedBatches

LABELS = torch.arange(7).repeat_interleave(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes of torchrun left."""
    folder = tmp_path_factory.mktemp("torchrun")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*torchrun, "-m", "helpers.distributed_training", str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    assert ran.returncode == 0, ran.stderr
    (folder / "printed").write_text(ran.stdout)
    (folder / "progress").write_text(ran.stderr)
    return folder


def test_a_resumed_run_of_two_processes_equals_an_unbroken_one(folder):
    assert_bitwise_equal(checkpoint(folder / "broken"), checkpoint(folder / "unbroken"))


def test_the_first_process_alone_prints(folder):
    lines = (folder / "printed").read_text().splitlines()
    assert lines.count("distributed: epoch 2 of 2") == 2
    assert lines.count("distributed: resuming after epoch 1") == 1
    assert sum(line.startswith("Unseen classes: 3 with 18 images") for line in lines) == 4
    assert sum("of 9 images, 2 processes, " in line for line in lines) == 5
    bars = (folder / "progress").read_text()
    assert bars.count(" 0/3 [00:00<?, ?it/s]") == 5  # one bar an epoch


def test_another_number_of_processes_goes_on_and_one_process_computes_the_same(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    distributed_training.train(tmp_path / "one", 2, *distributed_training.NO_DRAWS)
    capsys.readouterr()
    distributed_training.train(folder / "other_number", 2, *distributed_training.NO_DRAWS, "--resume")
    assert "processes: 1, were 2. The batches are the same" in capsys.readouterr().out
    found, expected = checkpoint(folder / "other_number"), checkpoint(tmp_path / "one")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_processes_share_the_batches_of_one(monkeypatch):
    whole = SharedBatches(LABELS, 3, 12, 4, seed=1, rank=0, size=1)
    parts = [SharedBatches(LABELS, 3, 12, 4, seed=1, rank=rank, size=5) for rank in range(5)]
    epochs = []
    for epoch in (1, 2):
        for sampler in (whole, *parts):
            sampler.set_epoch(epoch)
        epochs.append(list(whole))
        assert [list(chain(*shares)) for shares in zip(*parts, strict=True)] == epochs[-1]
        for batch in epochs[-1]:
            assert LABELS[batch].bincount().unique().tolist() == [0, 3]
            assert len(set(batch)) == 12
    assert len(whole) == 4
    assert epochs[0] != epochs[1]
    whole.set_epoch(1)
    assert list(whole) == epochs[0]
    with pytest.raises(ValueError, match="13 processes cannot share a batch of 12 images: start at most 12"):
        SharedBatches(LABELS, 3, 12, 4, seed=1, rank=0, size=13)
