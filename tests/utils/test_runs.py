import json

import pytest
import torch
from torch import nn

from pml_gca.utils import runs
from pml_gca.utils.runs import TrainingRun


def test_saved_state_is_restored(tmp_path):
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    runs.save_state(tmp_path / "state.pt", {"layer": first}, epoch=4)
    assert runs.load_state(tmp_path / "state.pt", {"layer": second}) == {"epoch": 4}
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(ValueError, match="holds no head, only layer"):
        runs.load_state(tmp_path / "state.pt", {"layer": second, "head": second})
    with pytest.raises(ValueError, match="holds another layer"):
        runs.load_state(tmp_path / "state.pt", {"layer": nn.Linear(3, 3)})


def test_each_epoch_has_a_seed_of_its_own():
    seeds = {runs.seed_of_epoch(seed, epoch) for seed in range(20) for epoch in range(300)}
    assert len(seeds) == 20 * 300
    runs.set_seed(-1)  # NumPy accepts no negative seed


def test_a_folder_is_for_runs_of_one_setting(tmp_path, capsys):
    folder = tmp_path / "new" / "runs"
    runs.claim_folder(folder, {"a": 7}, runs=["seed*"])
    runs.claim_folder(folder, {"a": 1, "b": None}, runs=["seed*"])  # the first call left no runs
    runs.claim_folder(folder, {"a": 1, "b": None}, runs=["seed*"], resume=True)
    assert "Nothing to resume in" in capsys.readouterr().out
    for name in ("seed0", "seed1", "kept"):
        (folder / name).mkdir()
    with pytest.raises(ValueError, match="holds runs already; give --resume"):
        runs.claim_folder(folder, {"a": 1, "b": None}, runs=["seed*"])
    runs.claim_folder(folder, {"a": 1, "b": None}, runs=["seed*"], resume=True)
    with pytest.raises(ValueError, match=r"other settings \(a is 2, was 1; c is 3, was None\)"):
        runs.claim_folder(folder, {"a": 2, "c": 3}, runs=["seed*"], resume=True)
    runs.claim_folder(folder, {"a": 2}, overwrite=True, runs=["seed*"])
    assert [path.name for path in sorted(folder.iterdir())] == ["kept", "settings.json"]
    assert json.loads((folder / "settings.json").read_text()) == {"a": 2}
    (folder / "seed0").mkdir()
    (folder / "settings.json").unlink()
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="holds seed0, a run of unknown settings"):
            runs.claim_folder(folder, {"a": 2}, runs=["seed*"], **how)


def test_differences_are_listed_up_to_a_limit():
    assert runs.differences({"a": (1, 2)}, {"a": [1, 2]}) == ""
    assert runs.differences({"a": 1}, {"b": 2}) == "b is 2, was None; a is None, was 1"
    assert runs.differences({}, {f"n{i}": i for i in range(1, 12)}).endswith("n8 is 8, was None; and 3 more")


def train(folder, last, stop_in=None, identity=None):
    """Train a layer on random numbers, and return its weights and a history."""
    run = TrainingRun(folder, "toy", seed=3, identity=identity)
    if (found := run.read_result(last)) is not None:
        return found
    torch.manual_seed(3)
    parts = {"layer": nn.Linear(2, 2)}
    optimizer = parts["optimizer"] = torch.optim.Adam(parts["layer"].parameters(), lr=0.1)
    history = run.restore(parts).get("history", [])
    for epoch in run.epochs(last):
        optimizer.zero_grad()
        loss = parts["layer"](torch.randn(4, 2)).square().sum()
        loss.backward()
        optimizer.step()
        if epoch == stop_in:
            raise KeyboardInterrupt
        history.append(loss.item())
        run.save(parts, history=history)
    return run.finish({"history": history, "weights": parts["layer"].weight.tolist()})


def test_a_stopped_run_ends_like_an_unbroken_one(tmp_path, capsys):
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken = train(tmp_path / "unbroken", 4)
    assert len(set(unbroken["history"])) == 4
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 4, stop_in=3)
    assert "toy: epoch 3 of 4" in capsys.readouterr().out
    assert not (tmp_path / "broken" / "result.json").exists()
    assert train(tmp_path / "broken", 4) == unbroken
    assert capsys.readouterr().out.splitlines() == [
        "toy: resuming after epoch 2",
        "toy: epoch 3 of 4",
        "toy: epoch 4 of 4",
    ]
    assert train(tmp_path / "broken", 4) == unbroken
    assert capsys.readouterr().out == "toy: finished before\n"


@pytest.mark.parametrize("knows_epochs", [True, False])
def test_a_finished_run_is_extended_to_more_epochs(knows_epochs, tmp_path, capsys):
    for name in ("unbroken", "extended"):
        (tmp_path / name).mkdir()
    unbroken = train(tmp_path / "unbroken", 4, identity={"epochs": 4})
    train(tmp_path / "extended", 2, identity={"epochs": 2})
    if not knows_epochs:  # as earlier versions wrote it
        file = tmp_path / "extended" / "result.json"
        found = json.loads(file.read_text())
        del found["trained_epochs"]
        file.write_text(json.dumps(found))
    capsys.readouterr()
    assert train(tmp_path / "extended", 4, identity={"epochs": 4}) == unbroken
    assert capsys.readouterr().out.splitlines() == [
        "toy: finished before with 2 epochs, goes on to 4",
        "toy: resuming after epoch 2",
        "toy: epoch 3 of 4",
        "toy: epoch 4 of 4",
    ]
    with pytest.raises(ValueError, match=r"of another run \(epochs is 3, was 4\)"):
        train(tmp_path / "extended", 3, identity={"epochs": 3})


def test_the_epochs_of_a_folder_may_grow(tmp_path):
    (tmp_path / "seed0").mkdir()
    for epochs in (2, 3):
        (tmp_path / "settings.json").write_text(json.dumps({"epochs": 2, "a": 1}))
        runs.claim_folder(tmp_path, {"epochs": epochs, "a": 1}, resume=True)
        assert json.loads((tmp_path / "settings.json").read_text())["epochs"] == epochs
    with pytest.raises(ValueError, match=r"other settings \(epochs is 2, was 3\)"):
        runs.claim_folder(tmp_path, {"epochs": 2, "a": 1}, resume=True)
    with pytest.raises(ValueError, match=r"other settings \(a is 2, was 1\)"):
        runs.claim_folder(tmp_path, {"epochs": 4, "a": 2}, resume=True)


def test_a_run_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 2, stop_in=2, identity={"alpha": 1})
    for file in ("checkpoint.pt", "result.json"):
        with pytest.raises(ValueError, match=rf"{file} is of another run \(alpha is 2, was 1\); choose another folder"):
            train(tmp_path, 2, identity={"alpha": 2})
        assert train(tmp_path, 2, identity={"alpha": 1})["identity"] == {"alpha": 1}


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    file = tmp_path / "table.md"
    file.write_text("kept")
    with pytest.raises(
        ValueError, match=r"table\.md is a file, and a folder for results is needed; choose another --out"
    ):
        runs.claim_folder(file, {"a": 1})
    assert file.read_text() == "kept"


@pytest.mark.parametrize("as_text", [True, False])
def test_the_folder_of_a_run_is_made_when_something_is_saved(as_text, tmp_path):
    folder = tmp_path / "new" / "run"
    run = runs.TrainingRun(str(folder) if as_text else folder, "run", seed=0)
    assert run.restore({}) == {}
    assert not folder.exists()
    for _ in run.epochs(1):
        run.save({"layer": nn.Linear(2, 2)})
    assert run.finish({})["trained_epochs"] == 1
    assert runs.TrainingRun(str(folder), "run", seed=0).read_result(1) is not None
    runs.claim_folder(str(tmp_path / "others"), {})
