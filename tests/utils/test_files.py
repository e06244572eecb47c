"""A file is written as a whole, or the old one stays and the error names it."""

import json
import os

import pytest
import torch
from torch import nn

from pml_gca.utils import files
from pml_gca.utils.runs import TrainingRun


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_json(path, {"a": 1})

    def die(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, die)
    assert json.loads(path.read_text()) == {"a": 1}


def fill_disk(path):
    """Make the disk full for what is written before it takes the place of `path`."""
    path.with_name(path.name + ".part").symlink_to("/dev/full")


@pytest.mark.parametrize("kind", ["full", "in the way", "gone"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(kind, tmp_path, monkeypatch):
    run, parts = TrainingRun(tmp_path, "toy", seed=0), {"layer": nn.Linear(400, 400)}
    run.epoch = 1
    run.save(parts, history=[1])
    before = run.checkpoint_file.read_bytes()
    with torch.no_grad():
        parts["layer"].weight.add_(1)
    if kind == "full":
        fill_disk(run.checkpoint_file)
    elif kind == "in the way":
        (tmp_path / "checkpoint.pt.part").mkdir()
    else:

        def vanish(*args):
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr(os, "replace", vanish)
    with pytest.raises(
        OSError, match=r"checkpoint\.pt cannot be written \(.*an older file there is as it was"
    ) as raised:
        run.save(parts, history=[1, 2])
    assert str(run.checkpoint_file) in str(raised.value)
    assert run.checkpoint_file.read_bytes() == before
    assert not (tmp_path / "checkpoint.pt.part").is_file()
    assert TrainingRun(tmp_path, "toy", seed=0).restore(parts) == {"history": [1]}


@pytest.mark.parametrize("write", [files.write_text, files.write_json])
def test_text_for_a_full_disk_or_a_missing_folder_names_the_file(write, tmp_path):
    path = tmp_path / "result.json"
    write(path, "old")
    before = path.read_text()
    fill_disk(path)
    with pytest.raises(OSError, match=r"result\.json cannot be written \(.*No space left on device"):
        write(path, "new")
    assert path.read_text() == before
    write(path, "new")
    assert path.read_text() != before
    with pytest.raises(OSError, match=r"missing/table\.md cannot be written"):
        write(tmp_path / "missing" / "table.md", "new")
