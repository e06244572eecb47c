import json
import math
import multiprocessing
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import pml_gca

EXAMPLES = Path(__file__).parents[3] / "examples" / "benchmarks"
sys.path.insert(0, str(EXAMPLES))
import compare_generators  # noqa: E402
from comparison import cells, tables, timing, training  # noqa: E402
from comparison.contenders import ABLATIONS, CONTENDERS  # noqa: E402

SMALL = ["--losses", "n_pairs", "--generators", "none", "constant", "--processes", "1", "--embedding-size", "8"]
SMALL += ["--image-size", "16"]
SMALL += ["--trials", "2", "--trial-iterations", "2", "--iterations", "3", "--evaluate-every", "2", "--seeds", "1"]
COMMON = {
    "iterations": 2,
    "embedding_size": 8,
    "image_size": 16,
    "classes_per_batch": 4,
    "samples_per_class": 3,
    "evaluate_every": 2,
    "augment": True,
}


WITHOUT_ALPHA = ("no_strength", "gca_counting")


def cell(contender="none", **changes):
    recipe = compare_generators.ALL[contender].recipe
    return replace(cells.Cell("tune", "proxy_anchor", contender, 0, {"lr": 1e-3}, COMMON, recipe), **changes)


def spy(method, before):
    def called(*args):
        before()
        return method(*args)

    return called


def test_done_cells_are_kept_and_others_made(tmp_path, capsys):
    compare_generators.main([*SMALL, "--out", str(tmp_path)])
    table = capsys.readouterr().out
    assert "| the loss alone | 1 |" in table
    assert "| constant λ, no graph | 1 |" in table
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 2 * 2 + 2  # trials and seeds
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    compare_generators.main([*SMALL, "--out", str(tmp_path)])
    after = {file: file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*.json"))}
    assert after.keys() == before.keys()
    assert [file for file in files if after[file] != before[file]] == [files[0]]
    printed = capsys.readouterr().out
    compare_generators.main([*SMALL, "--out", str(tmp_path), "--report"])
    assert capsys.readouterr().out == printed
    compare_generators.main([*SMALL, "--generators", "none_double", "--out", str(tmp_path)])
    table = capsys.readouterr().out
    assert "| the loss alone, 2 × the iterations | 1 |" in table
    assert "Chosen" not in table  # as the loss alone was
    with pytest.raises(SystemExit, match=r"of another version or setting \(settings is .*'embedding_size': 16"):
        compare_generators.main([*SMALL, "--embedding-size", "16", "--out", str(tmp_path)])


def test_several_processes_find_what_one_does(tmp_path):
    results = []
    for processes in ("1", "2"):
        arguments = [*SMALL, "--generators", "none", "--processes", processes, "--out", str(tmp_path / processes)]
        compare_generators.main(arguments)
        files = sorted((tmp_path / processes).rglob("*.json"))
        results.append([json.loads(file.read_text())["result"] for file in files])
    for result in (result for found in results for result in found):
        del result["seconds"], result["history"]["seconds"]
    assert len(results[0]) == 3
    assert results[0] == results[1]


def test_progress_of_several_processes_counts_iterations(tmp_path, capsys):
    compare_generators.main(
        [*SMALL, "--generators", "none", "--processes", "2", "--seeds", "2", "--out", str(tmp_path)]
    )
    shown = capsys.readouterr().err
    assert "tuning 2/2: 100%" in shown
    assert "| 4/4 [" in shown
    assert "runs 2/2: 100%" in shown
    assert "| 6/6 [" in shown


@pytest.mark.parametrize("diverges", [False, True])
def test_a_process_of_several_counts_every_iteration(diverges, tmp_path, monkeypatch):
    if diverges:
        monkeypatch.setattr(
            training.Embedder, "forward", lambda self, images: images.mean((1, 2, 3))[:, None] * math.nan
        )
        monkeypatch.setattr(training.Run, "recall", lambda self, split: 0.0)
    shared = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(compare_generators, "iterations_done", shared)
    seen = []
    monkeypatch.setattr(training.Run, "step", spy(training.Run.step, lambda: seen.append(shared.value)))
    compare_generators.work(cell(), tmp_path)
    assert seen == ([0] if diverges else [0, 1])
    assert shared.value == COMMON["iterations"]


def test_a_process_that_is_killed_is_no_traceback(tmp_path, monkeypatch):
    class Broken(compare_generators.ProcessPoolExecutor):
        def submit(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr(compare_generators, "ProcessPoolExecutor", Broken)
    with pytest.raises(SystemExit, match=r"a process was killed, .* run it anew with --processes 1"):
        compare_generators.main([*SMALL, "--processes", "2", "--out", str(tmp_path)])


def test_trials_of_another_folder_choose(tmp_path, capsys):
    short, long = tmp_path / "short", tmp_path / "long"
    compare_generators.main([*SMALL, "--out", str(short)])
    trials = {file: file.read_text() for file in short.rglob("tune/**/*.json")}
    file = sorted(trials)[1]  # of the constant's two
    content = json.loads(trials[file])
    content["result"]["val_recall_at_1"] = 2.0
    file.write_text(json.dumps(content))
    arguments = ["--out", str(long), "--trials-from", str(short), "--iterations", "4"]
    capsys.readouterr()
    compare_generators.main([*SMALL, *arguments])
    assert "200.0" in capsys.readouterr().out
    assert sorted(path.relative_to(long).parts[0] for path in long.rglob("*.json")) == ["run", "run"]
    chosen = json.loads((long / "run" / "n_pairs" / "constant" / "0.json").read_text())["cell"]
    assert chosen["options"] == content["cell"]["options"]
    assert chosen["settings"]["iterations"] == 4
    compare_generators.main([*SMALL, "--generators", "real", "--out", str(short)])
    capsys.readouterr()
    compare_generators.main([*SMALL, *arguments, "--generators", "none", "real", "--report"])
    assert "real negatives" not in capsys.readouterr().out  # tuned, and not run here
    compare_generators.main([*SMALL, *arguments, "--generators", "real", "--report", "--out", str(tmp_path / "none")])
    assert capsys.readouterr().out == f"nothing in {tmp_path / 'none'} yet\n"
    for words, message in (
        (["--generators", "hardest"], rf"{short} has not all trials of n_pairs, hardest; tune there first"),
        (["--embedding-size", "16"], r"is of another version or setting .*; choose another --trials-from"),
        (
            ["--trials-from", str(long), "--report"],
            rf"there are runs in {long}, and no trials in {long}; give --trials",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            compare_generators.main([*SMALL, *arguments, *words])
    assert not (short / "tune" / "n_pairs" / "hardest").exists()


def as_first_written(file):
    """The file as the first version wrote it: no format, and the version in the cell, or in each of a file of times."""
    content = json.loads(file.read_text())
    del content["format"]
    version = content.pop("version")
    for cell in content["cell"].values() if "seconds" in content else [content["cell"]]:
        cell["version"] = version
    file.write_text(json.dumps(content))


def test_results_outlive_the_version_that_made_them(tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--generators", "none", "--trials", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(compare_generators, "ROUNDS", 1)
    monkeypatch.setattr(compare_generators, "train", lambda *_: {**result(0.5), "val_recall_at_1": 0.5})
    compare_generators.main(arguments)
    compare_generators.main([*arguments, "--time"])
    capsys.readouterr()
    compare_generators.main([*arguments, "--report"])
    printed = capsys.readouterr().out
    assert "1.00 ×" in printed
    files = sorted(tmp_path.rglob("*.json"))
    assert {json.loads(file.read_text())["version"] for file in files} == {pml_gca.__version__}
    monkeypatch.setattr(pml_gca, "__version__", "9.9.9")
    for change in (lambda file: None, as_first_written):
        for file in files:
            change(file)
        before = {file: file.read_bytes() for file in files}
        compare_generators.main([*arguments, "--report"])
        assert capsys.readouterr().out == printed
        compare_generators.main(arguments)  # trains nothing anew
        capsys.readouterr()
        assert {file: file.read_bytes() for file in files} == before
    files[0].unlink()
    compare_generators.main(arguments)
    assert json.loads(files[0].read_text())["version"] == "9.9.9"
    monkeypatch.setattr(cells, "FORMAT", 2)
    with pytest.raises(
        SystemExit, match=r"json is of another version or setting \(format is 2, was 1\); choose another"
    ):
        compare_generators.main([*arguments, "--report"])


def test_the_kept_results_outlive_their_version(capsys, monkeypatch):
    arguments = [
        "--losses",
        "multi_similarity",
        "--seeds",
        "3",
        "--out",
        str(EXAMPLES.parents[1] / "docs" / "evidence"),
    ]
    reports = []
    for version in ("0.1.0", "9.9.9"):
        monkeypatch.setattr(pml_gca, "__version__", version)
        compare_generators.main([*arguments, "--report"])
        reports.append(capsys.readouterr().out)
    assert "| GCA-HNG | 3 |" in reports[0]
    assert reports[0] == reports[1]


def test_a_contender_that_is_another_by_now_is_refused(tmp_path, monkeypatch):
    args = compare_generators.parse_arguments([*SMALL, "--out", str(tmp_path)])
    cells.write(compare_generators.trials(args, "n_pairs", "constant")[0], tmp_path, {})
    another = replace(CONTENDERS["constant"], make=partial(CONTENDERS["constant"].make, merging="mean"))
    monkeypatch.setitem(compare_generators.ALL, "constant", another)
    with pytest.raises(SystemExit, match=r"constant.0\.json is of another version or setting \(recipe is .*'mean'"):
        compare_generators.main([*SMALL, "--out", str(tmp_path)])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cell": 1}'])
def test_a_broken_file_is_named(content, tmp_path):
    file = tmp_path / "tune" / "n_pairs" / "none" / "0.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    for arguments in ([*SMALL, "--out", str(tmp_path)], ["--repeat", str(file)]):
        with pytest.raises(SystemExit, match=r"none.0\.json is no result of this comparison"):
            compare_generators.main(arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run", {"result": None}, "'result' has no val_recall_at_1, history, metrics"),
        ("run", {"result": {"val_recall_at_1": 0.5, "history": {}}}, "'result' has no metrics"),
        ("tune", {"result": {}}, "'result' has no val_recall_at_1"),
        ("tune", {"machine": "mine"}, "ValueError"),
        ("time", {"seconds": [1.0]}, "'seconds' has no none"),
    ],
)
def test_a_file_that_lacks_something_is_named(name, change, message, tmp_path, monkeypatch):
    arguments = [*SMALL, "--generators", "none", "--trials", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(compare_generators, "ROUNDS", 1)
    monkeypatch.setattr(compare_generators, "train", lambda *_: {**result(0.5), "val_recall_at_1": 0.5})
    compare_generators.main(arguments)
    compare_generators.main([*arguments, "--time"])
    file = next((tmp_path / name).rglob("*.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    for wanted in [["--report"], *([["--repeat", str(file)]] if name != "time" else [])]:
        with pytest.raises(SystemExit, match=rf"{file.name} is no result of this comparison: {message}"):
            compare_generators.main([*arguments, *wanted])


@pytest.mark.parametrize("stage", ["tune", "run"])
def test_a_run_that_diverges_recalls_nothing(stage, monkeypatch):
    def broken(self, images):
        embeddings = forward(self, images)
        return embeddings * math.nan if self.training else embeddings

    forward = training.Embedder.forward
    monkeypatch.setattr(training.Embedder, "forward", broken)
    result = training.train(cell("gca", stage=stage))
    assert (result["diverged"], result["val_recall_at_1"]) == (1, 0.0)
    assert result["history"]["iterations"] == [0]
    assert result.get("metrics", {}) == ({} if stage == "tune" else dict.fromkeys(training.METRICS, 0.0))


def test_iterations_are_timed_in_turns(tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"nothing is tuned for n_pairs in .* yet, so that there is nothing to time"):
        compare_generators.main([*arguments, "--time"])
    compare_generators.main(arguments)
    alone = ("none", "none_double", "none_longer")
    monkeypatch.setattr(compare_generators, "ROUNDS", 2)
    compare_generators.main([*arguments, "--time"])
    cells_of_each = compare_generators.one_of_each(compare_generators.parse_arguments(arguments), "n_pairs")
    seconds = timing.read_times(cells_of_each, tmp_path)
    assert {name: len(turns) for name, turns in seconds.items()} == dict.fromkeys((*alone, "constant"), 2)
    assert min(min(values) for values in seconds.values()) > 0
    capsys.readouterr()
    compare_generators.main([*arguments, "--report"])
    assert f"| {timing.ratios(seconds)['constant']:.2f} × |" in capsys.readouterr().out
    longer = compare_generators.parse_arguments([*arguments, "--iterations", "9"])
    assert timing.read_times(compare_generators.one_of_each(longer, "n_pairs"), tmp_path) == seconds
    changed = {**cells_of_each, "constant": replace(cells_of_each["constant"], options={"lr": 7})}
    with pytest.raises(ValueError, match=r"n_pairs\.json is of another version or setting \(constant is .*'lr': 7"):
        timing.read_times(changed, tmp_path)
    assert timing.read_times({"none": cells_of_each["none"]}, tmp_path) == {"none": seconds["none"]}


def test_ratios_of_times_are_medians_of_turns_side_by_side():
    assert timing.ratios({"gca": [2.0, 30.0, 40.0], "none": [1.0, 10.0, 1.0]}) == {"gca": 3.0, "none": 1.0}
    assert timing.ratios({"gca": [2.0]}) == {}


def test_a_result_is_repeated(tmp_path, capsys):
    file = tmp_path / "tune" / "proxy_anchor" / "none" / "0.json"
    cells.write(cell(), tmp_path, training.train(cell()))
    threads = torch.get_num_threads()
    compare_generators.main(["--repeat", str(file)])
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out.rstrip().endswith("same")
    content = json.loads(file.read_text())
    content["result"]["val_recall_at_1"] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(
        SystemExit,
        match=r"differs from .*0\.json, which was made by .*torch.* as AVX2 does with ATEN_CPU_CAPABILITY=avx2",
    ):
        compare_generators.main(["--repeat", str(file)])
    assert "DIFFERENT" in capsys.readouterr().out
    content["version"] = "0.0.1"
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"differs from .*0\.json, which was made by .*'pml_gca': '0\.0\.1'"):
        compare_generators.main(["--repeat", str(file)])
    file.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(SystemExit, match=r"0\.json is of format 7, this is format 1"):
        compare_generators.main(["--repeat", str(file)])
    file.write_text("{}")
    with pytest.raises(SystemExit, match=r"0\.json is no result of this comparison: KeyError\('cell'\)"):
        compare_generators.main(["--repeat", str(file)])


@pytest.mark.parametrize("contender", [*CONTENDERS, *ABLATIONS])
def test_every_contender_trains(contender):
    result = training.train(cell(contender))
    assert 0 < result["val_recall_at_1"] <= 1
    assert result["history"]["iterations"] == [0, 2]


@pytest.mark.parametrize("contender", ["gca", "random", "alternating"])
def test_a_cell_repeats_itself(contender):
    first, second = (training.train(cell(contender)) for _ in range(2))
    for result in (first, second):
        del result["seconds"], result["history"]["seconds"]
    assert first == second


def test_trials_differ_and_are_always_the_same():
    tuned = {"lr": (1, 2, 3), "alpha": (0.0, 5.0)}
    found = cells.trial_options("gca", "n_pairs", tuned, 4)
    assert len({json.dumps(options) for options in found}) == 4
    assert all(options["lr"] in (1, 2, 3) and options["alpha"] in (0.0, 5.0) for options in found)
    assert found == cells.trial_options("gca", "n_pairs", tuned, 4)
    assert len(cells.trial_options("gca", "n_pairs", tuned, 100)) == 6
    assert cells.trial_options("none", "n_pairs", {}, 5) == [{}]


def test_trials_spread_over_every_hyperparameter():
    tuned = {"lr": (1, 2, 3, 4, 5, 6), "alpha": (0.0, 5.0, 9.0)}
    found = cells.trial_options("gca", "n_pairs", tuned, 6)
    assert sorted(options["lr"] for options in found) == [1, 2, 3, 4, 5, 6]
    assert sorted(options["alpha"] for options in found) == [0.0, 0.0, 5.0, 5.0, 9.0, 9.0]


def test_longer_runs_have_the_trials_of_the_plain_one():
    args = compare_generators.parse_arguments(["--iterations", "10", "--seeds", "1"])
    names = ("none", "none_double", "none_longer")
    plain, *longer = (compare_generators.trials(args, "n_pairs", name) for name in names)
    assert longer == [plain, plain]
    found = [compare_generators.seeds(args, "n_pairs", name, {"lr": 1})[0] for name in names]
    assert [cell.settings["iterations"] for cell in found] == [10, 20, 30]


def test_an_ablation_has_the_hyperparameters_of_the_whole(tmp_path):
    args = compare_generators.parse_arguments(["--trials", "2", "--out", str(tmp_path)])
    for trial, recall in zip(compare_generators.trials(args, "n_pairs", "gca"), (0.4, 0.5), strict=True):
        best = trial.options
        cells.write(trial, tmp_path, {"val_recall_at_1": recall})
    for name in ("gca", "gca_counting", *ABLATIONS):
        expected = {k: v for k, v in best.items() if (name, k) not in {(n, "alpha") for n in WITHOUT_ALPHA}}
        expected |= {"beta": 1e6} if name in ("gca_counting", "full_weight") else {}
        expected |= {"beta": 0.0} if name == "no_synthesis" else {}
        assert compare_generators.best_options(args, "n_pairs", name) == (expected, 0.5)


@pytest.mark.parametrize(
    ("name", "other", "fixed", "differs"),
    [
        ("gca_hardest", "graph_hardest", {"beta": 1e6}, {"coefficients"}),
        ("gca_hardest_free", "graph_hardest", {"beta": 1e6}, {"coefficients", "diversity_weight"}),
        ("linear_as_graph", "graph_real", {}, {"num_layers"}),
        ("linear_hardest", "graph_hardest", {}, {"num_layers"}),
    ],
)
def test_a_contender_with_the_hyperparameters_of_another(name, other, fixed, differs, tmp_path):
    args = compare_generators.parse_arguments(["--trials", "1", "--out", str(tmp_path)])
    (trial,) = compare_generators.trials(args, "n_pairs", other)
    cells.write(trial, tmp_path, {"val_recall_at_1": 0.5})
    assert compare_generators.best_options(args, "n_pairs", name) == ({**trial.options, **fixed}, 0.5)
    mine, its = (CONTENDERS[which].recipe["settings"] for which in (name, other))
    assert {key for key in {*mine, *its} if mine.get(key) != its.get(key)} == differs


def test_seeds_of_trials_are_no_runs():
    assert cell(number=3).seed == cell(number=4).seed == 1000
    assert cell(stage="run", number=3).seed == 3


def test_intervals():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(tables.interval([1.0])[1])
    eleven = [float(x) for x in range(11)]
    assert tables.interval(eleven)[1] == pytest.approx(2.228 * 11**0.5 / 11**0.5)
    assert tables.interval(eleven * 9)[1] > 1.96 * 10**0.5 / 99**0.5
    assert tables.cell_text([0.5, 0.5]) == "50.0 ± 0.0"
    assert tables.cell_text([0.015], sign=True) == "+1.5"


def result(recall, reached=(0.1, 0.2, 0.4)):
    metrics = {"recall_at_1": recall, "mean_average_precision_at_r": 0.1}
    return {"metrics": metrics, "history": {"iterations": [0, 50, 100], "recall_at_1": reached}}


RESULTS = {
    "none": {0: result(0.5), 1: result(0.3)},
    "gca": {0: result(0.52, (0.1, 0.4, 0.5)), 1: result(0.32, (0.1, 0.3, 0.5)), 2: result(0.9)},
    "real": {1: result(0.33, (0.1, 0.2, 0.3))},
}
NAMES = {"none": "alone", "gca": "ours", "real": "control", "random": "another"}


def test_differences_are_paired():
    table = tables.loss_table(RESULTS, NAMES)
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% |\n" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% |\n" in table
    table = tables.loss_table(RESULTS, NAMES, {"none": 1.0, "gca": 3.0, "real": 1.5})
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% | 1.00 × | 100 ± 0% |" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% | 3.00 × | 225 ± 953% |" in table
    assert "| control | 1 | 33.0 | +3.0 | 10.0 | – | 1.50 × | – |" in table
    table = tables.control_table(RESULTS, NAMES, ("gca", "random"), ("random", "real"))
    assert table.splitlines() == ["| Recall@1 less that of | ours |", "| --- | ---: |", "| control | -1.0 |"]
    assert tables.control_table(RESULTS, NAMES, ("gca",), ("random",)) == ""
    table = tables.step_table(RESULTS, NAMES, [("none", "gca"), ("random", "gca"), ("gca", "real")])
    assert table.splitlines()[2:] == ["| alone | ours | +2.0 ± 0.0 |", "| ours | control | +1.0 |"]
    assert tables.step_table(RESULTS, NAMES, [("random", "gca")]) == ""
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["random", "real"], {"gca": 3.0}).splitlines()
    assert lines[2:] == [
        "| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 | 3.00 × |",
        "| control | 1 | 33.0 | +1.0 | 10.0 |  |",
    ]
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["real"]).splitlines()
    assert lines[2:] == ["| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 |", "| control | 1 | 33.0 | +1.0 | 10.0 |"]
    assert tables.ablation_table(RESULTS, NAMES, "gca", ["random"]) == ""


def test_parts_have_a_table_of_their_own(tmp_path, capsys):
    args = [*SMALL, "--out", str(tmp_path), "--generators"]
    compare_generators.main([*args, "gca", "scalar"])
    capsys.readouterr()
    compare_generators.main([*args, "none", "gca", "scalar", "--report"])
    tables_printed = capsys.readouterr().out.split("\n\n")
    assert [("| GCA-HNG |" in table, "| one coefficient" in table) for table in tables_printed] == [
        *((False, False), (True, False), (True, True)),
        *((False, False), (True, False), (False, False)),
    ]


def test_a_report_says_what_results_were_made_with(tmp_path, capsys):
    args = [*SMALL, "--generators", "none", "--out", str(tmp_path)]
    compare_generators.main(args)
    here = f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
    assert capsys.readouterr().out.endswith(f"\nTrained with {here}.\n")
    file = tmp_path / "run" / "n_pairs" / "none" / "0.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "machine": {"torch": "3.0", "processor": "another"}}))
    compare_generators.main([*args, "--report"])
    assert capsys.readouterr().out.endswith(f"\nTrained with {here} and torch 3.0 (another).\n")


def test_bad_arguments(capsys):
    for arguments, message in (
        (["--generators", "daml"], "invalid choice: 'daml'"),
        (["--time", "--trials-from", "there"], "--time goes with --out alone"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--image-size", "8"], "--image-size must be at least 16"),
        (["--embedding-size", "9"], "--embedding-size must be divisible by the 2 heads"),
    ):
        with pytest.raises(SystemExit):
            compare_generators.main(arguments)
        assert message in capsys.readouterr().err
