"""Losses by name."""

import pytest
import torch

from pml_gca import names
from pml_gca.losses import NAMED_LOSSES


def test_they_are_those_that_commands_offer() -> None:
    assert tuple(NAMED_LOSSES) == names.LOSSES


@pytest.mark.parametrize("name", NAMED_LOSSES)
def test_each_is_made_by_position_or_keyword(name: str) -> None:
    made = NAMED_LOSSES[name](3, 8), NAMED_LOSSES[name](num_classes=3, embedding_size=8)
    assert type(made[0]) is type(made[1])
    shapes = [[tuple(p.shape) for p in loss.parameters()] for loss in made]
    assert shapes[0] == shapes[1]
    assert all(set(shape) == {3, 8} for shape in shapes[0])
    assert made[0](torch.randn(6, 8), torch.arange(6) % 3).isfinite()


@pytest.mark.parametrize("name", NAMED_LOSSES)
def test_bad_sizes_are_told(name: str) -> None:
    with pytest.raises(TypeError, match="num_classes must be an integer, got str"):
        NAMED_LOSSES[name]("3", 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embedding_size must be at least 1, got 0"):
        NAMED_LOSSES[name](3, 0)
