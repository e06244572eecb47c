"""The paper's settings: three backbones on four data sets. Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145

A recipe is plain data. Change one with ``dataclasses.replace(recipes.RESNET50_CUB, epochs=20)``.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from .utils.text import suggestion
from .utils.validation import check_flag, check_number, check_positive_int

CUB, CARS196, SOP, INSHOP = "cub", "cars196", "sop", "inshop"
BATCH_NORM, PATCH_EMBEDDING = "batch_norm", "patch_embedding"


@dataclass(frozen=True)
class Recipe:
    """What one of the paper's experiments is made of.

    Attributes:
        name: e.g. ``"resnet50_cub"``.
        backbone: see :func:`pml_gca.backbones.build_backbone`.
        dataset: see :func:`pml_gca.datasets.load_benchmark`.
        embedding_size: channels D.
        num_layers: K rounds of propagation.
        num_heads: H of the node attention.
        alpha: α in e^{-α/L}, which pulls negatives in as the metric level L falls.
        beta: β in 1 - e^{-β/G}, which weights them as the generator level G falls.
        classification_weight, similarity_weight, diversity_weight: w_c, w_s, w_d of the generator's objective.
        embedder_lr: learning rate of backbone and head.
        generator_lr: of the generator's propagation; falls to 0 along a cosine.
        classes_per_batch, samples_per_class: of a training batch.
        epochs: passes over as many images as the training set has.
        lr_decay_epochs: ``embedder_lr`` is multiplied by ``lr_decay`` every so many epochs.
        warmup_epochs: first epochs, in which of the image model only the head learns.
        frozen: what of the backbone never learns: ``"batch_norm"``, ``"patch_embedding"`` or None.
        lr_decay: see ``lr_decay_epochs``.
        classifier_lr, classifier_weight_decay: of the generator's auxiliary classifier.
        proxy_lr_factor: learning rate of a loss's own parameters, such as proxies, in units of ``embedder_lr``.
        weight_decay: of everything else.
        orthogonal_head: whether the head's linear layer begins with orthogonal weights, and no bias.
        gradient_clip: gradients are clipped to plus or minus this, value by value.

    Raises:
        TypeError, ValueError: a field is of the wrong type, or out of range.
    """

    name: str
    backbone: str
    dataset: str
    embedding_size: int
    num_layers: int
    num_heads: int
    alpha: float
    beta: float
    classification_weight: float
    similarity_weight: float
    diversity_weight: float
    embedder_lr: float
    generator_lr: float
    classes_per_batch: int
    samples_per_class: int
    epochs: int
    lr_decay_epochs: int
    warmup_epochs: int
    frozen: str | None
    lr_decay: float = 0.5
    classifier_lr: float = 1e-3
    classifier_weight_decay: float = 1e-2
    proxy_lr_factor: float = 100.0
    weight_decay: float = 1e-4
    gradient_clip: float = 10.0
    orthogonal_head: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float:
                check_number(field.name, value)
            elif field.type is int and (field.name, value) != ("warmup_epochs", 0):
                check_positive_int(field.name, value)
        for name in ("classes_per_batch", "samples_per_class"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, or no batch has both positives and negatives, got 1")
        check_flag("orthogonal_head", self.orthogonal_head)
        if self.frozen not in (BATCH_NORM, PATCH_EMBEDDING, None):
            raise ValueError(f"frozen must be {BATCH_NORM!r}, {PATCH_EMBEDDING!r} or None, got {self.frozen!r}")

    @property
    def batch_size(self) -> int:
        """Images of a training batch."""
        return self.classes_per_batch * self.samples_per_class

    @property
    def generator_settings(self) -> dict[str, Any]:
        """Keywords of ``GlobalCorrelationGenerator`` that no parameter tells; ``num_layers`` is the one that does."""
        names = ("num_heads", "alpha", "classification_weight", "similarity_weight", "diversity_weight")
        return {name: getattr(self, name) for name in names}


RESNET50_CUB = Recipe(
    name="resnet50_cub",
    backbone="resnet50",
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
RESNET50_SOP = Recipe(
    name="resnet50_sop",
    backbone="resnet50",
    dataset=SOP,
    embedding_size=512,
    num_layers=1,
    num_heads=2,
    alpha=5,
    beta=20,
    classification_weight=20,
    similarity_weight=20,
    diversity_weight=60,
    embedder_lr=2e-4,
    generator_lr=1.5e-4,
    classes_per_batch=40,
    samples_per_class=2,
    epochs=200,
    lr_decay_epochs=20,
    warmup_epochs=1,
    frozen=None,
)
RESNET50_INSHOP = replace(RESNET50_SOP, name="resnet50_inshop", dataset=INSHOP)

GOOGLENET_CUB = Recipe(
    name="googlenet_cub",
    backbone="googlenet",
    dataset=CUB,
    embedding_size=512,
    num_layers=2,
    num_heads=4,
    alpha=4,
    beta=30,
    classification_weight=20,
    similarity_weight=10,
    diversity_weight=10,
    embedder_lr=1e-4,
    generator_lr=3e-4,
    classes_per_batch=27,
    samples_per_class=3,
    epochs=150,
    lr_decay_epochs=30,
    warmup_epochs=1,
    frozen=BATCH_NORM,
)
GOOGLENET_CARS196 = replace(GOOGLENET_CUB, name="googlenet_cars196", dataset=CARS196, epochs=200)
GOOGLENET_SOP = Recipe(
    name="googlenet_sop",
    backbone="googlenet",
    dataset=SOP,
    embedding_size=512,
    num_layers=1,
    num_heads=2,
    alpha=5,
    beta=20,
    classification_weight=20,
    similarity_weight=20,
    diversity_weight=20,
    embedder_lr=3e-4,
    generator_lr=1.5e-4,
    classes_per_batch=40,
    samples_per_class=2,
    epochs=150,
    lr_decay_epochs=15,
    warmup_epochs=1,
    frozen=None,
)
GOOGLENET_INSHOP = replace(GOOGLENET_SOP, name="googlenet_inshop", dataset=INSHOP, alpha=2, epochs=200)

DINO_CUB = Recipe(
    name="dino_cub",
    backbone="dino_vits16",
    dataset=CUB,
    embedding_size=384,
    num_layers=2,
    num_heads=4,
    alpha=2,
    beta=5,
    classification_weight=20,
    similarity_weight=20,
    diversity_weight=20,
    embedder_lr=1e-5,
    generator_lr=3e-4,
    classes_per_batch=27,
    samples_per_class=3,
    epochs=50,
    lr_decay_epochs=20,
    warmup_epochs=2,
    frozen=PATCH_EMBEDDING,
    orthogonal_head=True,
)
DINO_CARS196 = replace(DINO_CUB, name="dino_cars196", dataset=CARS196, embedder_lr=3e-5, epochs=100, lr_decay_epochs=10)
DINO_SOP = Recipe(
    name="dino_sop",
    backbone="dino_vits16",
    dataset=SOP,
    embedding_size=384,
    num_layers=1,
    num_heads=2,
    alpha=5,
    beta=20,
    classification_weight=20,
    similarity_weight=20,
    diversity_weight=60,
    embedder_lr=1.5e-5,
    generator_lr=3e-4,
    classes_per_batch=40,
    samples_per_class=2,
    epochs=200,
    lr_decay_epochs=20,
    warmup_epochs=1,
    frozen=PATCH_EMBEDDING,
    orthogonal_head=True,
)
DINO_INSHOP = replace(DINO_SOP, name="dino_inshop", dataset=INSHOP, epochs=150)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        RESNET50_CUB,
        RESNET50_CARS196,
        RESNET50_SOP,
        RESNET50_INSHOP,
        GOOGLENET_CUB,
        GOOGLENET_CARS196,
        GOOGLENET_SOP,
        GOOGLENET_INSHOP,
        DINO_CUB,
        DINO_CARS196,
        DINO_SOP,
        DINO_INSHOP,
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
    """The recipe of that name.

    Raises:
        ValueError: there is none; all are listed.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}{suggestion(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def changes(recipe: Recipe) -> dict[str, object]:
    """Fields of a recipe that differ from the paper's recipe of that name; all, if the paper has none."""
    paper = RECIPES.get(recipe.name)
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: value for name, value in values.items() if paper is None or value != getattr(paper, name)}
