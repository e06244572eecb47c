from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pml_gca import GlobalCorrelationGenerator
from pml_gca.paper import Recipe, changed_recipe, recipes
from pml_gca.paper.recipe import GENERATOR_OPTIONS

PAPER = recipes.RESNET50_CUB
OPTIONS = {
    "dropout": ("0.25", 0.25),
    "edge_chunk_size": ("512", 512),
    "collect_stats": ("true", True),
    "classify_among": ("batch", "batch"),
    "merging": ("hardest", "hardest"),
}


def test_fields_keep_their_types():
    words = ["alpha=3", "epochs=20", "frozen=none", "orthogonal_head=true", "backbone=convnext_tiny", "lr_decay=1e-1"]
    changed = changed_recipe(PAPER, [*words, "xavier_attention=false", "num_layers=0"])
    assert changed == replace(
        PAPER,
        alpha=3.0,
        epochs=20,
        frozen=None,
        orthogonal_head=True,
        backbone="convnext_tiny",
        lr_decay=0.1,
        xavier_attention=False,
        num_layers=0,
    )
    assert isinstance(changed.alpha, float)
    assert changed_recipe(PAPER, []) == PAPER
    assert changed_recipe(PAPER, ["alpha=1", "alpha=2"]).alpha == 2


def test_spaces_around_a_value_are_ignored():
    words = ["merging= hardest ", "edge_chunk_size= 9", "backbone= resnet18", "alpha= 3 ", "collect_stats= False "]
    changed = changed_recipe(PAPER, words)
    assert changed.generator_options == {"merging": "hardest", "edge_chunk_size": 9, "collect_stats": False}
    assert (changed.backbone, changed.alpha) == ("resnet18", 3)


def test_every_option_of_the_generator_can_be_set():
    assert set(OPTIONS) == set(GENERATOR_OPTIONS)
    changed = changed_recipe(PAPER, ["embedding_size=8", *(f"{name}={text}" for name, (text, _) in OPTIONS.items())])
    expected = {name: value for name, (_, value) in OPTIONS.items()}
    assert changed.generator_options == expected
    assert all(type(changed.generator_options[name]) is type(value) for name, value in expected.items())
    generator = GlobalCorrelationGenerator(5, 8, num_layers=changed.num_layers, **changed.generator_settings)
    assert (generator.edge_chunk_size, generator.merging, generator.collect_stats) == (512, "hardest", True)
    assert generator.propagation.layers[0].edge.dropout.p == 0.25
    assert recipes.changes_from_paper(changed) == {"embedding_size": 8, **expected}


def test_default_options_of_the_generator_change_nothing():
    usual = {name: option.default for name, option in GENERATOR_OPTIONS.items()}
    words = [f"{name}={value}" for name, value in usual.items()]
    changed = changed_recipe(PAPER, words)
    assert changed.generator_options == usual
    assert changed.settings() == PAPER.settings()
    assert recipes.changes_from_paper(changed) == {}


def test_options_are_added_to_earlier_ones():
    first = changed_recipe(PAPER, ["dropout=0.3", "merging=mean"])
    second = changed_recipe(first, ["dropout=0"])
    assert second.generator_options == {"dropout": 0.0, "merging": "mean"}


@given(st.floats(0, 1e6))
def test_numbers_are_read_exactly(value):
    assert changed_recipe(PAPER, [f"alpha={value!r}"]).alpha == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epoch=3"], r"--set takes FIELD=VALUE, with FIELD one of backbone, .*, merging.*; got 'epoch=3' \(did you m"),
        (["mergin=mean"], r"got 'mergin=mean' \(did you mean merging\?\)"),
        (["alpha"], "got 'alpha'"),
        (["name=mine"], "got 'name=mine'"),
        (["generator_options=1"], "got 'generator_options=1'"),
        (["num_classes=3"], "got 'num_classes=3'"),
        (["alpha=high"], "--set alpha takes a number, got 'high'"),
        (["epochs=1.5"], "--set epochs takes a whole number, got '1.5'"),
        (["xavier_attention=maybe"], "--set xavier_attention takes true or false, got 'maybe'"),
        (["orthogonal_head=1"], "--set orthogonal_head takes true or false, got '1'"),
        (["edge_chunk_size=all"], "--set edge_chunk_size takes a whole number or none, got 'all'"),
        (["merging="], "--set merging takes text, got ''"),
        (["backbone= "], "--set backbone takes text, got ' '"),
        (["merging=worst"], "merging must be random, mean or hardest, got 'worst'"),
        (["dropout=nan"], "dropout must be a finite number"),
        (["coefficients=1"], "got 'coefficients=1'"),
        (["dropout=1"], "dropout must be below 1, got 1"),
        (["edge_chunk_size=0"], "edge_chunk_size must be at least 1, got 0"),
        (["num_heads=3"], "embedding_size must be divisible by num_heads, got 512 channels for 3 heads"),
        (["gradient_clip=0"], "gradient_clip must be above 0, or nothing learns"),
        (["num_layers=-1"], "num_layers must be at least 0, got -1"),
    ],
)
def test_bad_changes(words, message):
    with pytest.raises(ValueError, match=message):
        changed_recipe(PAPER, words)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mergin": "mean"}, ValueError, r"generator_options takes dropout, .*, got 'mergin' \(did you mean merg"),
        ({"alpha": 3}, ValueError, "got 'alpha'; settings that are fields of the recipe belong there"),
        ({"collect_stats": "false"}, TypeError, "collect_stats must be a bool, got str"),
        (None, TypeError, "generator_options must be a mapping, got NoneType"),
    ],
)
def test_bad_options_in_python(options, error, message):
    with pytest.raises(error, match=message):
        replace(PAPER, generator_options=options)


HEAD = """
name embedding_size num_layers num_heads alpha beta classification_weight similarity_weight diversity_weight
embedder_lr generator_lr classes_per_batch samples_per_class epochs lr_decay_epochs warmup_epochs frozen
"""
TABLE = """
resnet50_cub       512 2 4 5 20 20 20 60 1.5e-4 1.5e-4 27 3 100 10 2 batch_norm
resnet50_cars196   512 2 4 5 20 20 20 60 1.5e-4 1.5e-4 27 3 200 10 2 batch_norm
resnet50_sop       512 1 2 5 20 20 20 60 2e-4   1.5e-4 40 2 200 20 1 None
resnet50_inshop    512 1 2 5 20 20 20 60 2e-4   1.5e-4 40 2 200 20 1 None
googlenet_cub      512 2 4 4 30 20 10 10 1e-4   3e-4   27 3 150 30 1 batch_norm
googlenet_cars196  512 2 4 4 30 20 10 10 1e-4   3e-4   27 3 200 30 1 batch_norm
googlenet_sop      512 1 2 5 20 20 20 20 3e-4   1.5e-4 40 2 150 15 1 None
googlenet_inshop   512 1 2 2 20 20 20 20 3e-4   1.5e-4 40 2 200 15 1 None
dino_cub           384 2 4 2 5  20 20 20 1e-5   3e-4   27 3 50  20 2 patch_embedding
dino_cars196       384 2 4 2 5  20 20 20 3e-5   3e-4   27 3 100 10 2 patch_embedding
dino_sop           384 1 2 5 20 20 20 60 1.5e-5 3e-4   40 2 200 20 1 patch_embedding
dino_inshop        384 1 2 5 20 20 20 60 1.5e-5 3e-4   40 2 150 20 1 patch_embedding
"""
ROWS = [line.split() for line in TABLE.strip().split("\n")]
BACKBONES = {"resnet50": "resnet50", "googlenet": "googlenet", "dino": "dino_vits16"}


@pytest.mark.parametrize("row", ROWS)
def test_recipes_have_the_settings_of_the_paper(row):
    name, *values = row
    recipe = recipes.RECIPES[name]
    assert getattr(recipes, name.upper()) is recipe
    backbone, dataset = name.split("_")
    assert (recipe.name, recipe.backbone, recipe.dataset) == (name, BACKBONES[backbone], dataset)
    for column, value in zip(HEAD.split()[1:], values, strict=True):
        assert getattr(recipe, column) == (float(value) if value[0].isdigit() else {"None": None}.get(value, value))
    common = {
        "lr_decay": 0.5,
        "classifier_lr": 1e-3,
        "classifier_weight_decay": 1e-2,
        "proxy_lr_factor": 100.0,
        "weight_decay": 1e-4,
        "gradient_clip": 10.0,
        "orthogonal_head": backbone == "dino",
        "xavier_attention": True,
        "generator_options": {},
    }
    assert {field: getattr(recipe, field) for field in common} == common
    assert {*HEAD.split(), "backbone", "dataset", *common} == {field.name for field in fields(Recipe)}
    assert recipe.batch_size == int(values[10]) * int(values[11])


def test_the_table_is_complete():
    assert len(ROWS) == len(recipes.RECIPES) == 12
    assert {name for name, _, _ in recipes.PUBLISHED_RECALL_AT_1} <= set(recipes.RECIPES)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'resnet50_cubs' \(did you mean resnet50_cub\?\); there are resnet50_cub, "):
        recipes.find_recipe("resnet50_cubs")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples_per_class": 1}, ValueError, "samples_per_class must be at least 2"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got float"),
        ({"alpha": -1}, ValueError, "alpha must be a finite number of at least 0, got -1"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be at least 1, got -1"),
        ({"num_layers": -1}, ValueError, "num_layers must be at least 0, got -1"),
        ({"num_heads": 5}, ValueError, "embedding_size must be divisible by num_heads, got 512 channels for 5 heads"),
        ({"xavier_attention": 1}, TypeError, "xavier_attention must be a bool, got int"),
        ({"frozen": "head"}, ValueError, "frozen must be 'batch_norm', 'patch_embedding' or None, got 'head'"),
    ],
)
def test_bad_fields(change, error, message):
    with pytest.raises(error, match=message):
        replace(recipes.RESNET50_CUB, **change)


def test_recipes_with_any_options_are_hashable():
    assert len({recipes.DINO_SOP, replace(recipes.DINO_SOP, generator_options={"merging": "mean"})}) == 2


def test_a_recipe_without_warm_up():
    assert replace(recipes.DINO_SOP, warmup_epochs=0).warmup_epochs == 0
