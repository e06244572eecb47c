from dataclasses import replace
from pathlib import Path

# The scripts, which helpers.comparison puts on the path.
import compare_generators
import draw_evidence
import pytest
import torch
from comparison import probes, training
from comparison.study import Study
from helpers.comparison import cell

SMALL = ["--processes", "1", "--embedding-size", "8", "--image-size", "16", "--trials", "1", "--trial-iterations", "1"]
SMALL += ["--iterations", "2", "--evaluate-every", "1", "--seeds", "1"]
CELL = cell("gca", {"alpha": 2.0, "iterations": 3}, stage="run", loss="n_pairs")


def test_all_figures(tmp_path, capsys):
    arguments = [*SMALL, "--out", str(tmp_path / "results")]
    names = ["none", "gca", "no_propagation"]
    draw_evidence.main(["--to", str(tmp_path), "--figures", "gains", *arguments])
    assert "gains: no results in" in capsys.readouterr().out
    compare_generators.main([*arguments, "--losses", "n_pairs", "--generators", *names])
    capsys.readouterr()
    draw_evidence.main(["--to", str(tmp_path), *arguments])
    drawn = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in drawn] == [f"{name}_n_pairs.png" for name in draw_evidence.FIGURES]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    study = Study(tmp_path / "results")
    kept = study.watched.rows
    assert [key[2] for key in kept] == ["gca", "none"]
    for key, row in kept.items():  # the run of the tables
        assert row["val_recall_at_1"] == study.load(*key)[2]["val_recall_at_1"]
    first, second = kept.values()
    assert first["classes"] == second["classes"]
    before = study.watched.file.read_bytes()
    draw_evidence.main(["--to", str(tmp_path), *arguments, "--figures", "hardness"])
    assert study.watched.file.read_bytes() == before
    with pytest.raises(
        SystemExit, match=r"draw_evidence\.py: .*none.0\.json: .* has other settings \(image_size is 24"
    ):
        draw_evidence.main(["--to", str(tmp_path), *arguments, "--image-size", "24"])


def test_longer_runs_are_drawn_over_the_seconds_of_those_that_were_timed(tmp_path, monkeypatch):
    short, long = tmp_path / "short", [*SMALL, "--out", str(tmp_path / "long"), "--iterations", "3"]
    compare_generators.main([*SMALL, "--out", str(short), "--losses", "n_pairs", "--generators", "none"])
    long += ["--trials-from", str(short)]
    compare_generators.main([*long, "--losses", "n_pairs", "--generators", "none"])
    monkeypatch.setattr(compare_generators, "ROUNDS", 1)
    compare_generators.main([*SMALL, "--out", str(short), "--losses", "n_pairs", "--time"])
    drawn = draw_evidence.convergence(draw_evidence.Results("n_pairs", long))
    assert [ax.get_xlabel() for ax in drawn.axes] == ["Training iterations", "Training time (s)"]
    alone = draw_evidence.convergence(draw_evidence.Results("n_pairs", [*long[:-1], str(tmp_path / "long")]))
    assert alone is None  # no trials there


def test_gains_are_paired():
    class Known(draw_evidence.Results):
        def __init__(self):
            pass

        def runs(self, name):
            recalls = {"none": {0: 0.5, 1: 0.3}, "gca": {0: 0.54, 1: 0.36, 2: 0.9}, "hdml": {1: 0.2}}[name]
            return {seed: {"metrics": {"recall_at_1": recall}} for seed, recall in recalls.items()}

    found = Known().gains(["gca", "hdml"], "none")
    assert found["GCA-HNG"][0] == pytest.approx(5.0)
    assert found["GCA-HNG"][1] == pytest.approx(12.706 * 2**0.5 / 2**0.5)
    assert found["HDML"] == pytest.approx(-10.0)


def test_a_watched_run_learns_what_it_learns_unwatched(tmp_path):
    alone = training.Run(CELL)
    for _ in range(3):
        alone.step()
    probe = probes.Probe(CELL)
    probe.observe(0)
    for iteration in range(3):
        probe.run.step()
        probe.observe(iteration)
    probe.panel([0, 1])
    for before, after in ((alone.network, probe.run.network), (alone.loss, probe.run.loss)):
        for name, value in before.state_dict().items():
            assert torch.equal(value, after.state_dict()[name]), name


def test_a_watched_run(tmp_path):
    found = probes.watch(CELL, Study(tmp_path), None)
    history = probes.as_history(found)
    assert history["iterations"] == [0, 2]
    for row in history["hardness"]:
        assert row == sorted(row)
        assert len(row) == len(probes.LEVELS)
    assert 0 <= found["strength"][1] <= found["strength"][0] == 1
    mean, spread = found["coefficients"][0]
    assert 0.4 < mean < 0.6  # of a generator that has learned nothing yet
    assert 0 < spread < 0.5
    assert found["names"][0] == probes.ANCHOR
    panel = probes.as_panel(found)
    assert set(panel.labels.tolist()) == set(found["classes"])
    anchors = int((panel.labels == found["classes"][0]).sum())
    assert anchors * (probes.NUM_CLASSES - 1) == 48  # no more than may be shown
    assert len(panel.synthetic) == 48
    assert set(panel.synthetic_labels.tolist()) == set(found["classes"][1:])


def test_a_watched_run_is_kept(tmp_path, monkeypatch):
    found = probes.watch(CELL, Study(tmp_path), None)
    ticks = []
    monkeypatch.setattr("pml_gca.__version__", "9.9.9")
    assert probes.watch(CELL, Study(tmp_path), None, lambda: ticks.append(1)) == found
    assert ticks == []  # kept, and not trained again
    with pytest.raises(
        ValueError, match=r"watched\.csv: run n_pairs gca 0 has other settings \(alpha is 1\.0, was 2\.0"
    ):
        probes.watch(replace(CELL, settings={**CELL.settings, "alpha": 1.0}), Study(tmp_path), None)
    study = Study(tmp_path)
    del study.watched.rows[CELL.key]["hardness"], study.watched.rows[CELL.key]["labels"]
    study.watched.save()
    with pytest.raises(ValueError, match=r"watched\.csv: run n_pairs gca 0 has no hardness, labels"):
        probes.watch(CELL, Study(tmp_path), None)
