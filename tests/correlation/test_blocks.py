"""How the generator's linear layers start."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.blocks import initialize_attention
from pml_gca.paper.published_names import published_names

SIZE = 512
OF_ATTENTION = re.compile(r"layers\.\d\.(node\.(query|key|value|out)|edge\.(query|key|value))")


def linear_layers(generator):
    return {name: layer for name, layer in generator.named_modules() if isinstance(layer, nn.Linear)}


def test_attention_starts_as_published():
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(20, SIZE, num_layers=2)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    initialize_attention(generator)
    layers = linear_layers(generator)
    attention = [name for name in layers if OF_ATTENTION.search(name)]
    assert len(attention) == 2 * (4 + 3)
    for name in attention:
        weight, bias = layers[name].weight, layers[name].bias
        assert weight.std().item() == pytest.approx(0.0442, abs=2e-4)  # sqrt(2 / (512 + 512))
        assert weight.mean().item() == pytest.approx(0, abs=4e-4)
        bound = (6 / (SIZE + SIZE)) ** 0.5
        assert 0.999 * bound < weight.abs().max().item() <= bound
        assert not bias.any()
        assert weight.requires_grad
        assert bias.requires_grad
    drawn = {f"{name}.{kind}" for name in attention for kind in ("weight", "bias")}
    assert {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])} == drawn
    # PyTorch's own, as which all of them start without
    assert before[f"{attention[0]}.weight"].std().item() == pytest.approx(0.0255, abs=2e-4)
    assert before[f"{attention[0]}.bias"].any()


def test_these_are_the_layers_that_the_published_code_starts_so():
    """The reference's weights are those of its start, and some noise."""
    with np.load(Path(__file__).parents[1] / "data" / "small_2layer.npz") as file:
        theirs = {name.removeprefix("state."): file[name] for name in file.files if name.startswith("state.")}
    generator = GlobalCorrelationGenerator(12, 16, num_layers=2)
    names = published_names(2)
    spreads = {
        name: theirs[names[f"{name}.weight"]].std() * layer.in_features**0.5
        for name, layer in linear_layers(generator).items()
    }
    wide = {name for name, spread in spreads.items() if spread > 0.85}  # 1 of Xavier's, 0.58 of PyTorch's
    assert wide == {name for name in spreads if OF_ATTENTION.search(name)}
    for name, layer in linear_layers(generator).items():  # noise alone, and a bias of PyTorch's with noise
        bias = theirs[names[f"{name}.bias"]].std()
        assert (bias < 0.09) == (name in wide) or layer.in_features > 16, name
