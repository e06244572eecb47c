"""Forward passes are compared with torchvision's models."""

import urllib.error

import pytest
import timm
import torch
import torchvision
from helpers.backbones import TINY, TINY_VIT, build, images, shake
from torch import nn

from pml_gca.datasets.transforms import InputConfig
from pml_gca.paper.backbones import BACKBONES, build_backbone, build_head, input_config


def test_resnet50_adds_average_and_max_pooling():
    trunk = shake(build("resnet50")).eval()
    theirs = torchvision.models.resnet50()
    missing, unexpected = theirs.load_state_dict(trunk.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected
    theirs.eval()
    x = images()
    with torch.no_grad():
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            features = stage(features)
        assert features.shape == (4, 2048, 2, 2)
        torch.testing.assert_close(trunk(x), features.mean(dim=(2, 3)) + features.amax(dim=(2, 3)))
    assert trunk.num_features == 2048


def test_googlenet_is_that_of_torchvision_without_heads_and_dropout():
    trunk = shake(build("googlenet", frozen="batch_norm"), variance=0.15).eval()  # at 1 the images would not matter
    theirs = torchvision.models.googlenet(aux_logits=True, transform_input=False, init_weights=False)
    missing, unexpected = theirs.load_state_dict(trunk.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"fc", "aux1", "aux2"}
    assert not unexpected
    theirs.fc = nn.Identity()
    theirs.eval()
    x = images()
    # From ImageNet's mean and deviation of each channel to 0.5, as for the weights that torchvision has.
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    with torch.no_grad():
        features = trunk(x)
        torch.testing.assert_close(features, theirs((x * deviation + mean - 0.5) / 0.5), rtol=1e-4, atol=1e-4)
        assert features.shape == (4, 1024)
        assert features.std(dim=0).mean() > 0.1
        assert torch.equal(trunk.train()(x), features)  # nothing is dropped
    assert trunk.num_features == 1024


def test_dino_returns_the_class_token_of_a_small_vision_transformer():
    trunk = build("dino_vits16", image_size=32).eval()
    layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["patch_embed.proj", "norm", *(f"blocks.{k}.{layer}" for k in range(12) for layer in layers)]
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert set(trunk.state_dict()) == names | {"cls_token", "pos_embed"}
    assert trunk.pos_embed.shape == (1, 1 + 2 * 2, 384)
    positions_of_224 = 384 * (14 * 14 - 2 * 2)
    assert sum(p.numel() for p in trunk.parameters()) + positions_of_224 == 21_665_664
    with torch.no_grad():
        x = images(32)
        assert torch.equal(trunk(x), trunk.forward_features(x)[:, 0])
    assert trunk.num_features == 384


@pytest.mark.parametrize("name", [TINY, f"{TINY}.r160_in1k", TINY_VIT, "mobilenetv3_small_050"])
def test_other_names_are_models_of_timm(name):
    trunk = build(name, image_size=48).eval()
    assert type(trunk) is type(timm.create_model(name))
    with torch.no_grad():
        assert trunk(images(48)).shape == (4, trunk.num_features)


@pytest.mark.parametrize("name", [TINY, TINY_VIT, "mobilenetv3_small_100", "vit_base_patch14_dinov2.lvd142m"])
def test_models_of_timm_have_their_own_input(name):
    with torch.device("meta"):
        expected = timm.data.resolve_model_data_config(timm.create_model(name, num_classes=0))
    found = input_config(name)
    assert {"mean": found.mean, "std": found.std, "interpolation": found.interpolation}.items() <= expected.items()
    assert (found.crop_fraction, 3, found.image_size) == (expected["crop_pct"], *expected["input_size"][:2])


def test_backbones_of_the_paper_have_the_input_of_imagenet():
    for name in BACKBONES:
        assert input_config(name) == InputConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 7 / 8, 224)
    with pytest.raises(ValueError, match=r"no backbone is called 'resnet5O'"):
        input_config("resnet5O")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'resnet5O' \(did you mean resnet50\?\); there are resnet50, googlenet, dino"
    ):
        build_backbone("resnet5O")
    with pytest.raises(ValueError, match=r"did you mean efficientnet_b0\?.* timm's models by name"):
        build_backbone("eficientnet_b0")
    with pytest.raises(ValueError, match=r"'resnet18\.nothing'"):
        build_backbone("resnet18.nothing")


@pytest.mark.parametrize("name", ["resnet50", "googlenet"])
def test_weights_of_torchvision_are_loaded_without_unused_layers(name, monkeypatch):
    fetched = []
    options = {"init_weights": False} if name == "googlenet" else {}
    published = shake(getattr(torchvision.models, name)(**options)).state_dict()

    def fetch(url, **kwargs):
        fetched.append((url, kwargs.get("check_hash")))
        return published

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    trunk = build_backbone(name)
    expected = {"resnet50": "resnet50-0676ba61.pth", "googlenet": "googlenet-1378be20.pth"}
    assert [(url.split("/")[-1], checked) for url, checked in fetched] == [(expected[name], True)]
    state = trunk.state_dict()
    unused = {"resnet50": {"fc"}, "googlenet": {"fc", "aux1", "aux2"}}
    assert {key.split(".")[0] for key in published.keys() - state.keys()} == unused[name]
    assert all(torch.equal(value, published[key]) for key, value in state.items())
    assert type(trunk.fc) is nn.Identity


def test_a_failed_download_names_the_weights_and_the_remedy(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    advice = r"; pretrained=False \(--random-weights in the examples\) builds .* error was: .*no network"
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ConnectionError, match=r"ResNet50_Weights\.IMAGENET1K_V1 of torchvision" + advice) as raised:
        build_backbone("resnet50")
    assert isinstance(raised.value.__cause__, urllib.error.URLError)
    with pytest.raises(ConnectionError, match=r"GoogLeNet_Weights\.IMAGENET1K_V1 of torchvision" + advice):
        build_backbone("googlenet")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", fail)
    with pytest.raises(ConnectionError, match=r"vit_small_patch16_224\.dino of timm" + advice):
        build_backbone("dino_vits16", image_size=32)


def test_head_is_batch_norm_and_linear():
    head = build_head(6, 4)
    state = head.state_dict()
    assert [key for key in state if key.startswith("1.")] == ["1.weight", "1.bias"]
    assert {key for key in state if key.startswith("0.")} == {
        "0.weight",
        "0.bias",
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    }
    x = torch.randn(10, 6)
    normalized = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), normalized @ state["1.weight"].T + state["1.bias"])
    with pytest.raises(TypeError, match="embedding_size must be an integer"):
        build_head(6, 4.0)
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        build_head(0, 4)
