import json

import pytest
import torch
from torch import nn

from pml_gca.utils import runs


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    runs.write_json(path, {"a": 1})

    def die(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.write_atomically(path, die)
    assert json.loads(path.read_text()) == {"a": 1}


def test_state_comes_back(tmp_path):
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    runs.save_state(tmp_path / "state.pt", {"layer": first}, epoch=4)
    assert runs.load_state(tmp_path / "state.pt", {"layer": second}) == {"epoch": 4}
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(ValueError, match="holds no head, only layer"):
        runs.load_state(tmp_path / "state.pt", {"layer": second, "head": second})


def test_each_epoch_has_a_seed_of_its_own():
    seeds = {runs.seed_of_epoch(seed, epoch) for seed in range(20) for epoch in range(300)}
    assert len(seeds) == 20 * 300
    runs.set_seed(-1)  # NumPy takes none below 0


def test_a_folder_is_for_runs_of_one_setting(tmp_path):
    folder = tmp_path / "new" / "runs"
    runs.claim_folder(folder, {"a": 7})
    runs.claim_folder(folder, {"a": 1, "b": None})  # nothing came of the first
    (folder / "seed0").mkdir()
    (folder / "kept").mkdir()
    with pytest.raises(ValueError, match="holds runs already; give --resume"):
        runs.claim_folder(folder, {"a": 1, "b": None})
    runs.claim_folder(folder, {"a": 1, "b": None}, resume=True)
    with pytest.raises(ValueError, match=r"other settings \(a is 2, was 1; c is 3, was None; b is None, was None\)"):
        runs.claim_folder(folder, {"a": 2, "c": 3}, resume=True)
    runs.claim_folder(folder, {"a": 2}, overwrite=True, runs=["seed0"])
    assert not (folder / "seed0").exists()
    assert (folder / "kept").exists()
    assert json.loads((folder / "settings.json").read_text()) == {"a": "2"}
