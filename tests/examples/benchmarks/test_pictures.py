"""The comparison on folders of images, with a pretrained backbone."""

import pickle
import shutil

import compare_generators
import pytest
import timm
import torch
from comparison.inputs import Inputs, folder_fingerprint
from comparison.networks import TRUNK_LR_FACTOR, FineTuned, load_weights
from comparison.pictures import PICTURES
from helpers.pictures import BACKBONE, arguments, make_pictures, rows
from torch import nn


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def test_each_contender_trains(made, tmp_path, capsys):
    names = [name for name in PICTURES if name not in ("none_double", "memory", "crossed_27")]
    compare_generators.main(arguments(made, tmp_path, *names))
    printed = capsys.readouterr().out
    for name in names:
        assert f"| {PICTURES[name].title} | 1 |" in printed
    found = rows(tmp_path)
    assert {name for _, name in found} == set(names)
    recalls = {name: found["run", name]["recall_at_1"] for name in names if PICTURES[name].tuned_as is None}
    assert len(set(recalls.values())) > 1  # they are not all the loss alone
    row = found["run", "classifier"]
    assert (row["backbone"], row["classifier"]) == (BACKBONE, "linear")
    assert row["data"] == folder_fingerprint(made / "folders")
    assert len(row["weights"]) == 12


def test_memory_and_proxies_train(made, tmp_path, capsys):
    compare_generators.main(arguments(made, tmp_path, "memory", "none", loss="nt_xent"))
    assert "CrossBatchMemory of 1,620 | 1 |" in capsys.readouterr().out
    compare_generators.main(arguments(made, tmp_path, "none", "classifier", loss="proxy_anchor"))
    assert "| the loss alone, linear classifier beside it | 1 |" in capsys.readouterr().out


def test_a_run_is_repeated_on_its_data_and_on_no_other(made, tmp_path, capsys):
    options = arguments(made, tmp_path, "none")
    compare_generators.main(options)
    capsys.readouterr()
    again = ["--repeat", "run", "multi_similarity", "none", "0"]
    compare_generators.main([*options, *again])
    assert "DIFFERENT" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"was trained on other data \(data is None, was 80 images.*give its --data"):
        compare_generators.main(["--out", str(tmp_path), *again])
    (made / "folders" / "class00" / "more.png").write_bytes((made / "folders" / "class00" / "0.png").read_bytes())
    try:
        with pytest.raises(SystemExit, match=r"tune multi_similarity none 0 has other settings \(data is 81 images"):
            compare_generators.main(options)
    finally:
        (made / "folders" / "class00" / "more.png").unlink()


def test_fingerprints_tell_folders_apart(made, tmp_path):
    first = folder_fingerprint(made / "folders")
    assert first.startswith("80 images, ")
    copy = shutil.copytree(made / "folders", tmp_path / "renamed")
    assert folder_fingerprint(copy) == first
    (copy / "class03" / "1.png").write_bytes(b"")
    assert folder_fingerprint(copy) != first
    with pytest.raises(ValueError, match=r"--data must be a folder of class folders with images, got .*nothing"):
        folder_fingerprint(tmp_path / "nothing")
    assert Inputs(made / "folders", None).settings("resnet18")["weights"] == "timm"
    assert list(Inputs().settings(None)) == ["widths"]


def test_all_cells_of_a_study_look_at_the_data_once(made, monkeypatch):
    looked = []
    monkeypatch.setattr("comparison.inputs.folder_fingerprint", lambda folder: looked.append(folder) or "made")
    inputs = Inputs(made / "folders", made / "weights.pth")
    settings = [inputs.settings("resnet18") for _ in range(3)]
    assert settings[0] == settings[2]
    assert looked == [made / "folders"]
    assert pickle.loads(pickle.dumps(inputs)).settings("resnet18") == settings[0]  # as a worker process gets it
    assert looked == [made / "folders"]


@pytest.mark.parametrize(
    "given", [["--data", "x"], ["--backbone", "resnet18"], ["--weights", "w"], ["--data", "x", "--weights", "w"]]
)
def test_options_that_need_each_other(given, capsys):
    with pytest.raises(SystemExit):
        compare_generators.main(given)
    assert "--data needs --backbone" in capsys.readouterr().err


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

    torch.manual_seed(0)
    whole = timm.create_model(BACKBONE)
    torch.save(renamed(whole.state_dict()), tmp_path / "weights.pth")
    net = FineTuned(BACKBONE, tmp_path / "weights.pth", 8)
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
