"""Names and shapes of three of the authors' checkpoints, with random values."""

import json
from pathlib import Path

import pytest
import torch

from pml_gca.paper import load_published_generator
from pml_gca.paper.published_names import published_names

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "published_checkpoint_shapes.json").read_text())
HEADS = {"resnet50_cub": 4, "googlenet_cub": 4, "resnet50_sop": 2}


def checkpoint(name):
    torch.manual_seed(0)
    shapes = {key: shape for key, shape in SHAPES[name].items() if not key.startswith("feature_extractor.")}
    return {key: torch.tensor(7) if "tracked" in key else torch.rand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_checkpoint_loads_whole(name):
    state = checkpoint(name)
    generator = load_published_generator({**state, "other.weight": torch.ones(3)}, num_heads=HEADS[name])
    assert generator.num_classes == len(state["softmax_classifier.bias"])
    assert generator.embedding_size == 512
    assert len(generator.propagation.layers) == HEADS[name] // 2
    names = published_names(HEADS[name] // 2)
    ours = generator.state_dict()
    assert names.keys() == ours.keys()
    assert all(torch.equal(ours[mine], state[theirs]) for mine, theirs in names.items())
    unused = set(state) - set(names.values())
    assert all("update_node" in key or key in ("gnn.bottleneck1.0.bias", "gnn.bottleneck2.0.bias") for key in unused)


def test_missing_and_misshapen_parameters_are_named():
    state = checkpoint("resnet50_sop")
    del state["gnn.fc.0.weight"]
    state["gnn.gnn.0.edge_model.linear.0.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"missing: gnn\.fc\.0\.weight; .*linear\.0\.bias \(5,\) instead of \(2048,\)"):
        load_published_generator(state, num_heads=2)
    with pytest.raises(ValueError, match=r"missing or not 2-D: softmax_classifier\.weight"):
        load_published_generator({"gnn.fc.0.weight": torch.zeros(2, 2)}, num_heads=2)
    with pytest.raises(ValueError, match=r"missing: gnn\.dim_red\.weight"):
        load_published_generator(
            {key: value for key, value in state.items() if not key.startswith("gnn.")}, num_heads=2
        )


@pytest.mark.parametrize("found", [3, [torch.zeros(2)], None])
def test_other_objects_than_state_dicts_are_refused(found):
    with pytest.raises(TypeError, match="state_dict_or_path must be a mapping"):
        load_published_generator(found, num_heads=2)


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    torch.save({"gnn.x": Path}, tmp_path / "code.pth")
    with pytest.raises(Exception, match="weights_only"):
        load_published_generator(tmp_path / "code.pth", num_heads=2)
