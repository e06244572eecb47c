import device_report
import pytest


@pytest.fixture
def two_parts(monkeypatch):
    monkeypatch.setattr(
        device_report, "parts", lambda device: {"example": ["-c", f"print('on {device}')"], "check": ["-c", "1 / 0"]}
    )


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        device_report.main([str(x) for x in arguments])
    return end.value.code


def test_every_part_has_a_file_and_a_failed_one_runs_again(two_parts, tmp_path, capsys):
    arguments = ("--device", "cpu", "--out", tmp_path, "--only", "example", "check")
    assert run(*arguments) == "device_report.py: check failed; the same command runs them again"
    assert (tmp_path / "example.txt").read_text() == "on cpu\n"
    assert "ZeroDivisionError" in (tmp_path / "check.failed").read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"example.txt", "check.failed"}
    capsys.readouterr()
    assert "check" in run(*arguments)
    printed = capsys.readouterr().out
    assert "example: done before" in printed
    assert "failed after" in printed


def test_some_parts_alone(two_parts, tmp_path):
    assert run("--out", tmp_path, "--only", "example") == 0
    assert (tmp_path / "example.txt").read_text() == "on cuda\n"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_commands_are_known_to_the_scripts_that_they_call(device):
    from cost.parsers import check_device_parser, profile_step_parser, step_cost_parser

    known = {"check_device": check_device_parser, "profile_step": profile_step_parser, "step_cost": step_cost_parser}
    seen = set()
    for script, *options in device_report.parts(device).values():
        for name, parser in known.items():
            if script.endswith(f"{name}.py"):
                parser().parse_args(options)
                seen.add(name)
        assert script == "-m" or (device_report.ROOT / script).is_file()
    assert seen == set(known)
