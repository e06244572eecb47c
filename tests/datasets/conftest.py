from pathlib import Path

import pytest
from helpers.layouts import CLASSES, PER_CLASS, WRITERS


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small folder of each benchmark."""
    folder = tmp_path_factory.mktemp("roots")
    return {name: write(folder / name, CLASSES, PER_CLASS) for name, write in WRITERS.items()}
