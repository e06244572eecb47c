"""Every public argument names itself when it is given what it is not for."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.datasets import AffineRange, ClassFolder, Glyphs, load_benchmark, small_classes
from pml_gca.generators import (
    ClassifiedGenerator,
    ConstantGenerator,
    EmbeddingExpansionGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
    SymmetricalSynthesisGenerator,
)
from pml_gca.paper import MPerClassCoveringSampler, Options, PublishedNPairsLoss, evaluate
from pml_gca.paper.backbones import build_backbone, build_head
from pml_gca.paper.checkpoints import load_published_checkpoint
from pml_gca.paper.recipes import find_recipe
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer
from pml_gca.utils import RecallCalculator
from pml_gca.utils.validation import check_int

CLASSES, SIZE = 9, 8
Z, LABELS = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 7, 3, 0, 0, 7])

NUMBERLESS = [True, "2", [1.0], torch.ones(2), 1j]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float64("nan")]
KINDS = {  # values that no argument of the kind takes
    "count": [0, -1, 1.5, np.float32(2), torch.tensor(2), None, *NOT_FINITE, *NUMBERLESS],
    "optional count": [0, -1, 1.5, np.float32(2), torch.tensor(2), *NOT_FINITE, *NUMBERLESS],
    "place": [-1, 1.5, np.float32(2), torch.tensor(2), None, *NOT_FINITE, *NUMBERLESS],
    "number": [-1, -0.5, torch.tensor(0.5), None, *NOT_FINITE, *NUMBERLESS],
    "share": [-0.1, 1.1, 2, torch.tensor(0.5), None, *NOT_FINITE, *NUMBERLESS],
    "rate": [-1, None, *NOT_FINITE, *NUMBERLESS],
    "flag": [0, 1, 1.0, "True", None, torch.tensor(True), *NOT_FINITE],
    "optional flag": [0, 1, 1.0, "True", torch.tensor(True), *NOT_FINITE],
    "level": [None, math.nan, np.float64("nan"), torch.tensor(math.nan), torch.tensor(True), *NUMBERLESS],
    "momentum": [-0.1, 1, 1.1, torch.tensor(0.5), *NOT_FINITE, *NUMBERLESS],
    "optional rate": [-1, *NOT_FINITE, *NUMBERLESS],
    "level on the host": [None, math.nan, np.float64("nan"), "2", [1.0], True, 1j],
    "anchors": [-1, 7, 1.5, np.float32(2), torch.tensor(2), *NOT_FINITE, *NUMBERLESS],
    "text": [None, 1, True, math.nan, ["random"], torch.tensor(1), "no such thing"],
    "module": [1, True, math.nan, "MeanReducer", torch.tensor(1.0), losses.NPairsLoss],
    "function": [1, True, math.nan, "faiss", torch.tensor(1.0)],
    "device": [1.5, True, math.nan, "gpu", ["cpu"]],
    "bfloat16": [torch.float16, torch.float32, "bfloat16", True, math.nan, 16],
}
GOOD = {
    "count": np.int64(2),
    "optional count": np.int64(2),
    "place": np.int64(0),
    "number": np.float32(0.5),
    "share": np.float32(0.5),
    "rate": torch.tensor(0.5),
    "flag": np.bool_(True),
    "optional flag": None,
    "level": torch.tensor([math.inf]),
    "anchors": np.int64(2),
}


def generator_of(**kwargs):
    return GlobalCorrelationGenerator(CLASSES, SIZE, **{"num_layers": 1, "num_heads": 2, **kwargs})


GENERATORS = {
    ConstantGenerator: {"coefficient": "share", "alpha": "number", "merging": "text"},
    RandomGenerator: {"probability": "share", "alpha": "number", "merging": "text"},
    HardestNegativeGenerator: {"normalize": "flag"},
    EmbeddingExpansionGenerator: {"num_points": "count", "normalize": "flag"},
    HardnessAwareGenerator: {"alpha": "number", "reembed": "flag", "softmax_weight": "number"},
    MixupGenerator: {"concentration": "number", "normalize": "flag"},
    SymmetricalSynthesisGenerator: {"normalize": "flag"},
}
SIZES = {"num_classes": "count", "embedding_size": "count", "collect_stats": "optional flag"}
LOSS = HardNegativeGenerationLoss(losses.ProxyAnchorLoss(CLASSES, SIZE), generator_of())
RATES = {"lr": "rate", "classifier_lr": "rate"}
SAMPLED = {"labels": LABELS, "m": 2, "batch_size": 4, "length_before_new_iter": 6}

# What is called, with what else, and the kinds of its arguments.
CALLS = {
    "GlobalCorrelationGenerator": (
        GlobalCorrelationGenerator,
        {"num_classes": CLASSES, "embedding_size": SIZE, "num_heads": 2},
        {
            **SIZES,
            "num_layers": "place",
            "num_heads": "optional count",
            "alpha": "number",
            "dropout": "number",
            "classification_weight": "number",
            "similarity_weight": "number",
            "diversity_weight": "number",
            "edge_chunk_size": "optional count",
            "classify_among": "text",
            "merging": "text",
        },
    ),
    **{
        make.__name__: (make, {"num_classes": CLASSES, "embedding_size": SIZE}, {**SIZES, **kinds})
        for make, kinds in GENERATORS.items()
    },
    **{
        f"{make.__name__}()": (
            make(CLASSES, SIZE),
            {"embeddings": Z, "labels": LABELS},
            {"num_anchors": "anchors", "metric_level": "level"},
        )
        for make in (*GENERATORS, lambda *_: generator_of())
    },
    "ClassifiedGenerator": (
        ClassifiedGenerator,
        {"generator": ConstantGenerator(CLASSES, SIZE), "num_heads": 2},
        {
            "num_layers": "place",
            "num_heads": "optional count",
            "dropout": "number",
            "edge_chunk_size": "optional count",
            "collect_stats": "optional flag",
        },
    ),
    "classified.parameter_groups": (
        ClassifiedGenerator(ConstantGenerator(CLASSES, SIZE)).parameter_groups,
        {"lr": 1e-3},
        RATES,
    ),
    "generator.parameter_groups": (generator_of().parameter_groups, {"lr": 1e-3}, RATES),
    "HDML.parameter_groups": (HardnessAwareGenerator(CLASSES, SIZE).parameter_groups, {"lr": 1e-3}, RATES),
    "mixup.parameter_groups": (MixupGenerator(CLASSES, SIZE).parameter_groups, {"lr": 1e-3}, RATES),
    "interpolation_strength": (generator_of().interpolation_strength, {}, {"metric_level": "level on the host"}),
    "cost": (generator_of().cost, {"batch_size": 8}, {"batch_size": "count", "samples_per_class": "count"}),
    "HardNegativeGenerationLoss": (
        HardNegativeGenerationLoss,
        {"loss": losses.NPairsLoss(), "generator": generator_of()},
        {
            "beta": "number",
            "level_momentum": "momentum",
            "gather_across_devices": "flag",
            "collect_stats": "optional flag",
            "reducer": "module",
            "embedding_regularizer": "module",
            "embedding_reg_weight": "number",
        },
    ),
    "loss.parameter_groups": (LOSS.parameter_groups, {"lr": 1e-3}, {**RATES, "loss_lr": "optional rate"}),
    "GlobalCorrelationMiner": (
        GlobalCorrelationMiner,
        {"generator": generator_of()},
        {
            "negatives_per_anchor": "count",
            "output": "text",
            "gather_across_devices": "flag",
            "collect_stats": "optional flag",
        },
    ),
    "PublishedNPairsLoss": (PublishedNPairsLoss, {}, {"samples_per_class": "count"}),
    "RecallCalculator": (
        RecallCalculator,
        {"knn_func": print, "device": "cpu", "exclude": ("AMI", "NMI")},
        {
            "avg_of_avgs": "flag",
            "return_per_class": "flag",
            "label_comparison_fn": "function",
            "knn_func": "function",
            "kmeans_func": "function",
            "device": "device",
        },
    ),
    "MPerClassCoveringSampler": (
        MPerClassCoveringSampler,
        SAMPLED,
        {"m": "count", "batch_size": "count", "length_before_new_iter": "count", "seed": "place"},
    ),
    "AutocastTrainer": (AutocastTrainer, {}, {"autocast_dtype": "bfloat16"}),
    "AlternatingTrainer": (AlternatingTrainer, {}, {"autocast_dtype": "bfloat16"}),
    "Recipe": (
        lambda **changes: dataclasses.replace(find_recipe("resnet50_cub"), **changes),
        {},
        {
            "name": "text",
            "num_layers": "place",
            "alpha": "number",
            "embedder_lr": "number",
            "epochs": "count",
            "warmup_epochs": "count",
            "orthogonal_head": "flag",
        },
    ),
    "find_recipe": (find_recipe, {}, {"name": "text"}),
    "load_published_checkpoint": (
        load_published_checkpoint,
        {"state_dict_or_path": {}, "recipe": "resnet50_cub"},
        {"recipe": "text", "image_size": "optional count"},
    ),
    "Options": (
        Options,
        {"device": "cpu"},
        {
            "loss": "text",
            "generator": "text",
            "seed": "place",
            "workers": "place",
            "image_size": "count",
            "amp": "flag",
            "pretrained": "flag",
        },
    ),
    "evaluate": (
        evaluate,
        {"trunk": None, "embedder": None, "benchmark": None, "split": "no such thing"},
        {"batch_size": "count", "workers": "place", "device": "device", "split": "text"},
    ),
    "build_head": (
        build_head,
        {"num_features": 4, "embedding_size": 4},
        {"num_features": "count", "embedding_size": "count", "orthogonal": "flag"},
    ),
    "build_backbone": (
        build_backbone,
        {"name": "resnet50"},
        {"name": "text", "pretrained": "flag", "image_size": "count"},
    ),
    "AffineRange": (AffineRange, {}, {"rotation": "number", "scale": "number", "shear": "number", "shift": "number"}),
    "small_classes": (
        small_classes,
        {"dataset": type("Data", (), {"labels": LABELS, "classes": range(8)})},
        {"samples_per_class": "place"},
    ),
}
ROWS = [(call, argument, kind) for call, (_, _, kinds) in CALLS.items() for argument, kind in kinds.items()]
TAKEN = {  # here, other than elsewhere
    ("Recipe", "warmup_epochs"): 0,
    ("Recipe", "name"): "no such thing",
    ("build_backbone", "name"): "no such thing",  # only timm knows
}


@pytest.mark.parametrize(("call", "argument", "kind"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_bad_values_are_named(call, argument, kind):
    function, others, _ = CALLS[call]
    for value in KINDS[kind]:
        if type(value) in (int, str) and TAKEN.get((call, argument)) == value:
            continue
        with pytest.raises((TypeError, ValueError)) as error:
            function(**{**others, argument: value})
        said = str(error.value)
        assert argument in said or "is called" in said, f"{value!r}: {said}"


@pytest.mark.parametrize(
    ("call", "argument", "kind"),
    [
        row
        for row in ROWS
        if row[2] in GOOD and not row[0].startswith(("build_backbone", "load", "MPerClass", "evaluate"))
    ],
    ids=lambda value: str(value),
)
def test_numbers_of_numpy_and_torch_are_taken_where_they_are_exact(call, argument, kind):
    function, others, _ = CALLS[call]
    assert function(**{**others, argument: GOOD[kind]}) is not None


def test_settings_of_numpy_can_be_written():
    """A run keeps them as JSON beside its checkpoints."""
    options = Options(seed=np.int64(3), amp=np.bool_(False), image_size=np.int16(96), device="cpu")
    assert options == Options(seed=3, amp=False, image_size=96, device="cpu")
    assert json.loads(json.dumps(dataclasses.asdict(options)))["seed"] == 3
    assert json.dumps(options.identity()) == json.dumps(Options(seed=3, image_size=96, device="cpu").identity())
    changes = {"num_layers": np.int64(1), "alpha": np.float32(2.5), "generator_options": {"dropout": np.float64(0.5)}}
    recipe = dataclasses.replace(find_recipe("resnet50_cub"), **changes)
    assert json.loads(json.dumps(recipe.settings()))["dropout"] == 0.5
    assert recipe == dataclasses.replace(
        find_recipe("resnet50_cub"), num_layers=1, alpha=2.5, generator_options={"dropout": 0.5}
    )


FOLDERS = {
    "ClassFolder": (ClassFolder, ("flip", "in_memory", "progress")),
    "Glyphs": (Glyphs, ("progress",)),
    "load_benchmark": (
        partial(load_benchmark, "cub"),
        ("check_train", "download", "progress"),
    ),
}


@pytest.mark.parametrize(
    ("data", "flag"), [(name, flag) for name, (_, flags) in FOLDERS.items() for flag in flags], ids=lambda x: str(x)
)
@pytest.mark.parametrize("value", [1, "False", math.nan, torch.tensor(True)])
def test_flags_of_data_sets(data, flag, value, tmp_path):
    where = {} if data == "Glyphs" else {"root": tmp_path}
    with pytest.raises(TypeError, match=f"^{flag} must be a bool, got {type(value).__name__}"):
        FOLDERS[data][0](**where, **{flag: value})


TRANSFORMS = {
    "vmap": lambda f: torch.vmap(f, randomness="different")(torch.stack([Z, Z])),
    "grad": lambda f: torch.func.grad(f)(Z),
    "jacrev": lambda f: torch.func.jacrev(f)(Z),
    "jvp": lambda f: torch.func.jvp(f, (Z,), (Z,)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("of", ["loss", "generator", "mixup", "miner", "references"])
def test_inside_a_transform_of_torch_func_it_says_what_to_do(transform, of):
    generator = generator_of()
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    function = {
        "loss": lambda z: loss(z, LABELS),
        "generator": lambda z: generator(z, LABELS).embeddings.sum(),
        "mixup": lambda z: MixupGenerator(CLASSES, SIZE)(z, LABELS).embeddings.sum(),
        "miner": lambda z: GlobalCorrelationMiner(generator)(z, LABELS)[0].sum(),
        "references": lambda z: loss(Z, LABELS, None, z, LABELS),
    }[of]
    with pytest.raises(TypeError, match=r"embeddings cannot be read inside torch.vmap.*by backward\(\)"):
        TRANSFORMS[transform](function)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def test_labels_inside_vmap():
    generator = generator_of()
    with pytest.raises(TypeError, match=r"cannot be read inside torch.vmap"):
        torch.vmap(lambda y: generator(Z, y).embeddings.sum())(torch.stack([LABELS, LABELS]))


def test_the_wrapped_loss_alone_works_inside_a_transform():
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator_of()).eval()
    expected = torch.autograd.functional.jacobian(lambda z: losses.TripletMarginLoss()(z, LABELS), Z)
    torch.testing.assert_close(torch.func.grad(lambda z: loss(z, LABELS))(Z), expected)


@pytest.mark.parametrize("value", [True, 1.5, math.nan, "8", torch.tensor(8.5), None])
def test_sizes_of_data_sets(value):
    with pytest.raises(TypeError, match=r"^image_size must be an int, found"):
        check_int("image_size", value, 8, 16)
    assert check_int("image_size", np.int16(9), 8, 16) == check_int("image_size", torch.tensor(9), 8, 16) == 9
