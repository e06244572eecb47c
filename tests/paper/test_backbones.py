"""Forward passes are compared with torchvision's models, and training with PML's trainer."""

import copy
import io
import urllib.error

import pytest
import timm
import torch
import torchvision
from pytorch_metric_learning import losses, trainers
from torch import nn

from pml_gca.paper.backbones import build_backbone, build_head, set_warm_up

TINY, TINY_VIT = "test_resnet", "test_vit"  # of timm, with batch normalisation and with a patch embedding


def images(size=64, count=4, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build(name, **kwargs):
    torch.manual_seed(0)
    return build_backbone(name, pretrained=False, **kwargs)


def shake(model, variance=1.0):
    """Give batch normalisation statistics as after training, which show in outputs; leave no weight at 0: all decay."""
    source = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            tensors = (
                (module.weight, 1.0),
                (module.bias, 0.1),
                (module.running_mean, 0.1),
                (module.running_var, variance),
            )
            for tensor, size in tensors:
                tensor.detach().copy_(size * (0.5 + torch.rand(tensor.shape, generator=source)))
    return model


def train_one_step(trunk, head):
    """PML's trainer, which puts all models into training mode."""
    models = {"trunk": trunk, "embedder": head}
    optimizers = {
        f"{name}_optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for name, model in models.items()
    }
    trainers.MetricLossOnly(
        models=models,
        optimizers=optimizers,
        batch_size=8,
        loss_funcs={"metric_loss": losses.ContrastiveLoss()},
        dataset=torch.utils.data.TensorDataset(images(32, 8), torch.arange(8) % 2),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    ).train(num_epochs=1)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


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


def test_frozen_batch_norm_survives_a_step_of_pml_trainer():
    trunk, head = shake(build("resnet50", frozen="batch_norm")), build_head(2048, 8)
    before = snapshot(trunk)
    train_one_step(trunk, head)
    assert changed(trunk, before) == {name for name in before if "conv" in name or "downsample.0" in name}
    trunk.train()
    assert all(not module.training for module in trunk.modules() if isinstance(module, nn.BatchNorm2d))
    assert trunk.training
    assert trunk.layer1.training
    frozen = {name for name, parameter in trunk.named_parameters() if not parameter.requires_grad}
    norms = {name for name in before if ".bn" in f".{name}" or "downsample.1" in name}
    assert frozen == {name for name in norms if name.endswith((".weight", ".bias"))}
    assert len(frozen) == 2 * 53


def test_other_batch_norm_follows_the_batches():
    trunk, head = shake(build(TINY)), build_head(96, 8)
    before = snapshot(trunk)
    train_one_step(trunk, head)
    assert changed(trunk, before) == set(before)


def test_copies_and_pickles_keep_their_own_batch_norm_frozen():
    trunk = build(TINY, frozen="batch_norm")
    stream = io.BytesIO()
    torch.save(trunk, stream)
    stream.seek(0)
    for other in (copy.deepcopy(trunk), torch.load(stream, weights_only=False)):
        norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.training = True  # as if it had been left so
        assert other.train() is other
        assert norms
        assert not any(module.training for module in norms)


@pytest.mark.parametrize(("name", "frozen"), [(TINY, None), (TINY, "batch_norm"), (TINY_VIT, "patch_embedding")])
def test_warm_up_trains_only_the_head_and_later_all_but_frozen_parts(name, frozen):
    trunk = shake(build(name, frozen=frozen, image_size=32))
    head = build_head(trunk.num_features, 8)
    learns = {parameter: parameter.requires_grad for parameter in trunk.parameters()}
    before = snapshot(trunk), snapshot(head)
    for _ in range(2):
        set_warm_up(trunk, True)
    train_one_step(trunk, head)
    moved = changed(trunk, before[0])
    assert all("running" in key or "tracked" in key for key in moved)
    assert bool(moved) == (frozen is None)
    assert changed(head, before[1]) == set(before[1])

    for _ in range(2):
        set_warm_up(trunk, False)
    assert learns == {parameter: parameter.requires_grad for parameter in trunk.parameters()}
    before = snapshot(trunk)
    train_one_step(trunk, head)
    stays = set(before) - changed(trunk, before)
    if frozen == "patch_embedding":
        assert stays == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    elif frozen == "batch_norm":
        norms = [key for key, module in trunk.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert stays == {key for key in before if key.rpartition(".")[0] in norms} != set()
    else:
        assert not stays


def test_warm_up_of_any_module():
    module = nn.Linear(2, 2)
    set_warm_up(module, True)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    set_warm_up(module, False)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_missing_parts_cannot_be_frozen():
    with pytest.raises(ValueError, match="frozen is 'patch_embedding', but ResNet has none; None freezes nothing"):
        build(TINY, frozen="patch_embedding")
    with pytest.raises(ValueError, match="frozen is 'batch_norm', but VisionTransformer has none"):
        build(TINY_VIT, frozen="batch_norm")
    with pytest.raises(ValueError, match="frozen must be 'batch_norm', 'patch_embedding' or None, got 'all'"):
        build(TINY, frozen="all")
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        build(TINY, image_size=0)


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
