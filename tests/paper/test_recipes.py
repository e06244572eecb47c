from dataclasses import fields, replace

import pytest

from pml_gca.paper import Recipe, recipes

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
