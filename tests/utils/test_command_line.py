import argparse
from pathlib import Path

import pytest

from pml_gca.utils.command_line import add_folder_options, add_image_options, check_minimums


def test_the_option_that_is_too_small_is_named(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, nargs="+")
    parser.add_argument("--epochs", type=int)
    check_minimums(parser, parser.parse_args(["--batch-size", "2", "3"]), batch_size=2, epochs=1)
    for words, message in (
        (["--batch-size", "4", "1"], "--batch-size must be at least 2, got 1"),
        (["--batch-size", "4", "--epochs", "0"], "--epochs must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as end:
            check_minimums(parser, parser.parse_args(words), batch_size=2, epochs=1)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_folder_options():
    parser = argparse.ArgumentParser()
    add_folder_options(parser, "runs/NAME")
    args = parser.parse_args(["--out", "folder", "--resume"])
    assert (args.out, args.resume, args.overwrite) == (Path("folder"), True, False)
    assert "(default: runs/NAME)" in parser.format_help()


def test_image_options():
    parser = argparse.ArgumentParser()
    add_image_options(parser)
    args = parser.parse_args(["--unreadable", "skip", "--workers", "3"])
    assert (args.unreadable, args.workers, args.device) == ("skip", 3, "auto")
    assert parser.parse_args([]).unreadable == "stop"
