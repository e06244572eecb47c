import json
import math
import multiprocessing
from concurrent.futures.process import BrokenProcessPool

# The scripts, which helpers.comparison puts on the path.
import compare_generators
import pytest
import torch
from comparison import inputs, running, training
from comparison.study import Study
from helpers.comparison import COMMON, SMALL, cell, result


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
    with pytest.raises(SystemExit, match=r"tune n_pairs none 0 has other settings \(embedding_size is 16, was 8\)"):
        compare_generators.main([*SMALL, "--embedding-size", "16", "--out", str(tmp_path)])


def test_finished_cells_move_into_the_tables_and_count_as_before(tmp_path, capsys):
    arguments = [*SMALL, "--out", str(tmp_path)]
    compare_generators.main(arguments)
    printed = capsys.readouterr().out
    compare_generators.main([*arguments, "--add"])
    assert capsys.readouterr().out == f"6 cells added to the tables in {tmp_path}\n"
    assert list(tmp_path.rglob("*.json")) == []
    assert sorted(file.name for file in tmp_path.glob("*.csv")) == ["curves.csv", "runs.csv"]
    compare_generators.main([*arguments, "--report"])
    assert capsys.readouterr().out == printed
    compare_generators.main([*arguments, "--seeds", "2"])
    assert sorted(file.stem for file in tmp_path.rglob("*.json")) == ["1", "1"]  # only the second seeds were trained
    with pytest.raises(SystemExit, match=r"runs\.csv: tune n_pairs none 0 has other settings \(embedding_size is 16"):
        compare_generators.main([*arguments, "--embedding-size", "16"])


def test_cells_may_be_added_while_others_train(tmp_path, capsys, monkeypatch):
    def train_while_another_adds(*_):
        Study(tmp_path).add()
        return result()

    monkeypatch.setattr(running, "train", train_while_another_adds)
    compare_generators.main([*SMALL, "--out", str(tmp_path)])
    assert "| constant λ, no graph | 1 |" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert len(Study(tmp_path).runs.rows) == 5


def test_several_processes_find_what_one_does_and_count_iterations(tmp_path, capsys):
    results = []
    for processes in ("1", "2"):
        arguments = [*SMALL, "--generators", "none", "--processes", processes, "--seeds", "2"]
        compare_generators.main([*arguments, "--out", str(tmp_path / processes)])
        results.append([json.loads(file.read_text()) for file in sorted((tmp_path / processes).rglob("*.json"))])
    for content in (content for found in results for content in found):
        del content["run"]["seconds"], content["curve"]["seconds"]
    assert len(results[0]) == 4
    assert results[0] == results[1]
    shown = capsys.readouterr().err
    assert "tuning 2/2: 100%" in shown
    assert "| 4/4 [" in shown
    assert "runs 2/2: 100%" in shown
    assert "| 6/6 [" in shown


@pytest.mark.parametrize("diverges", [False, True])
def test_a_process_of_several_counts_every_iteration(diverges, tmp_path, monkeypatch):
    if diverges:
        monkeypatch.setattr(inputs.Embedder, "forward", lambda self, images: images.mean((1, 2, 3))[:, None] * math.nan)
        monkeypatch.setattr(training.Run, "recall", lambda self, split: 0.0)
    shared = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(running, "iterations_done", shared)
    seen = []
    monkeypatch.setattr(training.Run, "step", spy(training.Run.step, lambda: seen.append(shared.value)))
    running.work(cell(), tmp_path)
    assert seen == ([0] if diverges else [0, 1])
    assert shared.value == COMMON["iterations"]


def test_a_process_that_is_killed_is_no_traceback(tmp_path, monkeypatch):
    class Broken(running.ProcessPoolExecutor):
        def submit(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr(running, "ProcessPoolExecutor", Broken)
    with pytest.raises(SystemExit, match=r"a process was killed, .* Run the command again with --processes 1"):
        compare_generators.main([*SMALL, "--processes", "2", "--out", str(tmp_path)])


@pytest.mark.parametrize("added", [False, True])
def test_trials_of_another_folder_choose(added, tmp_path, capsys):
    short, long = tmp_path / "short", tmp_path / "long"
    compare_generators.main([*SMALL, "--out", str(short)])
    file = sorted(short.rglob("tune/**/*.json"))[1]  # of the constant's two
    content = json.loads(file.read_text())
    content["run"]["val_recall_at_1"] = 2.0
    file.write_text(json.dumps(content))
    if added:
        compare_generators.main([*SMALL, "--out", str(short), "--add"])
    arguments = ["--out", str(long), "--trials-from", str(short), "--iterations", "4"]
    capsys.readouterr()
    compare_generators.main([*SMALL, *arguments])
    assert "200.0" in capsys.readouterr().out
    assert sorted(path.relative_to(long).parts[1] for path in long.rglob("*.json")) == ["run", "run"]
    chosen = Study(long).load("run", "n_pairs", "constant", 0)[0].settings
    assert {name: chosen[name] for name in ("lr", "alpha", "coefficient", "iterations")} == {
        **{name: content["run"][name] for name in ("lr", "alpha", "coefficient")},
        "iterations": 4,
    }
    compare_generators.main([*SMALL, "--generators", "real", "--out", str(short)])
    capsys.readouterr()
    compare_generators.main([*SMALL, *arguments, "--generators", "none", "real", "--report"])
    assert "real negatives" not in capsys.readouterr().out  # tuned, and not run here
    compare_generators.main([*SMALL, *arguments, "--generators", "real", "--report", "--out", str(tmp_path / "none")])
    assert capsys.readouterr().out == f"nothing in {tmp_path / 'none'} yet\n"
    for words, message in (
        (["--generators", "hardest"], rf"{short} has not all trials of n_pairs, hardest; tune there first"),
        (["--trial-iterations", "3"], r"has other settings .*; choose another --trials-from"),
        (["--embedding-size", "16"], r"has other settings .*; choose another --out"),
        (
            ["--trials-from", str(long), "--report"],
            rf"there are runs in {long}, and no trials in {long}; give --trials",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            compare_generators.main([*SMALL, *arguments, *words])
    assert not (short / "cells" / "tune" / "n_pairs" / "hardest").exists()
    wide = tmp_path / "wide"
    compare_generators.main([*SMALL, *arguments, "--embedding-size", "16", "--out", str(wide)])
    assert Study(wide).load("run", "n_pairs", "constant", 0)[0].settings == {**chosen, "embedding_size": 16}


@pytest.mark.parametrize("added", [False, True])
def test_a_result_is_repeated(added, tmp_path, capsys):
    again = ["--out", str(tmp_path), "--repeat", "tune", "proxy_anchor", "constant", "0"]
    repeated = cell("constant", {"alpha": 2.0, "coefficient": 0.5, "merging": "hardest"})
    trained = training.train(repeated)
    study = Study(tmp_path)
    study.write(repeated, trained)
    if added:
        study.add()
    threads = torch.get_num_threads()
    compare_generators.main(again)
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out.rstrip().endswith("same")
    for table in (study.runs, study.curves):
        table.rows.clear()
        table.file.unlink(missing_ok=True)
    study.write(repeated, {**trained, "val_recall_at_1": trained["val_recall_at_1"] + 1})
    if added:
        study.add()
    with pytest.raises(
        SystemExit,
        match=r"tune proxy_anchor constant 0 differs from .*, where it was made by .*'torch': '.* as AVX2 does with "
        "ATEN_CPU_CAPABILITY=avx2",
    ):
        compare_generators.main(again)
    assert "DIFFERENT" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has no run n_pairs gca 7"):
        compare_generators.main(["--out", str(tmp_path), "--repeat", "run", "n_pairs", "gca", "7"])


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
    file = tmp_path / "cells" / "run" / "n_pairs" / "none" / "0.json"
    content = json.loads(file.read_text())
    content["run"] |= {"torch": "3.0", "processor": "another"}
    file.write_text(json.dumps(content))
    for _ in range(2):
        compare_generators.main([*args, "--report"])
        assert capsys.readouterr().out.endswith(f"\nTrained with {here} and torch 3.0 (another).\n")
        compare_generators.main([*args, "--add"])
        capsys.readouterr()


def test_bad_arguments(capsys):
    for arguments, message in (
        (["--generators", "daml"], "invalid choice: 'daml'"),
        (["--generators", "hdlm"], "invalid choice: 'hdlm' (did you mean hdml?); see the list"),
        (["--losses", "npairs"], "argument --losses: invalid choice: 'npairs' (did you mean n_pairs?)"),
        (["--add"], "--add needs --out, the folder of the study"),
        (["--time"], "--time needs --out, the folder of the study"),
        (["--time", "--trials-from", "there"], "--time needs the trials of --out"),
        (["--add", "--report"], "not allowed with argument"),
        (["--repeat", "run", "n_pairs", "gca", "first"], "--repeat needs a number"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--image-size", "8"], "--image-size must be at least 16"),
        (["--embedding-size", "9"], "--embedding-size must be divisible by the 2 heads"),
    ):
        with pytest.raises(SystemExit):
            compare_generators.main(arguments)
        assert message in capsys.readouterr().err
