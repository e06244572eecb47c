import contextlib
import csv
import gc
import weakref

import pytest
import step_cost
import torch
from cost import timing
from cost.case import Case
from cost.workload import Workload

SMALL = ["--embedding-size", "16", "--num-layers", "1", "--num-heads", "2", "--repeats", "1"]
SMALL += ["--threads", str(torch.get_num_threads())]


def test_tables_and_plot(tmp_path, capsys):
    rows = [
        "--batch-size",
        "12",
        "6",
        "9",
        "--naive-up-to",
        "9",
        "--edge-chunk-size",
        "10",
        "--precision",
        "fp32",
        "bf16",
    ]
    files = ["--out", str(tmp_path / "cost"), "--plot", str(tmp_path / "cost.png")]
    step_cost.main([*SMALL, *rows, *files, "--no-memory"])
    printed = capsys.readouterr()
    text = (tmp_path / "cost" / "step_cost.md").read_text(encoding="utf-8")
    assert printed.out.strip() == text.strip()
    assert "B 12: " in printed.err  # the progress bar
    assert f"torch {torch.__version__}" in text.splitlines()[0]
    assert f"{torch.get_num_threads()} CPU threads" in text.splitlines()[0]
    head, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    titles = [title.strip() for title in head.strip("|").split("|")]
    assert len(set(titles)) == len(titles)
    for title in ("propagation, ms", "loss step, ms", "step, × naive's speed", "of matrix-product rate"):
        assert title in titles
    assert "peak memory, MB" not in titles  # nothing there to show
    for words in ("pml-gca, fp32: time grows as B^", "Loss step, pml-gca: bf16 runs at", "bf16 against fp32, B 6"):
        assert words in text
    assert "naive, fp32: time grows" not in text  # from two batch sizes
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")

    with (tmp_path / "cost" / "step_cost.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = ["pml-gca", "pml-gca, chunks of 10 edges"]
    wanted = [
        (size, precision, how)
        for size in ("6", "9", "12")
        for precision in ("fp32", "bf16")
        for how in [*(["naive"] if size != "12" else []), *ours]
    ]
    assert [(row["batch_size"], row["precision"], row["how"]) for row in rows] == wanted
    assert len(lines) == len(rows)
    slow, plain = rows[:2]
    for name in ("propagation", "step"):
        assert float(plain[f"{name}_s"]) == float(plain[f"{name}_quartile1_s"]) > 0
        ratio = float(slow[f"{name}_s"]) / float(plain[f"{name}_s"])
        assert float(plain[f"{name}_speedup"]) == pytest.approx(ratio)
    for row in rows:
        assert row["note"] == row["peak_bytes"] == row["trunk_s"] == row["step_of_floor"] == ""
        if row["how"] == "naive":
            assert row["efficiency"] == ""
        else:
            rate = float(row["matrix_multiply_adds_per_s"])
            share = int(row["multiply_adds"]) / float(row["step_s"]) / rate
            assert float(row["efficiency"]) == pytest.approx(share)
            assert int(row["estimated_bytes"]) > 0


def test_memory_in_a_fresh_process_and_share_of_a_trunk(tmp_path, capsys):
    trunk = ["--trunk", "squeezenet1_1", "--image-size", "32"]
    step_cost.main([*SMALL, "--batch-size", "96", "--naive-up-to", "0", "--out", str(tmp_path), *trunk])
    printed = capsys.readouterr().out
    with (tmp_path / "step_cost.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["note"] == ""
    parts = {name: float(row[f"{name}_s"]) for name in ("loss_alone", "optimizer", "fused_optimizer", "first_step")}
    assert all(0 < seconds < 60 for seconds in parts.values())
    assert f"AdamW {1000 * parts['optimizer']:.3g} ms, AdamW with fused=True" in printed
    coefficients = 4 * 16 * 96 * 97 / 2
    assert coefficients < int(row["peak_bytes"]) < 1000 * coefficients
    share = float(row["step_s"]) / (float(row["step_s"]) + float(row["trunk_s"]))
    assert float(row["share_of_training"]) == pytest.approx(share)


def test_classes_of_the_batch(tmp_path, capsys):
    arguments = ["--batch-size", "12", "--num-classes", "500", "--naive-up-to", "0", "--no-memory"]
    step_cost.main([*SMALL, *arguments, "--classify-among-batch", "--out", str(tmp_path)])
    assert "pml-gca, J_soft among the batch's classes" in capsys.readouterr().out
    with (tmp_path / "step_cost.csv").open(newline="", encoding="utf-8") as file:
        plain, restricted = csv.DictReader(file)
    negatives, classes = 12 * 3, 4
    saved = 2 * negatives * 16 * (500 - classes)
    assert int(plain["multiply_adds"]) - int(restricted["multiply_adds"]) == saved


def test_a_compiled_generator(tmp_path, capsys, monkeypatch):
    given, compiled = [], torch.compile

    def compile_quickly(function, **kwargs):
        given.append(kwargs)
        return compiled(function, backend="eager", fullgraph=kwargs["fullgraph"])

    monkeypatch.setattr(torch, "compile", compile_quickly)
    arguments = ["--batch-size", "6", "--naive-up-to", "0", "--no-memory", "--compile"]
    step_cost.main([*SMALL, *arguments, "--out", str(tmp_path)])
    assert "pml-gca, compiled" in capsys.readouterr().out
    with (tmp_path / "step_cost.csv").open(newline="", encoding="utf-8") as file:
        plain, row = csv.DictReader(file)
    assert float(row["step_of_plain"]) == pytest.approx(float(row["step_s"]) / float(plain["step_s"]))
    assert given == [{"fullgraph": True, "mode": None}]


def test_a_case_that_fails_in_its_process_is_noted_and_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_cost.memory, "in_fresh_process", lambda *_: {"error": "killed by signal 9"})
    step_cost.main([*SMALL, "--batch-size", "6", "--naive-up-to", "0", "--out", str(tmp_path)])
    assert "- B 6, fp32, pml-gca: killed by signal 9." in capsys.readouterr().out
    with (tmp_path / "step_cost.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["note"], row["step_s"]) == ("killed by signal 9", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "9", "1"], "--batch-size must be at least 2, got 1"),
        (["--batch-size", "9", "3"], "--batch-size must exceed --samples-per-class"),
        (["--edge-chunk-size", "0"], "--edge-chunk-size must be at least 1, got 0"),
        (["--samples-per-class", "1"], "--samples-per-class must be at least 2, got 1"),
        (["--embedding-size", "10", "--num-heads", "4"], "--embedding-size must be divisible by --num-heads"),
        (["--batch-size", "81", "--num-classes", "26"], "--num-classes must be at least 27"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--precision", "tf32"], "--precision tf32 needs --device cuda"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--cuda-graph"], "--cuda-graph needs --device cuda"),
        (["--plot", "cost.pdf"], "--plot must name a .png file"),
        (["--trunk", "resnet5"], "torchvision has no classifier 'resnet5'; try resnet50"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        step_cost.main(arguments)
    assert message in capsys.readouterr().err


def test_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        step_cost.main(["--device", "cuda"])
    assert "--device cuda: torch finds no GPU" in capsys.readouterr().err


def test_help_tells_of_every_option(capsys):
    with pytest.raises(SystemExit):
        step_cost.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--batch-size", "--edge-chunk-size", "--compile", "--cuda-graph", "--trunk", "--naive-up-to"):
        assert option in text
    assert "--probe" not in text
    assert "--first-step" not in text


def test_one_of_the_optimizers_is_fused():
    work = Workload(Case(6, "fp32", embedding_size=8, num_layers=1, num_heads=2, threads=torch.get_num_threads()))
    assert all(group["fused"] for group in work.fused_optimizer.param_groups)
    assert not any(group["fused"] for group in work.optimizer.param_groups)
    before = [parameter.detach().clone() for parameter in work.generator.parameters()]
    work.optimize_fused()  # its weight decay moves them
    assert not all(map(torch.equal, before, work.generator.parameters()))


def test_a_captured_graph_keeps_alive_what_it_reads(monkeypatch):
    class Work:
        def step(self):
            pass

    context = contextlib.nullcontext()
    context.wait_stream = lambda other: None
    for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: context)
    work = Work()
    kept = weakref.ref(work)
    replay = timing.captured(work.step)
    del work
    gc.collect()
    assert kept() is not None
    del replay
    gc.collect()
    assert kept() is None
