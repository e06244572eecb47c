"""Ideas that could make learned λ, or synthetic samples at all, earn their cost, each with the controls that refute it.

Decided before the first run:

- Screening: Recall@1 on validation classes, multi-similarity and Proxy Anchor, 64-pixel emoji, 128 channels, 27 classes
  x 3 samples, layers of the backbone frozen through `blocks.5`, 300 iterations, 3 seeds (`--screen 3`). No test class
  is looked at. Nothing is tuned for a row: it has the learning rate of the loss alone, with the published graph that of
  GCA-HNG as published.
- An idea goes on if, with one of the two losses, its mean is at least 0.5 points above each of its controls, and at
  least 1 point above the loss alone or the loss with a linear classifier, whichever is better. Then it is trained with
  5 seeds and tested on test classes, frozen through `blocks.4`. Else it gets one line in the evidence.
- Synthetic classes (H6) are dropped if, with the whole backbone, they gain less than 1 point of Recall@1 and less than
  0.5 points of MAP@R over the loss alone with two of three losses. A learned mask (H7) is dropped if it gains less than
  0.5 points over the coin with 5 seeds.
- Where λ is learned, J_syn counts in full (β 10⁶) and α is 0, as in the controls: otherwise weight and pull would
  differ, and not λ alone.

The ideas:

- H1, soft labels. A synthetic negative counts for its own class by the mean of λ over its channels, and for the
  anchor's class by the rest. Of the losses, only Proxy Anchor takes such labels; with others a linear classifier
  does (`h1_classified_...`), and there the node classification is kept out of the embeddings. Controls: constant λ,
  coins, hard labels.
- H2, beyond the batch. Prototypes of all training classes choose which classes meet (controls: the loss alone, whose
  batches are random), or are hard negatives (controls: random prototypes, the hardest of the batch).
- H3, one classifier for both streams. One linear layer, with label smoothing 0.1 and temperature 0.2, classifies the
  nodes of a graph and the embeddings. Controls: the embeddings twice, with dropout; the embeddings once. All have the
  weight of one linear classifier.
- H4, at the trunk's features. Coins and λ = 0.5 pull the hardest candidates at the backbone's features (1,280
  channels), which the head then embeds by the statistics of the real batch. Control: the same λ at the embeddings. A
  learned λ would cost more than the backbone; it is tried only if a coin beats its control.
- H5, hardness by rank. Negatives are pulled to the 90th percentile of their anchor's real negatives; λ only chooses
  the channels. The node classification is kept out of the embeddings. Controls: all channels alike, coins.
- H6, synthetic classes. `h6_coin` is `crossed_81`, but crossed features leave the running statistics of the head's
  BatchNorm alone, which scalars and dropped channels would shift. Controls differ from it in one thing. With Proxy
  Anchor a new class needs a proxy, made of the proxies of both classes.
- H7, a graph over classes. The probability of each coin is learned by a graph over the 27 class means, so that a
  synthetic class can be told from all others (with the network's loss), or cannot (against it). Control: `h6_coin`.
  After three seeds, in which both objectives gained, a second control was added: the graph as it was initialized.
"""

from collections.abc import Callable
from typing import Any

from comparison.ablations import DetachedClassificationGenerator
from comparison.class_memory import PrototypeGenerator
from comparison.contenders import Contender, control
from comparison.pictures import PUBLISHED
from comparison.ranked_pull import RankedPull
from comparison.soft_labels import ClassifiedSoftly, SoftlyLabelled
from pml_gca import GlobalCorrelationGenerator
from pml_gca.generators import BaseGenerator, ClassifiedGenerator, ConstantGenerator, RandomGenerator

LEARNED: dict[str, Any] = {**PUBLISHED, "alpha": 0.0, "beta": 1e6}
GIVEN: dict[str, Any] = {**PUBLISHED, "alpha": 0.0}


class SoftGraph(SoftlyLabelled, GlobalCorrelationGenerator):
    """GCA-HNG with soft labels."""


class SoftRatioGraph(SoftGraph):
    """GCA-HNG with soft labels that tell where a negative lies."""

    by_ratio = True


class SoftDetachedGraph(SoftlyLabelled, DetachedClassificationGenerator):
    """GCA-HNG with soft labels, its node classification kept out of the embeddings."""


class SoftConstant(SoftlyLabelled, ConstantGenerator):
    """Constant λ with soft labels."""


class SoftCoin(SoftlyLabelled, RandomGenerator):
    """λ by coin with soft labels."""


class RankedGraph(RankedPull, DetachedClassificationGenerator):
    """GCA-HNG that pulls by rank, its node classification kept out of the embeddings."""


class RankedConstant(RankedPull, ConstantGenerator):
    """All channels are pulled alike, by rank."""


class RankedCoin(RankedPull, RandomGenerator):
    """A random half of the channels is pulled, by rank."""


def with_graph(kind: Callable[..., BaseGenerator]) -> Callable[..., BaseGenerator]:
    """Return a function that makes a generator with the node classification of a graph beside it."""

    def make(num_classes: int, size: int, *, num_layers: int, num_heads: int, **options: Any) -> BaseGenerator:
        inside = kind(num_classes, size, **options)
        return ClassifiedGenerator(inside, num_layers=num_layers, num_heads=num_heads)

    return make


def with_classifier(kind: Callable[..., BaseGenerator]) -> Callable[..., BaseGenerator]:
    """Return a function that makes a generator with a linear classifier that learns from its negatives, too."""
    return lambda num_classes, size, **options: ClassifiedSoftly(kind(num_classes, size, **options))


def graph(title: str, make: Callable[..., BaseGenerator], **settings: Any) -> Contender:
    """Return a row with the published graph, at its learning rate."""
    return Contender(title, make, settings=settings, tuned_as="gca_published")


def plain(title: str, make: Callable[..., BaseGenerator] | None = None, **settings: Any) -> Contender:
    """Return a row at the learning rate of the loss alone."""
    return Contender(title, make, settings=settings, tuned_as="none")


def crossed(title: str, **settings: Any) -> Contender:
    """Return the loss with 81 synthetic classes that differ from `h6_coin` in one thing."""
    return plain(f"81 synthetic classes, {title}", crossed=3, head_counts="real", **settings)


SOFT_LABELS = {
    "h1_learned": graph("soft labels, learned λ", SoftGraph, **LEARNED),
    "h1_ratio": graph("soft labels by distance, learned λ", SoftRatioGraph, **LEARNED),
    "h1_constant": graph("soft labels, λ = 0.5", with_graph(SoftConstant), coefficient=0.5, **GIVEN),
    "h1_coin": graph("soft labels, λ by coin", with_graph(SoftCoin), probability=0.5, **GIVEN),
    "h1_hard": graph("hard labels, learned λ", GlobalCorrelationGenerator, **LEARNED),
    "h1_classified_learned": plain(
        "linear classifier, soft labels, learned λ", with_classifier(SoftDetachedGraph), **LEARNED
    ),
    "h1_classified_constant": plain(
        "linear classifier, soft labels, λ = 0.5", with_classifier(SoftConstant), alpha=0.0, coefficient=0.5
    ),
    "h1_classified_coin": plain(
        "linear classifier, soft labels, λ by coin", with_classifier(SoftCoin), alpha=0.0, probability=0.5
    ),
    "h1_classified_hard": plain(
        "linear classifier, hard labels, learned λ", with_classifier(DetachedClassificationGenerator), **LEARNED
    ),
}

BEYOND_THE_BATCH = {
    "h2_nearest_classes": plain("the loss alone, classes meet in groups of 3 nearest", group=3),
    "h2_hardest_prototype": plain("the hardest prototype of all classes", PrototypeGenerator, count=1),
    "h2_random_prototype": plain("a random prototype", PrototypeGenerator, count=1, hardest=False),
    "h2_hardest_prototypes": plain("the 26 hardest prototypes of all classes", PrototypeGenerator, count=26),
    "h2_random_prototypes": plain("26 random prototypes", PrototypeGenerator, count=26, hardest=False),
}

STREAMS: dict[str, Any] = {"label_smoothing": 0.1, "temperature": 0.2, "generator_lr": PUBLISHED["generator_lr"]}
BOTH_STREAMS = {
    "h3_shared": plain("one classifier of graph nodes and embeddings", streams="graph", **STREAMS),
    "h3_twice": plain("one classifier of the embeddings twice, dropout", streams="dropout", **STREAMS),
    "h3_alone": plain("one classifier of the embeddings", streams="alone", **STREAMS),
}

HARDEST: dict[str, Any] = {"alpha": 0.0, "merging": "hardest"}
AT_FEATURES = {
    "h4_coin": plain("λ by coin at the features, hardest candidates", at_features="coin"),
    "h4_constant": plain("λ = 0.5 at the features, hardest candidates", at_features="constant"),
    "h4_coin_embeddings": plain("λ by coin at the embeddings, hardest candidates", control, **HARDEST),
    "h4_constant_embeddings": plain(
        "λ = 0.5 at the embeddings, hardest candidates", control, coefficient=0.5, **HARDEST
    ),
}

BY_RANK = {
    "h5_learned": plain("pulled by rank, learned λ", RankedGraph, **LEARNED),
    "h5_isotropic": plain("pulled by rank, all channels alike", RankedConstant),
    "h5_coin": plain("pulled by rank, λ by coin", RankedCoin),
}

CROSSED = {
    "h6_coin": crossed("a coin per channel"),
    "h6_scalar": crossed("a scalar of Beta(0.4, 0.4)", mask="scalar"),
    "h6_own_coin": crossed("a coin per channel and sample", mask="own_coin"),
    "h6_embeddings": crossed("at the embeddings", place="embeddings"),
    "h6_dropped": crossed("replaced by real ones without half of their channels", mask="dropped"),
    "h6_half": crossed("weight 0.5", crossed_weight=0.5),
    "h6_double": crossed("weight 2", crossed_weight=2.0),
    "h6_averaged_proxies": crossed("averaged proxies", proxies="averaged"),
    "h6_crossed_proxies": crossed("at the embeddings, crossed proxies", place="embeddings", proxies="crossed"),
    "h6_embedded_averages": crossed("at the embeddings, averaged proxies", place="embeddings", proxies="averaged"),
}

GRAPH_OF_CLASSES = {
    "h7_told": crossed("a graph's coins, to be told from others", mask="told", generator_lr=1.5e-4),
    "h7_adversarial": crossed("a graph's coins, against the loss", mask="adversarial", generator_lr=1.5e-4),
    "h7_untrained": crossed("an untrained graph's coins", mask="told", generator_lr=0.0),
}

IDEAS = {
    **SOFT_LABELS,
    **BEYOND_THE_BATCH,
    **BOTH_STREAMS,
    **AT_FEATURES,
    **BY_RANK,
    **CROSSED,
    **GRAPH_OF_CLASSES,
}

NEED_PROXIES = {
    *(name for name in SOFT_LABELS if not name.startswith("h1_classified")),
    *(name for name, row in CROSSED.items() if "proxies" in row.settings),
}
"""Rows that differ from others with proxies alone."""

TO_CONTROLS = (
    *((f"h1_{control}", "h1_learned") for control in ("constant", "coin", "hard")),
    *((f"h1_{control}", "h1_ratio") for control in ("constant", "coin", "hard")),
    *((f"h1_classified_{control}", "h1_classified_learned") for control in ("constant", "coin", "hard")),
    ("none", "h2_nearest_classes"),
    ("h2_random_prototype", "h2_hardest_prototype"),
    ("h2_random_prototypes", "h2_hardest_prototypes"),
    ("hardest", "h2_hardest_prototypes"),
    ("h3_twice", "h3_shared"),
    ("h3_alone", "h3_shared"),
    ("h4_coin_embeddings", "h4_coin"),
    ("h4_constant_embeddings", "h4_constant"),
    ("h5_isotropic", "h5_learned"),
    ("h5_coin", "h5_learned"),
    ("crossed_81", "h6_coin"),
    *((f"h6_{control}", "h6_coin") for control in ("scalar", "own_coin", "embeddings", "dropped", "half", "double")),
    ("h6_coin", "h7_told"),
    ("h6_coin", "h7_adversarial"),
    ("h7_untrained", "h7_told"),
    ("h7_untrained", "h7_adversarial"),
)
"""From each control to its idea."""
