"""The paper's settings: three backbones on four data sets. Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145

ResNet-50 on CUB is written out in full. Every other recipe says from which one it starts and what differs.
A recipe is plain data. Change one with `dataclasses.replace(recipes.RESNET50_CUB, epochs=20)`.
"""

from dataclasses import replace
from typing import Any

from ..datasets import Benchmark
from ..datasets.sources import CARS196, CUB, INSHOP, SOP
from ..utils.validation import check_string, suggestion
from .backbones import BATCH_NORM, DINO_VITS16, GOOGLENET, PATCH_EMBEDDING, RESNET50
from .recipe import Recipe

# Stanford Online Products and In-shop have thousands of classes with a few images each.
MANY_CLASSES: dict[str, Any] = {"classes_per_batch": 40, "samples_per_class": 2, "num_layers": 1, "num_heads": 2}

RESNET50_CUB = Recipe(
    name="resnet50_cub",
    backbone=RESNET50,
    dataset=CUB,
    embedding_size=512,
    num_layers=2,
    num_heads=4,
    alpha=5,
    beta=20,
    classification_weight=20,
    similarity_weight=20,
    diversity_weight=60,
    embedder_lr=1.5e-4,
    generator_lr=1.5e-4,
    classes_per_batch=27,
    samples_per_class=3,
    epochs=100,
    lr_decay_epochs=10,
    warmup_epochs=2,
    frozen=BATCH_NORM,
)
RESNET50_CARS196 = replace(RESNET50_CUB, name="resnet50_cars196", dataset=CARS196, epochs=200)
RESNET50_SOP = replace(
    RESNET50_CUB,
    name="resnet50_sop",
    dataset=SOP,
    **MANY_CLASSES,
    embedder_lr=2e-4,
    epochs=200,
    lr_decay_epochs=20,
    warmup_epochs=1,
    frozen=None,
)
RESNET50_INSHOP = replace(RESNET50_SOP, name="resnet50_inshop", dataset=INSHOP)

GOOGLENET_CUB = replace(
    RESNET50_CUB,
    name="googlenet_cub",
    backbone=GOOGLENET,
    alpha=4,
    beta=30,
    similarity_weight=10,
    diversity_weight=10,
    embedder_lr=1e-4,
    generator_lr=3e-4,
    epochs=150,
    lr_decay_epochs=30,
    warmup_epochs=1,
)
GOOGLENET_CARS196 = replace(GOOGLENET_CUB, name="googlenet_cars196", dataset=CARS196, epochs=200)
GOOGLENET_SOP = replace(
    RESNET50_SOP,
    name="googlenet_sop",
    backbone=GOOGLENET,
    diversity_weight=20,
    embedder_lr=3e-4,
    epochs=150,
    lr_decay_epochs=15,
)
GOOGLENET_INSHOP = replace(GOOGLENET_SOP, name="googlenet_inshop", dataset=INSHOP, alpha=2, epochs=200)

DINO_CUB = replace(
    RESNET50_CUB,
    name="dino_cub",
    backbone=DINO_VITS16,
    embedding_size=384,
    alpha=2,
    beta=5,
    diversity_weight=20,
    embedder_lr=1e-5,
    generator_lr=3e-4,
    epochs=50,
    lr_decay_epochs=20,
    frozen=PATCH_EMBEDDING,
    orthogonal_head=True,
)
DINO_CARS196 = replace(DINO_CUB, name="dino_cars196", dataset=CARS196, embedder_lr=3e-5, epochs=100, lr_decay_epochs=10)
DINO_SOP = replace(
    RESNET50_SOP,
    name="dino_sop",
    backbone=DINO_VITS16,
    embedding_size=384,
    embedder_lr=1.5e-5,
    generator_lr=3e-4,
    frozen=PATCH_EMBEDDING,
    orthogonal_head=True,
)
DINO_INSHOP = replace(DINO_SOP, name="dino_inshop", dataset=INSHOP, epochs=150)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(RESNET50_CUB, RESNET50_CARS196, RESNET50_SOP, RESNET50_INSHOP),
        *(GOOGLENET_CUB, GOOGLENET_CARS196, GOOGLENET_SOP, GOOGLENET_INSHOP),
        *(DINO_CUB, DINO_CARS196, DINO_SOP, DINO_INSHOP),
    )
}

PUBLISHED_RECALL_AT_1 = {  # in percent, mean and standard deviation, by recipe, loss and generator
    ("resnet50_cub", "proxy_anchor", "gca"): (72.3, 0.3),
    ("resnet50_cub", "proxy_anchor", "none"): (68.5, 0.3),
    ("resnet50_cars196", "proxy_anchor", "gca"): (91.1, 0.2),
    ("resnet50_cars196", "proxy_anchor", "none"): (88.4, 0.1),
    ("resnet50_inshop", "proxy_anchor", "gca"): (93.6, 0.1),
    ("resnet50_inshop", "proxy_anchor", "none"): (92.2, 0.1),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        TypeError: `name` is not a string.
        ValueError: no recipe has that name. The message lists all.
    """
    check_string("name", name)
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}{suggestion(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def experiment_title(recipe: Recipe, benchmark: Benchmark) -> str:
    """Return the recipe's name; with another data set or backbone than the paper's, what is trained on what."""
    paper = RECIPES.get(recipe.name, recipe)
    if (recipe.dataset, recipe.backbone) == (paper.dataset, paper.backbone):
        return recipe.name
    return f"{recipe.backbone} on {benchmark.title}"


def changes_from_paper(recipe: Recipe) -> dict[str, object]:
    """Return the settings that differ from the paper's recipe of that name; all of them if the paper has none."""
    paper = RECIPES.get(recipe.name)
    usual = {} if paper is None else paper.settings()
    return {name: value for name, value in recipe.settings().items() if name not in usual or value != usual[name]}
