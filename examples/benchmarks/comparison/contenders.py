"""The contenders: generators, GCA-HNG with parts taken away, and the loss alone; each with its choices to tune.

Decided before the first run from scratch of synthetic classes (`crossed_81`, `norm_crossed_81`), which N-pairs and
multi-similarity can take: alone they are dropped below +1 Recall@1 and +0.5 MAP@R with both. Beside BatchNorm and a
linear classifier they are recommended only if they are above that classifier alone, clear of zero, with both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from comparison.ablations import (
    DetachedClassificationGenerator,
    ScalarCorrelationGenerator,
    SilentClassifiedGenerator,
    SilentCorrelationGenerator,
)
from pml_gca import GlobalCorrelationGenerator
from pml_gca.generators import (
    BaseGenerator,
    ClassifiedGenerator,
    ConstantGenerator,
    EmbeddingExpansionGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
    SymmetricalSynthesisGenerator,
)

LEARNING_RATES = (7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)  # of the network, for all alike
ALPHAS = (0.0, 2.0, 5.0, 15.0)


@dataclass(frozen=True)
class Contender:
    """One row of the tables.

    Attributes:
        title: its name there.
        make: makes a generator of `num_classes`, `embedding_size`, tuned choices and `settings`; None for the loss
            alone. Results are filed under the contender's name and settings: another `make` leaves them valid.
        tuned: values to choose from, beside the learning rate.
        settings: what is not chosen: arguments of `make`, or a default of training that it replaces (`schedule`,
            `beta`). They are columns of the results, and kept results of other settings are refused.
        tuned_as: contender whose trials choose for this one, too.
        length: of its runs, in units of everyone's.
    """

    title: str
    make: Callable[..., BaseGenerator] | None
    tuned: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None
    length: int = 1


def control(
    num_classes: int,
    embedding_size: int,
    *,
    alpha: float = 5.0,
    coefficient: float | None = None,
    probability: float = 0.5,
    merging: str = "random",
) -> BaseGenerator:
    """Make a control of GCA-HNG: λ is `coefficient`, or 1 or 0 at random if that is None."""
    if (coefficient, alpha, merging) == (1.0, 0.0, "hardest"):
        return HardestNegativeGenerator(num_classes, embedding_size)
    if coefficient is None:
        return RandomGenerator(num_classes, embedding_size, probability=probability, alpha=alpha, merging=merging)
    return ConstantGenerator(num_classes, embedding_size, coefficient=coefficient, alpha=alpha, merging=merging)


def classified(
    num_classes: int,
    embedding_size: int,
    *,
    num_layers: int,
    num_heads: int,
    kind: Callable[..., BaseGenerator] = ClassifiedGenerator,
    **options: Any,
) -> BaseGenerator:
    """Make a `control` with a node classification beside it."""
    return kind(control(num_classes, embedding_size, **options), num_layers=num_layers, num_heads=num_heads)


def ours(
    title: str,
    make: Callable[..., BaseGenerator] = GlobalCorrelationGenerator,
    also_tuned: Mapping[str, tuple[Any, ...]] | None = None,
    **settings: Any,
) -> Contender:
    """Return GCA-HNG, or a part of it, tuned as the whole is."""
    settings = {"num_layers": 1, "num_heads": 2, **settings}
    tuned = {"alpha": ALPHAS, "generator_lr": (1.5e-4, 1e-3), **(also_tuned or {})}
    return Contender(
        title, make, {name: values for name, values in tuned.items() if name not in settings}, settings=settings
    )


def tuned_as(
    other: str, title: str, make: Callable[..., BaseGenerator] = GlobalCorrelationGenerator, **settings: Any
) -> Contender:
    """Return GCA-HNG, or a part of it, with the hyperparameters that were chosen for another contender."""
    return replace(ours(title, make, **settings), tuned={}, tuned_as=other)


ablation = partial(tuned_as, "gca")  # GCA-HNG with one thing changed

# Hyperparameters and graph of the hardest real negatives, but λ is learned instead of 1, and J_syn counts in full.
HARDEST_LEARNED: dict[str, Any] = {"beta": 1e6, "alpha": 0.0, "merging": "hardest"}

CONTENDERS = {
    "none": Contender("the loss alone", None),
    "none_double": Contender("the loss alone, 2 × the iterations", None, tuned_as="none", length=2),
    "none_longer": Contender("the loss alone, 3 × the iterations", None, tuned_as="none", length=3),
    "none_as_hardest": Contender(
        "the loss alone, learning rate of the hardest real negatives", None, tuned_as="graph_hardest"
    ),
    "classifier": Contender("the loss alone, linear classifier beside it", None, settings={"classifier": "linear"}),
    "norm_classifier": Contender(
        "the loss alone, BatchNorm and a linear classifier beside it", None, settings={"classifier": "norm_linear"}
    ),
    "gca": ours("GCA-HNG"),
    # Published weights drive λ to 0 and 1, and α makes it count for nothing once the loss is low: here neither does.
    "gca_free": ours(
        "GCA-HNG, α 0 and no J_div",
        also_tuned={"similarity_weight": (5, 20, 60), "beta": (20.0, 1e6), "classifier_lr": (1e-3, 1e-2)},
        alpha=0.0,
        diversity_weight=0,
    ),
    "gca_counting": ablation("GCA-HNG, α 0 and J_syn of full weight", beta=1e6, alpha=0.0),
    "gca_hardest": tuned_as(
        "graph_hardest", "GCA-HNG, α 0, J_syn of full weight, hardest candidates", **HARDEST_LEARNED
    ),
    "gca_hardest_free": tuned_as(
        "graph_hardest",
        "GCA-HNG, α 0, J_syn of full weight, hardest candidates, no J_div",
        **HARDEST_LEARNED,
        diversity_weight=0,
    ),
    "constant": Contender(
        "constant λ, no graph", ConstantGenerator, {"alpha": ALPHAS, "coefficient": (0.25, 0.5, 0.75)}
    ),
    "real": Contender(
        "real negatives, merged at random", ConstantGenerator, settings={"coefficient": 1.0, "alpha": 0.0}
    ),
    "hardest": Contender(
        "hardest real negatives", control, settings={"coefficient": 1.0, "alpha": 0.0, "merging": "hardest"}
    ),
    "norm_hardest": Contender(
        "hardest real negatives, BatchNorm and a linear classifier beside them",
        control,
        settings={"coefficient": 1.0, "alpha": 0.0, "merging": "hardest", "classifier": "norm_linear"},
        tuned_as="norm_classifier",
    ),
    "norm_gca": Contender(
        "GCA-HNG, hardest candidates, full weight, BatchNorm and a linear classifier beside it",
        DetachedClassificationGenerator,
        settings={**HARDEST_LEARNED, "num_layers": 1, "num_heads": 2, "classifier": "norm_linear"},
        tuned_as="norm_classifier",
    ),
    "random": Contender("random λ, no graph", RandomGenerator, {"alpha": ALPHAS, "probability": (0.25, 0.5, 0.75)}),
    "graph_constant": ours("constant λ, node classification through the graph", classified, coefficient=0.5),
    "graph_random": ours("random λ, node classification through the graph", classified, probability=0.5),
    "graph_real": ours("real negatives, node classification through the graph", classified, coefficient=1.0, alpha=0.0),
    "graph_hardest": ours(
        "hardest real negatives, node classification through the graph",
        classified,
        coefficient=1.0,
        alpha=0.0,
        merging="hardest",
    ),
    "nodes_real": ours(
        "real negatives, node classification without edges",
        partial(classified, kind=SilentClassifiedGenerator),
        coefficient=1.0,
        alpha=0.0,
    ),
    "linear_real": ours(
        "real negatives, linear classification without a graph", classified, coefficient=1.0, alpha=0.0, num_layers=0
    ),
    "linear_as_graph": tuned_as(
        "graph_real",
        "real negatives, linear classification without a graph, tuned as with it",
        classified,
        coefficient=1.0,
        alpha=0.0,
        num_layers=0,
    ),
    "linear_hardest": tuned_as(
        "graph_hardest",
        "hardest real negatives, linear classification",
        classified,
        coefficient=1.0,
        alpha=0.0,
        merging="hardest",
        num_layers=0,
    ),
    "hdml": Contender("HDML", HardnessAwareGenerator, {"alpha": (5.0, 20.0, 90.0)}),
    "hdml_reembed": Contender(
        "HDML, re-embedded",
        partial(HardnessAwareGenerator, reembed=True),
        {"alpha": (5.0, 20.0, 90.0), "generator_lr": (1.5e-4, 1e-3)},
    ),
    "embedding_expansion": Contender("embedding expansion", EmbeddingExpansionGenerator, {"num_points": (2, 4)}),
    "symmetrical_synthesis": Contender("symmetrical synthesis", SymmetricalSynthesisGenerator),
    "mixup": Contender("mixup, after Metrix", MixupGenerator, {"concentration": (1.0, 2.0)}),
    "crossed_81": Contender("the loss alone, 81 synthetic classes", None, settings={"crossed": 3}),
    "norm_crossed_81": Contender(
        "the loss alone, 81 synthetic classes, BatchNorm and a linear classifier",
        None,
        settings={"crossed": 3, "classifier": "norm_linear"},
        tuned_as="norm_classifier",
    ),
}

ABLATIONS = {
    "no_propagation": ablation("no propagation, so that classification is linear", num_layers=0),
    "no_edge_messages": ablation("no edge messages", SilentCorrelationGenerator),
    "scalar": ablation("one coefficient for each pair", ScalarCorrelationGenerator),
    "no_random_weighting": ablation("no random weighting", merging="mean"),
    "no_classification_term": ablation("without J_soft", classification_weight=0),
    "no_similarity_term": ablation("without J_sim", similarity_weight=0),
    "no_diversity_term": ablation("without J_div", diversity_weight=0),
    "no_strength": ablation("without e^(-α/L)", alpha=0.0),
    "no_synthesis": ablation("without J_syn", beta=0.0),
    "full_weight": ablation("J_syn of full weight", beta=1e6),
    "detached": ablation("node classification kept out of the embeddings", DetachedClassificationGenerator),
    "alternating": ablation("alternating schedule", schedule="alternating"),
}
