"""The cheap form of fine-tuning: frozen layers run once, and the rest of the backbone is trained on their outputs."""

import compare_generators
import numpy as np
import pytest
import torch
from comparison.frozen import VIEWS, FrozenFeatures, cut_after, load_frozen, output_of
from comparison.inputs import Inputs, load_split
from comparison.networks import FineTuned
from helpers.pictures import BACKBONE, arguments, make_pictures, rows
from torch import nn

CUT = "blocks.2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


class Nested(nn.Module):
    """Layers in a row, some of them in a `Sequential`."""

    feature_info = ({"module": "stages.0"}, {"module": "stages.1"})

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.stages = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.ReLU()), nn.Linear(6, 7))
        self.last = nn.Linear(7, 2)

    def forward(self, x):
        return self.last(self.stages(self.stem(x)))


@pytest.mark.parametrize(
    ("name", "width", "kept"),
    [
        ("stem", 4, {"stages.0", "stages.1.0", "stages.2", "last"}),
        ("stages.0", 5, {"stages.1.0", "stages.2", "last"}),
        ("stages.1.0", 6, {"stages.2", "last"}),
        ("stages.2", 7, {"last"}),
    ],
)
def test_the_rest_of_a_model_takes_the_output_of_its_front(name, width, kept):
    torch.manual_seed(0)
    model = Nested()
    x = torch.randn(5, 3)
    outputs, whole = output_of(model, name, x)
    assert outputs.shape == (5, width)
    cut_after(model, name)
    assert {path for path, module in model.named_modules() if isinstance(module, nn.Linear)} == kept
    assert torch.equal(model(outputs), whole)


@pytest.mark.parametrize("name", ["", "stages.7", "nothing"])
def test_a_module_that_a_model_lacks(name):
    with pytest.raises(ValueError, match=r"must name a module of the backbone, such as stages\.0, stages\.1; got"):
        output_of(Nested(), name, torch.zeros(1, 3))


def test_a_network_that_starts_late_returns_what_the_whole_one_does(made):
    torch.manual_seed(0)
    net = FineTuned(BACKBONE, made / "weights.pth", 8).train()
    images = torch.rand(3, 3, 32, 32)
    whole = net.features(images)
    outputs, _ = output_of(net.trunk, CUT, net.normalized(images))
    before = sum(p.numel() for p in net.parameters())
    net.start_after(CUT, 32)
    torch.testing.assert_close(net.features(outputs), whole, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) < before
    net(outputs).sum().backward()
    assert all(p.grad is not None for group in net.parameter_groups(1.0) for p in group["params"])


def test_a_model_that_uses_more_than_the_output_of_one_module(made):
    net = FineTuned(BACKBONE, made / "weights.pth", 8)
    inner = net.trunk.blocks

    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = inner[0], nn.Identity()

        def forward(self, x):
            return self.second(self.first(x)) + 10 * x.mean()

    net.trunk.blocks = nn.Sequential(Shortcut(), *inner[1:])
    with pytest.raises(ValueError, match=r"uses more than the output of blocks\.0\.first; choose another module"):
        net.start_after("blocks.0.first", 32)


def test_a_view_is_drawn_for_each_image():
    values = np.arange(3 * 4, dtype=np.float16).reshape(3, 4, 1, 1, 1)  # 4 * view + image
    data = FrozenFeatures(values, torch.tensor([0, 0, 1, 1]))
    assert (len(data), data.num_classes) == (4, 2)
    torch.manual_seed(0)
    seen = {(int(x) // 4, int(x) % 4, label) for _ in range(60) for x, label in data.__getitems__([1, 3])}
    assert seen == {(view, image, image // 2) for view in range(3) for image in (1, 3)}


def test_views_are_computed_once_and_are_those_of_the_images(made, tmp_path):
    inputs = Inputs(made / "folders", made / "weights.pth", cache=tmp_path / "cache")
    settings = {
        "image_size": 32,
        "augment": True,
        "embedding_size": 8,
        **inputs.settings(BACKBONE, CUT),
    }
    assert (settings["frozen_through"], settings["views"]) == (CUT, VIEWS)
    train, val = (load_split(settings, inputs, split) for split in ("train", "val"))
    assert len(train.features) == VIEWS
    assert len(val.features) == 1
    images = load_split({**settings, "frozen_through": None}, inputs, "val")
    net = FineTuned(BACKBONE, made / "weights.pth", 8)
    batch = torch.stack([image for image, _ in images.__getitems__(range(len(images)))])
    wanted, _ = output_of(net.trunk, CUT, net.normalized(batch))
    torch.testing.assert_close(torch.from_numpy(val.features[0].copy()).float(), wanted, rtol=2e-3, atol=2e-3)
    assert torch.equal(val.labels, images.labels)
    assert not np.array_equal(train.features[0], train.features[1])
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    again = load_frozen(images, None, CUT, next(file for file in files if file.name.startswith("val")))
    assert np.array_equal(again.features, val.features)


def test_a_study_of_the_cheap_form(made, tmp_path, capsys):
    whole, cheap = tmp_path / "whole", tmp_path / "cheap"
    compare_generators.main(arguments(made, whole, "none", "classifier"))
    options = [*arguments(made, cheap, "none", "classifier"), "--freeze-through", CUT, "--trials-from", str(whole)]
    compare_generators.main(options)
    assert "| the loss alone, linear classifier beside it | 1 |" in capsys.readouterr().out
    compare_generators.main([*options, "--repeat", "run", "multi_similarity", "none", "0"])
    assert "DIFFERENT" not in capsys.readouterr().out
    found, kept = rows(cheap), rows(whole)
    assert set(found) == {("run", "none"), ("run", "classifier")}
    assert found["run", "none"]["frozen_through"] == CUT
    assert found["run", "none"]["lr"] == kept["tune", "none"]["lr"]
    with pytest.raises(SystemExit, match=r"run multi_similarity none 0 has other settings \(frozen_through is"):
        compare_generators.main([*arguments(made, cheap, "none"), "--trials-from", str(whole)])


def test_the_cheap_form_needs_a_backbone(capsys):
    with pytest.raises(SystemExit):
        compare_generators.main(["--freeze-through", "blocks.4"])
    assert "--freeze-through needs --backbone" in capsys.readouterr().err
