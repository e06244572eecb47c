"""Every script shows its help at once: it loads neither torch nor PML for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(
    path
    for path in [*EXAMPLES.glob("*.py"), *(EXAMPLES / "benchmarks").glob("*.py")]
    if '__name__ == "__main__"' in path.read_text()
)
SLOW = ("torch", "torchvision", "timm", "pytorch_metric_learning", "matplotlib", "faiss")


@pytest.fixture(scope="module")
def without_slow_packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment where slow packages cannot be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in SLOW:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was loaded')\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(EXAMPLES.parent)])}


def run(script: Path, words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script."""
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, env=environment)


def test_there_are_scripts() -> None:
    names = {path.name for path in SCRIPTS}
    assert {
        "reproduce.py",
        "train_with_classifier.py",
        "train_distributed.py",
        "compare_generators.py",
        "step_cost.py",
    } <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_help_without_slow_packages(script: Path, without_slow_packages: dict[str, str]) -> None:
    ran = run(script, ["--help"], without_slow_packages)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: {script.name}")


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_unknown_options_without_slow_packages(script: Path, without_slow_packages: dict[str, str]) -> None:
    if script.stem == "draw_evidence":  # passes options on to another parser
        return
    ran = run(script, ["--no-such-option"], without_slow_packages)
    assert ran.returncode == 2, ran.stderr
    assert "error: " in ran.stderr


@pytest.mark.parametrize("script", ["train_with_classifier.py", "train_distributed.py"])
@pytest.mark.parametrize("words", [["--lr", "-1"], ["--generator-lr", "nan"], ["--generator-lr", "inf"]])
def test_bad_rates_before_anything_is_trained(
    script: str, words: list[str], without_slow_packages: dict[str, str]
) -> None:
    ran = run(EXAMPLES / script, words, without_slow_packages)
    assert ran.returncode == 2, ran.stderr
    number = float(words[1])
    assert f"error: {words[0]} must be a finite number of at least 0, got {number}" in ran.stderr
