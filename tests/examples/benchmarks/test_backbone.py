"""The weights loader on made tensors; no network, no download."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from comparison.backbone import TRUNK_LR_FACTOR, FineTuned, load_weights

NAME = "test_efficientnet"  # timm's smallest


def network(classes):
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, classes)) if classes else nn.Sequential(*layers)


def renamed(state, drop=()):
    return {
        f"other{i}.{name.rpartition('.')[2]}": value
        for i, (name, value) in enumerate(state.items())
        if name not in drop
    }


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("drop", [(), ("1.num_batches_tracked",)])
def test_tensors_are_taken_in_order(tmp_path, classes, drop):
    torch.manual_seed(1)
    source = network(classes)
    nn.init.normal_(source[1].running_mean)
    torch.save(renamed(source.state_dict(), drop), tmp_path / "weights.pth")
    trunk = network(0)
    load_weights(trunk, tmp_path / "weights.pth", network(5))
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(trunk.state_dict()[name], source.state_dict()[name])


def test_another_network_is_refused_by_its_first_tensor_that_does_not_fit(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a.weight": torch.zeros(4, 3, 3, 3), "b.bias": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match=r"another network: b\.bias has shape \(7,\) where 0\.bias has \(4,\)"):
        load_weights(network(0), file, network(5))
    state = network(5).state_dict()
    torch.save({name: value for name, value in state.items() if name != "3.bias"}, file)
    with pytest.raises(ValueError, match=r"another network: it lacks 3\.bias"):
        load_weights(network(0), file, network(5))
    torch.save({**state, "4.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"another network: it also has 4\.weight"):
        load_weights(network(0), file, network(5))


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth is no state dict written by torch\.save"):
        load_weights(network(0), tmp_path / "weights.pth", network(5))
    with pytest.raises(FileNotFoundError):
        load_weights(network(0), tmp_path / "missing.pth", network(5))


def test_a_fine_tuned_network(tmp_path):
    import timm

    torch.manual_seed(0)
    whole = timm.create_model(NAME)
    torch.save(renamed(whole.state_dict()), tmp_path / "weights.pth")
    net = FineTuned(NAME, tmp_path / "weights.pth", 8)
    images = torch.rand(3, 3, 32, 32)
    whole.reset_classifier(0)
    mean, std = (torch.tensor(whole.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    net.train()
    torch.testing.assert_close(net.features(images), whole.eval()((images - mean) / std))
    assert net(images).shape == (3, 8)
    trunk, head = net.parameter_groups(1e-3)
    assert (trunk["lr"], head["lr"]) == (1e-3 * TRUNK_LR_FACTOR, 1e-3)
    learning = {id(p) for p in net.parameters() if p.requires_grad}
    assert {id(p) for group in (trunk, head) for p in group["params"]} == learning
    frozen = [m for m in net.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    assert frozen
    assert not any(m.training or m.weight.requires_grad for m in frozen)
