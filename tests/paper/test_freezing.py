"""Training with frozen parts and warm-ups is compared with PML's trainer."""

import copy
import io

import pytest
import torch
from helpers.backbones import TINY, TINY_VIT, build, images, shake
from pytorch_metric_learning import losses, trainers
from torch import nn

from pml_gca.paper.backbones import build_head, set_warm_up


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
