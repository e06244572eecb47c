"""Names in any script, and with dollar signs, are drawn as they are written."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

from pml_gca.visualize import fonts, plot_curves, plot_gains, plot_retrieval, try_to_save

NOWHERE = "\U0001f9ff"  # no font of matplotlib has it
CURVE = {"iterations": [0, 10], "seconds": [0.0, 1.0], "recall_at_1": [0.1, 0.2]}


def retrieval(name: str, title: str | None = None) -> Figure:
    images, queries = torch.rand(4, 1, 8, 8), torch.tensor([0])
    return plot_retrieval(
        images,
        torch.zeros(4, dtype=torch.long),
        queries,
        {name: torch.tensor([[1, 2]])},
        top=2,
        class_names=[name],
        title=title,
    )


FIGURES: dict[str, Callable[[str], Figure]] = {
    "retrieval": lambda name: retrieval(name, title=name),
    "curves": lambda name: plot_curves({name: CURVE}, title=name),
    "gains": lambda name: plot_gains({name: (1.0, 0.5)}, title=name),
}


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FIGURES)
def test_a_dollar_sign_is_no_formula(kind: str) -> None:
    before = dict(rcParams)
    figure = FIGURES[kind](r"$\frac$ for 5$")
    figure.savefig(io.BytesIO())  # as a formula this raises
    assert any("$" in text.get_text() for text in texts_of(figure))
    assert dict(rcParams) == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FIGURES)
def test_characters_of_another_font_are_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = fonts.characters
    lacking = frozenset(map(ord, "鳥"))
    only = {"STIXGeneral.ttf"}
    monkeypatch.setattr(
        fonts, "characters", lambda file: known(file) | lacking if Path(file).name in only else known(file) - lacking
    )
    families = fonts.families_for(["鳥", "plain"])
    assert families == [*rcParams["font.family"], "STIXGeneral"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = FIGURES[kind]("鳥")
        figure.savefig(io.BytesIO())
    drawn = [text for text in texts_of(figure) if "鳥" in text.get_text()]
    assert drawn
    assert all(text.get_fontfamily() == families for text in drawn)


def test_the_search_for_a_font_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fonts.families_for([NOWHERE])
    assert not caplog.records


def test_plain_names_keep_the_usual_font() -> None:
    assert fonts.families_for(["class 7", "λ → ∞", "a\tb\n", "Ünïcode"]) == list(rcParams["font.family"])


def test_characters_that_no_font_has_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = fonts.characters
    monkeypatch.setattr(fonts, "characters", lambda file: known(file) - {ord(NOWHERE)})  # whatever is installed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert try_to_save(tmp_path / "figure.png", lambda: retrieval(NOWHERE))
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"no installed font has 1 of the characters in names, such as {NOWHERE}: they are drawn")
    assert (tmp_path / "figure.png").stat().st_size > 0
