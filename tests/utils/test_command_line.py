"""Options that scripts share, and the words of error messages."""

import argparse
from pathlib import Path

import pytest

from pml_gca.paper import recipes
from pml_gca.utils.command_line import add_folder_options, add_image_options, check_minimums, told_when_stopped
from pml_gca.utils.validation import first_of, suggestion


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


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (0, 3, ""),
        (1, 3, "0"),
        (3, 3, "0, 1, 2"),
        (4, 3, "0, 1, 2 and 1 more"),
        (100, 1, "0 and 99 more"),
    ],
)
def test_first_of(count: int, limit: int, expected: str) -> None:
    assert first_of(range(count), limit) == expected


def test_five_names_are_shown_by_default() -> None:
    assert first_of([Path("a"), "b", 3, None, 1.5]) == "a, b, 3, None, 1.5"
    assert first_of("abcdef") == "a, b, c, d, e and 1 more"


def test_the_nearest_name_is_suggested() -> None:
    assert suggestion("cars", ["cub", "cars196", "cats"]) == " (did you mean cats?)"
    assert suggestion("cars19", (name for name in ("cub", "cars196", "cats"))) == " (did you mean cars196?)"


def test_no_suggestion_without_a_similar_name() -> None:
    assert suggestion("xyz", ["cub", "cars196"]) == ""
    assert suggestion("cub", []) == ""


def test_recipes_use_the_same_suggestion() -> None:
    assert recipes.suggestion is suggestion


def test_a_stopped_command_ends_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["folder/train.py", "--epochs", "8"])
    with pytest.raises(SystemExit) as end, told_when_stopped("finished epochs are kept"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "\ntrain.py: stopped; finished epochs are kept\n"


def test_other_errors_are_not_touched():
    with pytest.raises(ZeroDivisionError), told_when_stopped(""):
        raise ZeroDivisionError
