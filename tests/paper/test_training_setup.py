import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pml_gca.generators import NAMED_GENERATORS, HardestNegativeGenerator
from pml_gca.paper import Options, PublishedNPairsLoss, build_training_setup, recipes, unused_settings
from pml_gca.paper.backbones import set_warm_up
from pml_gca.paper.training_setup import build_generator
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer

RECIPE = replace(
    recipes.RESNET50_CUB, backbone="test_resnet", embedding_size=16, epochs=30, lr_decay_epochs=10, embedder_lr=1e-3
)


def make(**options):
    return build_training_setup(RECIPE, Options(pretrained=False, image_size=32, **options), num_classes=7)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_learning_rates_over_the_epochs():
    setup = make(loss="proxy_anchor")
    for epoch in range(30):
        halved = 1e-3 * 0.5 ** (epoch // 10)
        assert rates(setup.optimizers["trunk_optimizer"]) == pytest.approx([halved])
        assert rates(setup.optimizers["embedder_optimizer"]) == pytest.approx([halved])
        cosine = 1.5e-4 * (1 + math.cos(math.pi * epoch / 30)) / 2
        assert rates(setup.optimizers["metric_loss_optimizer"]) == pytest.approx([cosine, 1e-3, 100 * halved])
        for scheduler in setup.lr_schedulers.values():
            scheduler.step()
    assert rates(setup.optimizers["metric_loss_optimizer"])[0] == pytest.approx(0, abs=1e-12)


def test_every_learning_parameter_is_in_one_optimizer():
    setup = make(loss="proxy_anchor")
    held = [p for o in setup.optimizers.values() for group in o.param_groups for p in group["params"]]
    learn = [p for m in (*setup.models.values(), *setup.loss_funcs.values()) for p in m.parameters() if p.requires_grad]
    assert len(held) == len(learn)
    assert {id(p) for p in held} == {id(p) for p in learn}
    frozen = [p for p in setup.models["trunk"].parameters() if not p.requires_grad]
    assert frozen  # the recipe's batch normalisation
    decays = [group["weight_decay"] for o in setup.optimizers.values() for group in o.param_groups]
    assert decays == [1e-4, 1e-4, 1e-4, 1e-2, 1e-4]  # the fourth is the auxiliary classifier's


def test_gradients_are_clipped_by_value():
    setup = make()
    for module in (*setup.models.values(), *setup.loss_funcs.values()):
        for p in module.parameters():
            p.grad = torch.full_like(p, -25.0)
    for clip in setup.gradient_clippers.values():
        clip()
    everything = nn.ModuleDict({**setup.models, **setup.loss_funcs})
    assert {p.grad.min().item() for p in everything.parameters()} == {-10.0}


def test_the_recipe_reaches_the_generator():
    setup = make()
    loss, generator = setup.loss_funcs["metric_loss"], setup.generator
    assert generator is loss.generator
    weight = generator.objective.diversity_weight
    found = (generator.num_classes, generator.embedding_size, generator.alpha, loss.beta, weight)
    assert found == (7, 16, RECIPE.alpha, RECIPE.beta, RECIPE.diversity_weight)
    assert [layer.node.num_heads for layer in generator.propagation.layers] == [4, 4]
    assert loss.levels.metric.momentum is None


@pytest.mark.parametrize("xavier", [True, False])
def test_attention_starts_as_the_recipe_says(xavier):
    recipe = replace(RECIPE, embedding_size=64, xavier_attention=xavier)
    generator = build_training_setup(recipe, Options(pretrained=False, image_size=32), num_classes=7).generator
    for layer in generator.propagation.layers:
        blocks = {layer.node: ("query", "key", "value", "out"), layer.edge: ("query", "key", "value")}
        for linear in (getattr(block, name) for block, names in blocks.items() for name in names):
            spread = (2 / (64 + 64)) ** 0.5 if xavier else (1 / (3 * 64)) ** 0.5
            assert linear.weight.std().item() == pytest.approx(spread, rel=0.05)
            assert linear.bias.any() != xavier
        for linear in (layer.node.edge_to_node, layer.node.expand, layer.edge.node_to_edge, layer.edge.contract):
            assert linear.weight.std().item() == pytest.approx((1 / (3 * linear.in_features)) ** 0.5, rel=0.05)
            assert linear.bias.any()


def test_options_of_the_generator_reach_it():
    recipe = replace(RECIPE, num_layers=0, generator_options={"edge_chunk_size": 9, "merging": "hardest"})
    generator = build_training_setup(recipe, Options(pretrained=False, image_size=32), num_classes=7).generator
    assert (generator.edge_chunk_size, generator.merging, len(generator.propagation.layers)) == (9, "hardest", 0)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_hardest_real_negatives_with_a_linear_classifier():
    setup = make(generator="hardest", loss="proxy_anchor")
    generator, optimizer = setup.generator, setup.optimizers["metric_loss_optimizer"]
    assert type(generator.generator) is HardestNegativeGenerator
    assert len(generator.propagation.layers) == 0
    held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert held == [
        {id(p) for p in generator.parameters()},
        {id(p) for p in setup.loss_funcs["metric_loss"].loss.parameters()},
    ]
    for epoch in range(3):
        cosine = 1.5e-4 * (1 + math.cos(math.pi * epoch / 30)) / 2
        assert rates(optimizer) == pytest.approx([cosine, 0.1])
        setup.lr_schedulers["metric_loss_scheduler_by_epoch"].step()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("loss", ["n_pairs", "proxy_anchor"])
@pytest.mark.parametrize("name", NAMED_GENERATORS)
def test_every_generator_by_name(name, loss):
    setup = make(generator=name, loss=loss)
    wrapped = setup.loss_funcs["metric_loss"]
    assert type(setup.generator) is type(NAMED_GENERATORS[name](7, 16))
    if name in ("constant", "random"):
        assert setup.generator.alpha == RECIPE.alpha
    if name in ("hdml", "hdml_reembed"):
        assert setup.generator.alpha == 90
    optimizer = setup.optimizers.get("metric_loss_optimizer")
    groups = [] if optimizer is None else optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in wrapped.parameters()}
    learned = {"gca": [1.5e-4, 1e-3], "hardest": [1.5e-4], "hdml_reembed": [1.5e-4, 1e-3]}.get(name, [])
    proxies = [0.1] if loss == "proxy_anchor" else []
    assert [group["lr"] for group in groups] == pytest.approx(learned + proxies)
    for _ in range(RECIPE.epochs if groups else 0):
        setup.lr_schedulers["metric_loss_scheduler_by_epoch"].step()
    ended = [0.0, *learned[1:]] if learned else []
    assert [group["lr"] for group in groups] == pytest.approx(ended + [rate / 8 for rate in proxies], abs=1e-12)
    if len(learned) == 2:
        assert groups[1]["weight_decay"] == RECIPE.classifier_weight_decay


def test_settings_that_a_generator_takes():
    recipe = replace(RECIPE, alpha=2, generator_options={"merging": "mean", "dropout": 0.3})
    for name in ("constant", "random"):
        generator = build_generator(recipe, Options(generator=name, pretrained=False), 7)
        assert (generator.alpha, generator.merging) == (2, "mean")
        assert unused_settings(name) >= {"num_layers", "num_heads", "dropout", "diversity_weight"}
        assert not unused_settings(name) & {"alpha", "merging"}
    assert unused_settings("gca") == set()
    assert unused_settings("mixup") == unused_settings("none") > unused_settings("random")
    without_parameters = {"beta", "generator_lr", "classifier_lr", "classifier_weight_decay", "xavier_attention"}
    assert without_parameters <= unused_settings("mixup")
    assert without_parameters - {"generator_lr"} <= unused_settings("hardest")
    assert "generator_lr" not in unused_settings("hardest")
    assert not unused_settings("hdml_reembed") & {"beta", "generator_lr"}
    state = torch.get_rng_state()
    unused_settings("hdml_reembed")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"no generator is called 'mixip' \(did you mean mixup\?\): none, gca, "):
        unused_settings("mixip")


@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        ({}, AlternatingTrainer),
        ({"generator": "hdml_reembed"}, AlternatingTrainer),
        ({"generator": "mixup"}, AutocastTrainer),
        ({"schedule": "one_backward"}, AutocastTrainer),
        ({"generator": "hardest"}, AutocastTrainer),
        ({"generator": "none"}, AutocastTrainer),
        ({"generator": "none", "loss": "proxy_anchor"}, AutocastTrainer),
    ],
)
def test_the_trainer_of_a_schedule(options, trainer):
    setup = make(**options)
    made = setup.trainer(RECIPE, Options(pretrained=False, **options), dataset=[])
    assert type(made) is trainer
    assert (setup.generator is None) == (options.get("generator") == "none")
    learns_nothing = options in ({"generator": "none"}, {"generator": "mixup"})
    assert ("metric_loss_optimizer" in setup.optimizers) != learns_nothing


def test_own_backbone():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.BatchNorm1d(5))
    backbone.num_features = 5
    backbone[1].bias.requires_grad_(False)
    setup = build_training_setup(RECIPE, Options(device="cpu"), 7, backbone=backbone)
    assert setup.models["trunk"] is backbone
    learned = [p.requires_grad for p in backbone.parameters()]
    assert learned == [True, False, False, False]  # the bias by its owner, batch normalisation by the recipe
    for _ in range(2):
        set_warm_up(backbone, True)
        assert not any(p.requires_grad for p in backbone.parameters())
    for _ in range(2):
        set_warm_up(backbone, False)
        assert [p.requires_grad for p in backbone.parameters()] == learned
    assert setup.models["embedder"](backbone(torch.randn(4, 3, 8, 8))).shape == (4, 16)
    plain = nn.Flatten()
    plain.num_features = 5
    with pytest.raises(ValueError, match="frozen is 'batch_norm', but Flatten has none"):
        build_training_setup(RECIPE, Options(), 7, backbone=plain)


def test_a_fixed_backbone_needs_no_optimizer():
    backbone = nn.Flatten()
    backbone.num_features = 5
    setup = build_training_setup(replace(RECIPE, frozen=None), Options(), 7, backbone=backbone)
    assert "trunk_optimizer" not in setup.optimizers
    setup.trainer(RECIPE, Options(), dataset=[])


def test_head_of_dino_starts_orthogonal():
    backbone = nn.Flatten()
    backbone.num_features = 24
    recipe = replace(recipes.DINO_CUB, embedding_size=16, num_heads=2, frozen=None)
    linear = build_training_setup(recipe, Options(device="cpu"), 7, backbone=backbone).models["embedder"][1]
    torch.testing.assert_close(linear.weight @ linear.weight.T, torch.eye(16), rtol=0, atol=1e-5)
    assert not linear.bias.any()


def test_own_losses_have_a_name():
    assert Options(loss=recipes.find_recipe).loss_name == "pml_gca.paper.recipes:find_recipe"
    assert Options(loss=partial(recipes.find_recipe)).loss_name == "functools:partial"


def test_n_pairs_is_the_published_one():
    loss = Options().build_loss(7, 16, samples_per_class=3)
    assert isinstance(loss, PublishedNPairsLoss)
    assert loss.embedding_reg_weight == pytest.approx(0.25 * 3e-3 * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "arc_face"}, r"no loss is called 'arc_face' \(did you mean arcface\?\)"),
        ({"generator": "daml"}, "generator must be one of gca, hardest, .*, none, got 'daml'"),
        ({"sampler": "all"}, "sampler must be one of covering, random, got 'all'"),
        ({"schedule": "twice"}, "schedule must be one of alternating, one_backward, got 'twice'"),
        ({"device": "abacus"}, "device must be cpu, cuda, cuda:1 or the like, got 'abacus'"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"select_on": "train"}, "select_on must be one of val, test, last, got 'train'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
