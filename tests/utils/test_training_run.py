import pytest
import torch
from torch import nn

from pml_gca.utils.training_run import TrainingRun


def train(folder, last, stop_in=None, identity=None):
    """Train a layer on random numbers, and return its weights and a history."""
    run = TrainingRun(folder, "toy", seed=3, identity=identity)
    if (found := run.read_result()) is not None:
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


def test_a_run_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 2, stop_in=2, identity={"alpha": 1})
    for file in ("checkpoint.pt", "result.json"):
        with pytest.raises(ValueError, match=rf"{file} is of another run \(alpha is 2, was 1\); choose another folder"):
            train(tmp_path, 2, identity={"alpha": 2})
        assert train(tmp_path, 2, identity={"alpha": 1})["identity"] == {"alpha": 1}
