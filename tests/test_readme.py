"""Run the code of the README and check what it says."""

import importlib
import re
from importlib.metadata import metadata, version
from pathlib import Path

import pml_gca
from pml_gca.losses import NAMED_LOSSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def settings_of(module, *names):
    """Return the type of a module and the named attributes."""
    return type(module), {name: getattr(module, name) for name in names}


def test_code_shown_has_the_settings_of_the_measured_command(monkeypatch):
    """The trainer's code has the loss, generator and optimizers of the command whose results follow."""
    shown = {}
    [block] = [code for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "trainers." in code]
    exec(compile(block, "README.md", "exec"), shown)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("train_with_classifier")
    args = example.classifier_arguments([])
    measured = NAMED_LOSSES[args.loss](20, 128)
    loss, generator = shown["loss"].loss, shown["generator"]
    assert settings_of(loss, "embedding_reg_weight") == settings_of(measured, "embedding_reg_weight")
    distance = ("normalize_embeddings", "p", "power", "is_inverted")
    assert settings_of(loss.distance, *distance) == settings_of(measured.distance, *distance)
    assert settings_of(loss.embedding_regularizer, "p", "power") == settings_of(
        measured.embedding_regularizer, "p", "power"
    )
    layers = generator.propagation.layers
    assert (len(layers), layers[0].node.num_heads) == (args.layers, example.NUM_HEADS)
    assert generator.embedding_size == args.embedding_size
    optimizer = shown["adamw"](shown["loss"].parameter_groups(lr=args.generator_lr))
    assert shown["adamw"].keywords == {"lr": args.lr, "weight_decay": 1e-4}
    assert "adamw(loss.parameter_groups(lr=1e-3))" in README
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]


def test_commands_name_extras_and_files_that_exist():
    extras = metadata("pml-gca").get_all("Provides-Extra")
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert re.search(r"\[(\w+)\]", command).group(1) in extras
    assert (ROOT / re.search(r"python (examples/\S+)", commands[0]).group(1)).exists()


def test_version_and_public_names():
    assert version("pml-gca") == pml_gca.__version__
    assert (Path(pml_gca.__file__).parent / "py.typed").exists()
    for name in pml_gca.__all__:
        assert hasattr(pml_gca, name)
