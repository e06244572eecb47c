import device_report
import pytest


@pytest.fixture
def two_parts(monkeypatch, tmp_path):
    """A part that works, and one that fails as long as a file is missing."""
    fails = f"open({str(tmp_path / 'mended')!r})"

    def parts(device, out):
        return {"example": ["-c", f"print('on {device}')"], "check": ["-c", fails]}

    monkeypatch.setattr(device_report, "parts", parts)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        device_report.main([str(x) for x in arguments])
    return end.value.code


def test_every_part_has_a_file_and_a_failed_one_runs_again(two_parts, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("--device", "cpu", "--out", out, "--only", "example", "check")
    assert run(*arguments) == "device_report.py: check failed; the same command runs them again"
    assert (out / "cpu_example.txt").read_text() == "on cpu\n"
    assert "FileNotFoundError" in (out / "cpu_check.failed").read_text()
    assert {file.name for file in out.iterdir()} == {"cpu_example.txt", "cpu_check.failed"}
    assert "failed after" in capsys.readouterr().out
    (tmp_path / "mended").touch()
    assert run(*arguments) == 0
    assert "example: done before" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"cpu_example.txt", "cpu_check.txt"}


def test_another_device_has_files_of_its_own(two_parts, tmp_path):
    for device in ("cpu", "cuda"):
        assert run("--device", device, "--out", tmp_path, "--only", "example") == 0
        assert (tmp_path / f"{device}_example.txt").read_text() == f"on {device}\n"


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run() == 2
    assert "--device cuda: torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_commands_are_known_to_the_scripts_that_they_call(device, tmp_path):
    from cost.parsers import check_device_parser, profile_step_parser, step_cost_parser
    from parsers import classifier_arguments

    known = {
        "check_device": check_device_parser().parse_args,
        "profile_step": profile_step_parser().parse_args,
        "step_cost": step_cost_parser().parse_args,
        "train_with_classifier": classifier_arguments,
    }
    seen = set()
    for script, *options in device_report.parts(device, tmp_path).values():
        for name, parse in known.items():
            if script.endswith(f"{name}.py"):
                parse(options)
                seen.add(name)
        assert script == "-m" or (device_report.ROOT / script).is_file()
    assert seen == set(known)
