"""State dicts with names and shapes of three of the authors' checkpoints, and small ones like them; random values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.paper import load_published_generator
from pml_gca.paper.backbones import build_backbone, build_head
from pml_gca.paper.checkpoints import load_published_checkpoint, published_state_dict
from pml_gca.paper.recipes import DINO_CUB, RESNET50_CUB, find_recipe

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "published_checkpoint_shapes.json").read_text())
BACKBONE = "feature_extractor.backbone."
TINY = replace(RESNET50_CUB, name="tiny", backbone="test_resnet", embedding_size=8, num_layers=1, num_heads=2, alpha=3)
TINY_DINO = replace(DINO_CUB, embedding_size=8, num_layers=1, num_heads=2)


def fill(shapes):
    """Values with which a deep network neither overflows nor ignores its images."""
    source = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=source) / fan_in**0.5
        else:
            low, high = {"weight": (0.5, 1.5), "running_var": (0.3, 0.9)}.get(name.split(".")[-1], (-0.5, 0.5))
            state[name] = low + (high - low) * torch.rand(shape, generator=source)
    return state


def tiny_checkpoint(recipe=TINY, num_classes=5, **kwargs):
    torch.manual_seed(0)
    trunk = build_backbone(recipe.backbone, pretrained=False, **kwargs)
    embedder = build_head(trunk.num_features, recipe.embedding_size)
    generator = GlobalCorrelationGenerator(
        num_classes, recipe.embedding_size, num_layers=recipe.num_layers, num_heads=recipe.num_heads
    )
    shapes = {name: value.shape for name, value in published_state_dict(trunk, embedder, generator, recipe).items()}
    return fill(shapes)


def images(size=64):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def embed(models, size=64):
    trunk, embedder, _ = models
    with torch.no_grad():
        return embedder(trunk(images(size)))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(name, state):
    """Embeddings of the authors' image model: torchvision's network with the parameters of the checkpoint."""
    model = name.partition("_")[0]
    prefix = f"{BACKBONE}model." if model == "resnet50" else BACKBONE
    if model == "resnet50":
        backbone = torchvision.models.resnet50()
    else:
        backbone = torchvision.models.googlenet(aux_logits=True, transform_input=True, init_weights=False)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    backbone.load_state_dict(own)
    backbone.eval()
    backbone.fc = nn.Identity()
    with torch.no_grad():
        if model == "resnet50":
            average, backbone.avgpool = backbone(images()), nn.AdaptiveMaxPool2d(1)
            features = average + backbone(images())
        else:
            features = backbone(images())
        norm = {
            key: state[f"feature_extractor.fc.0.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        features = (features - norm["running_mean"]) * scale + norm["bias"]
        return features @ state["feature_extractor.fc.1.weight"].T + state["feature_extractor.fc.1.bias"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_checkpoint_loads_whole_and_is_written_back(name):
    state, recipe = fill(SHAPES[name]), find_recipe(name)
    models = load_published_checkpoint(state, name)
    assert not any(module.training for model in models for module in model.modules())
    trunk, _, generator = models
    embeddings = embed(models)
    torch.testing.assert_close(embeddings, by_hand(name, state), rtol=1e-3, atol=1e-3)
    assert 0.05 < embeddings.std(dim=0).mean() < 100

    expected = load_published_generator(state, num_heads=recipe.num_heads)
    assert same(generator.state_dict(), expected.state_dict())
    assert generator.num_classes == len(state["softmax_classifier.bias"])
    assert (generator.alpha, generator.objective.diversity_weight) == (recipe.alpha, recipe.diversity_weight)
    labels = torch.tensor([0, 0, 1])
    with torch.no_grad():
        ours, theirs = generator.correlate(embeddings, labels), expected.eval().correlate(embeddings, labels)
    assert torch.equal(ours.node_logits, theirs.node_logits)
    frozen = {key for key, parameter in trunk.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == (recipe.frozen == "batch_norm")

    written = published_state_dict(*models, name)
    assert written.keys() <= state.keys()
    shifts = {"gnn.bottleneck1.0.bias", "gnn.bottleneck2.0.bias"}
    assert all(torch.equal(value, state[key]) for key, value in written.items() if key not in shifts)
    assert all(torch.equal(written[key], torch.zeros(512)) for key in shifts)
    inner = "model." if name.startswith("resnet50") else ""
    layers = tuple(f"{BACKBONE}{inner}{layer}." for layer in ("fc", "aux1", "aux2"))
    assert all(key.startswith(layers) or ".update_node." in key for key in state.keys() - written.keys())
    again = load_published_checkpoint(written, recipe)
    assert torch.equal(embed(again), embeddings)
    assert same(again[2].state_dict(), generator.state_dict())


def test_generator_has_the_settings_of_the_recipe():
    recipe = replace(TINY, classification_weight=2, similarity_weight=4, diversity_weight=6)
    generator = load_published_checkpoint(tiny_checkpoint(), recipe)[2]
    assert (generator.alpha, generator.objective.classification_weight) == (3, 2)
    assert (generator.objective.similarity_weight, generator.objective.diversity_weight) == (4, 6)
    other = load_published_checkpoint(tiny_checkpoint(), replace(TINY, num_heads=4))[2]
    x, labels = torch.randn(6, 8), torch.arange(6) % 3
    with torch.no_grad():
        assert not torch.equal(generator.correlate(x, labels).node_logits, other.correlate(x, labels).node_logits)


def test_files_nested_state_dicts_and_data_parallel_names(tmp_path):
    state = tiny_checkpoint()
    expected = embed(load_published_checkpoint(state, TINY), 32)
    parallel = {f"module.{name}": value for name, value in state.items()}
    forms = [state, {"state_dict": state, "epoch": 3}, parallel, {"state_dict": parallel}]
    forms.append({**state, "optimizer": {"lr": 0.1}, 3: "three"})
    for form in forms:
        torch.save(form, tmp_path / "checkpoint.pth")
        for source in (form, tmp_path / "checkpoint.pth", str(tmp_path / "checkpoint.pth")):
            models = load_published_checkpoint(source, TINY)
            assert torch.equal(embed(models, 32), expected)
    generator = load_published_generator({"state_dict": parallel}, num_heads=2)
    assert same(generator.state_dict(), models[2].state_dict())


def test_modules_have_the_dtype_of_the_checkpoint():
    state = {name: value.double() if value.is_floating_point() else value for name, value in tiny_checkpoint().items()}
    models = load_published_checkpoint(state, TINY)
    assert {tensor.dtype for model in models for tensor in model.parameters()} == {torch.float64}
    written = published_state_dict(*models, TINY)
    shifts = ("gnn.bottleneck1.0.bias", "gnn.bottleneck2.0.bias")
    assert all(torch.equal(value, state[name]) for name, value in written.items() if name not in shifts)
    assert all(written[name].dtype == torch.float64 for name in shifts)


@pytest.fixture(scope="module")
def dino():
    """A DINO model for images of 32 x 32 pixels, 2 x 2 patches."""
    state = tiny_checkpoint(TINY_DINO, image_size=32)
    assert state[f"{BACKBONE}pos_embed"].shape == (1, 5, 384)
    return state


def test_a_vision_transformer_with_and_without_inner_names(dino):
    trunk = build_backbone("dino_vits16", pretrained=False, image_size=32).eval()
    trunk.load_state_dict({k.removeprefix(BACKBONE): v for k, v in dino.items() if k.startswith(BACKBONE)})
    with torch.no_grad():
        features = trunk(images(32))
    for inner in ("", "model."):
        named = {name.replace(BACKBONE, BACKBONE + inner): value for name, value in dino.items()}
        models = load_published_checkpoint(named, TINY_DINO)
        with torch.no_grad():
            assert torch.equal(models[0](images(32)), features)
        written = published_state_dict(*models, TINY_DINO)
        assert written.keys() == dino.keys()
        assert all(torch.equal(written[key], dino[key]) for key in dino if "bottleneck" not in key)
    frozen = {name for name, parameter in models[0].named_parameters() if not parameter.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    with pytest.raises(AssertionError, match="height"):
        embed(models, 48)


def test_vision_transformer_at_another_image_size(dino):
    models = load_published_checkpoint(dino, TINY_DINO, image_size=48)
    assert embed(models, 48).shape == (3, 8)
    before, after = dino[f"{BACKBONE}pos_embed"][0], models[0].pos_embed[0]
    assert after.shape == (1 + 3 * 3, 384)
    assert torch.equal(after[0], before[0])  # of the class token
    torch.testing.assert_close(after[5], before[1:].mean(dim=0))  # the middle of four
    again = load_published_checkpoint(published_state_dict(*models, TINY_DINO), TINY_DINO)
    assert torch.equal(embed(again, 48), embed(models, 48))


def test_a_checkpoint_of_another_backbone_is_refused():
    with pytest.raises(ValueError, match="not a published checkpoint of the recipe resnet50_cub; missing: ") as raised:
        load_published_checkpoint(fill(SHAPES["googlenet_cub"]), "resnet50_cub")
    message = str(raised.value)
    assert "missing: feature_extractor.backbone.model.conv1.weight, feature_extractor.backbone.model.bn1" in message
    assert "and 314 more; unexpected: feature_extractor.backbone.conv1.conv.weight" in message
    assert "of another shape: feature_extractor.fc.0.weight (1024,) instead of (2048,)" in message
    assert len(message) < 2000


def test_a_checkpoint_of_other_sizes_is_refused():
    one, two = tiny_checkpoint(), tiny_checkpoint(replace(TINY, num_layers=2))
    with pytest.raises(ValueError, match=r"tiny; missing: gnn\.gnn\.1\.node_model\.\S+, .* and \d+ more$"):
        load_published_checkpoint(one, replace(TINY, num_layers=2))
    with pytest.raises(ValueError, match=r"tiny; unexpected: gnn\.gnn\.1\.\S+, .* and \d+ more$"):
        load_published_checkpoint(two, TINY)
    with pytest.raises(ValueError, match=r"shape: feature_extractor\.fc\.1\.weight \(8, 96\) instead of \(4, 96\)"):
        load_published_checkpoint(one, replace(TINY, embedding_size=4))


def test_missing_parameters_are_named():
    state = tiny_checkpoint()
    del state[f"{BACKBONE}conv1.0.weight"], state["gnn.fc.0.bias"], state["feature_extractor.fc.1.bias"]
    found = r"missing: \S+conv1\.0\.weight, feature_extractor\.fc\.1\.bias, gnn\.fc\.0\.bias$"
    with pytest.raises(ValueError, match=found):
        load_published_checkpoint(state, TINY)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"conv1.weight": torch.zeros(2)},
        {"softmax_classifier.weight": torch.tensor(1.0)},
        {"softmax_classifier.weight": torch.zeros(0, 8)},
        {"softmax_classifier.weight": "none"},
        {f"{BACKBONE}pos_embed": torch.zeros(3), f"{BACKBONE}patch_embed.proj.weight": torch.zeros(3)},
    ],
)
def test_other_objects_than_checkpoints_are_refused(found):
    for recipe in (TINY, replace(TINY, backbone="test_vit", frozen=None)):
        with pytest.raises(ValueError, match=r"not a published checkpoint of the recipe tiny; missing: .* more"):
            load_published_checkpoint(found, recipe)


def test_files_that_torch_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_published_checkpoint(tmp_path / "none.pth", TINY)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"x": torch.zeros(1000)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"x": Path}, tmp_path / "code.pth")
    for name in ("text.pth", "empty.pth", "half.pth", "code.pth"):
        with pytest.raises(ValueError, match=rf"{name} is not a complete file of torch\.save, or holds"):
            load_published_checkpoint(tmp_path / name, TINY)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(TypeError, match=r"must be a mapping of parameter names to tensors.* got list"):
        load_published_checkpoint(tmp_path / "list.pth", TINY)


def test_unknown_recipes_are_refused():
    with pytest.raises(ValueError, match=r"'resnet50_cup' \(did you mean resnet50_cub\?\)"):
        load_published_checkpoint({}, "resnet50_cup")
    with pytest.raises(ValueError, match="no recipe is called 'x'"):
        published_state_dict(nn.Identity(), nn.Identity(), GlobalCorrelationGenerator(3, 8), "x")
