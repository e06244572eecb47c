"""Without --out the comparison trains nothing, and says what it would train."""

import re
from pathlib import Path

import compare_generators
import pytest
from comparison.contenders import CONTENDERS
from comparison.pictures import PICTURES
from comparison.plan import misfit
from comparison.registry import TITLES, WITH_SMALL_NETWORK
from comparison.study import Study
from comparison.table import KEY
from helpers.comparison import cell

ROOT = Path(__file__).parents[3]


def kept_files() -> dict[Path, int]:
    """Everything in docs, with the time of its last change."""
    return {file: file.stat().st_mtime_ns for file in (ROOT / "docs").rglob("*")}


def test_it_lists_all_rows_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(compare_generators, "train_missing", None)
    before = kept_files()
    compare_generators.main([])
    printed = capsys.readouterr().out
    for name in WITH_SMALL_NETWORK:
        assert f"| {name} " in printed
        assert f"| {TITLES[name]} " in printed
    for loss in ("n_pairs", "multi_similarity", "proxy_anchor"):
        assert re.search(rf"^{loss}: \d+ trials and \d+ runs, .* about \d+\.\d hours", printed, flags=re.MULTILINE)
    assert "Nothing is trained without --out" in printed
    assert kept_files() == before


def test_it_counts_trials_runs_and_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--losses", "n_pairs", "--trials", "2", "--trial-iterations", "100", "--iterations", "300"]
    arguments += ["--seeds", "4", "--processes", "1", "--generators", "none", "none_double", "constant"]
    compare_generators.main(arguments)
    # 2 trials of 2 contenders, as the third is tuned as the first; 4 runs of 300, of 600 and of 300 iterations
    counts = "n_pairs: 4 trials and 12 runs, 5,200 iterations in all"
    assert f"{counts}; how long that takes is not known" in capsys.readouterr().out
    study = Study("docs/evidence")
    for name, seconds in (("none", 3600), ("constant", 7200)):
        key = dict(zip(KEY, ("run", "n_pairs", name, 0), strict=True))
        study.runs.put({**cell(name).settings, **key, "iterations": 100, "seconds": seconds})
    study.runs.save()
    compare_generators.main(arguments)
    # In hundreds of iterations, an hour each: none takes 2 + 12, constant twice that, none_double, which never ran, 48.
    assert f"{counts}; about {14 + 28 + 48}.0 hours, one after the other" in capsys.readouterr().out
    compare_generators.main([*arguments, "--processes", "9", "--trials-from", "there", "--screen", "1"])
    assert f"0 trials and 3 runs, 1,200 iterations in all; about {21 / 9:.1f} hours, 9 at" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["runs.csv"]


@pytest.mark.parametrize("backbone", [[], ["--data", "there", "--backbone", "resnet18"]])
def test_usual_rows_that_a_loss_cannot_train_are_left_out_and_named(
    backbone: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comparison.inputs.Inputs.settings", lambda *args: {})
    compare_generators.main([*backbone, "--losses", "n_pairs", "proxy_anchor"])
    printed = capsys.readouterr().out
    left_out = re.findall(r"^(\w+): .*, without (.*), which proxy_anchor cannot train", printed, flags=re.MULTILINE)
    usual = PICTURES if backbone else CONTENDERS
    misfits = [name for name in usual if misfit("proxy_anchor", name)]
    assert {"crossed_81", "norm_crossed_81"} <= set(misfits)
    assert left_out == [("proxy_anchor", ", ".join(misfits))]
    with pytest.raises(SystemExit, match="crossed_81 makes new classes, and proxy_anchor has proxies"):
        compare_generators.main([*backbone, "--losses", "proxy_anchor", "--generators", "none", "crossed_81"])
