"""Contenders with a pretrained backbone: PML's own means, the published generator, and its parts.

Decided before the first run, on 64-pixel emoji, 128 channels, 27 classes x 3 samples, 600 iterations:

- Every row has three trials on validation classes, one for each learning rate of the head. They were meant to take 300
  iterations at 0.5, 1 and 2e-3. After a first set, of which many chose the largest rate, they take 200 iterations at
  1, 2 and 4e-3. No test class had been looked at. The row of GCA-HNG tunes nothing else: its other settings are the
  paper's for CUB (2 layers, 4 heads, generator at 1.5e-4).
- The losses are N-pairs, multi-similarity and Proxy Anchor. Synthetic classes are dropped if, with two of
  them, they gain less than 1 point of Recall@1 and less than 0.5 points of MAP@R over the loss alone.
- Classification through the graph is taken apart with multi-similarity: its weight, messages within a class, and
  gradients through other nodes. The head's learning rate is 1e-3; that of the loss alone was meant, which has 2e-3 by
  now. A variant replaces the published form if it is above the linear classifier of equal weight, clear of zero. If
  none is, no graph is recommended for strong losses.
- GCA-HNG may also keep its node classification out of the embeddings, alone, beside a linear classifier, or beside the
  variant above. It is a named form only if, with two losses, it is above the loss with a linear classifier, clear of
  zero.
- Decided after two seeds of the other rows, before the first run of these: the hardest real negatives, or synthetic
  classes, beside BatchNorm and a linear classifier, at its learning rate. They are recommended only if, with two
  losses, they are above BatchNorm and a linear classifier alone, clear of zero.
- Decided after one of five runs of multi-similarity with BatchNorm and a linear classifier ended at 0.8%, at the
  largest learning rate, which its trials had chosen: the same at the learning rate of the loss alone, five seeds. If
  none of them ends 5 points or more below the loss alone, that rate is advised. The row at the chosen rate stays.
- Decided after two of two runs of multi-similarity with synthetic classes beside BatchNorm and a linear classifier, at
  that same rate, ended at 0.2%: the same at the learning rate of the loss alone, three seeds. The rule for synthetic
  classes beside a classifier holds for them, against the classifier at the learning rate of the loss alone.
- NT-Xent and SupCon, at temperature 0.1, have their own trials: they are losses that a user has for nothing.
- Decided before the first runs of 2,400 iterations, four times as many, at the same learning rates: the loss alone has
  stopped gaining where 2,400 end less than 1 point above 1,200. A row's gain lasts if it is above 0 there with every
  seed, over the loss alone of the same length. If a recommended gain does not last, the page says so.
- Decided after two of three runs of 2,400 iterations of multi-similarity alone had collapsed, and one of N-pairs alone
  had fallen: both again at 10⁻³, the smallest rate that was tried, three seeds. The better of the two rows is what the
  loss alone reaches at that length.
- Decided before the first run of the hardest real negatives beside BatchNorm and a linear classifier with NT-Xent and
  SupCon: they count among the two losses that the rule above asks for, with at least three seeds.
- A generator is recommended here only if its gain is clear of zero with two of the three losses. The gain is over the
  loss alone or the loss with a linear classifier, whichever is better.
"""

from typing import Any

from comparison.ablations import DetachedClassificationGenerator
from comparison.contenders import CONTENDERS, Contender, classified
from pml_gca import GlobalCorrelationGenerator

PUBLISHED = {"num_layers": 2, "num_heads": 4, "generator_lr": 1.5e-4}
HARDEST = {"coefficient": 1.0, "alpha": 0.0, "merging": "hardest"}


def beside(title: str, kind: str, weight: float = 1.0) -> Contender:
    """Return the loss with a classifier beside it, at a learning rate that is not tuned."""
    settings = {"lr": 1e-3, "classifier": kind, "classifier_weight": weight, "generator_lr": 1.5e-4}
    return Contender(f"the loss, {title}, weight {weight:g}", None, settings=settings, tuned_as="none")


def had_already(title: str, **settings: Any) -> Contender:
    """Return the loss with something of PML beside it, at the learning rate of the loss alone."""
    return Contender(f"the loss alone, {title}", None, settings=settings, tuned_as="none")


def same_graph(title: str, **settings: Any) -> Contender:
    """Return the published graph and settings with a given λ."""
    return Contender(title, classified, settings={**PUBLISHED, **settings}, tuned_as="gca_published")


def detached(title: str, **settings: Any) -> Contender:
    """Return GCA-HNG with the published settings, whose own node classification does not train the embeddings."""
    return Contender(
        f"GCA-HNG, {title}",
        DetachedClassificationGenerator,
        settings={**PUBLISHED, **settings},
        tuned_as="gca_published",
    )


PICTURES = {
    "none": CONTENDERS["none"],
    "none_double": CONTENDERS["none_double"],
    "none_slow": had_already("smallest learning rate", lr=1e-3),
    "classifier": CONTENDERS["classifier"],
    "norm_classifier": CONTENDERS["norm_classifier"],
    "norm_classifier_own_rate": had_already(
        "BatchNorm and a linear classifier beside it, learning rate of the loss alone", classifier="norm_linear"
    ),
    "miner": had_already("MultiSimilarityMiner", miner="MultiSimilarityMiner"),
    "hard_miner": had_already("BatchHardMiner", miner="BatchHardMiner"),
    "memory": had_already("CrossBatchMemory of 1,620", memory=1620),
    "gca_published": Contender("GCA-HNG as published", GlobalCorrelationGenerator, settings=PUBLISHED),
    "gca_no_synthesis": Contender(
        "GCA-HNG as published, without J_syn",
        GlobalCorrelationGenerator,
        settings={**PUBLISHED, "beta": 0.0},
        tuned_as="gca_published",
    ),
    "gca_detached": detached("node classification kept out of the embeddings"),
    "gca_detached_classifier": detached(
        "node classification kept out of the embeddings, a linear classifier beside it", classifier="linear"
    ),
    "gca_own_gradient": detached(
        "node classification kept out of the embeddings, `own_gradient_graph` beside it",
        classifier="own_gradient_graph",
    ),
    "hardest": CONTENDERS["hardest"],
    "norm_hardest": CONTENDERS["norm_hardest"],
    "hardest_classified": Contender(
        "hardest real negatives, linear classification (`ClassifiedGenerator`)",
        classified,
        settings={**PUBLISHED, **HARDEST, "num_layers": 0},
    ),
    "hardest_graph": Contender(
        "hardest real negatives, node classification through the graph of 2 layers",
        classified,
        settings={**PUBLISHED, **HARDEST},
    ),
    "published_real": same_graph("λ = 1 with the published graph, real negatives", coefficient=1.0, alpha=0.0),
    "published_constant": same_graph("λ = 0.5 with the published graph", coefficient=0.5),
    "published_random": same_graph("λ by coin with the published graph", probability=0.5),
    "symmetrical_synthesis": CONTENDERS["symmetrical_synthesis"],
    "crossed_27": Contender("the loss alone, 27 synthetic classes", None, settings={"crossed": 1}),
    "crossed_81": CONTENDERS["crossed_81"],
    "norm_crossed_81": CONTENDERS["norm_crossed_81"],
    "norm_crossed_81_own_rate": had_already(
        "81 synthetic classes, BatchNorm and a linear classifier, learning rate of the loss alone",
        crossed=3,
        classifier="norm_linear",
    ),
}

WEIGHTS = (1.0, 0.3, 0.1, 0.03)
TAKEN_APART = {
    **{f"linear_{weight:g}": beside("linear classifier", "linear", weight) for weight in WEIGHTS},
    **{f"graph_{weight:g}": beside("graph classifier", "graph", weight) for weight in WEIGHTS},
    "no_graph": beside("graph classifier without a graph", "no_graph"),
    "masked_graph": beside("graph classifier without messages within a class", "masked_graph"),
    "own_gradient_graph": beside("graph classifier, gradient through the node itself alone", "own_gradient_graph"),
}
