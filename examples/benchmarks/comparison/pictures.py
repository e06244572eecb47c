"""Contenders with a pretrained backbone: what a user of PML has already, the published generator, and its parts.

Decided before the first run, on 64-pixel emoji, 128 channels, 27 classes x 3 samples, 600 iterations:

- Every row has three trials of 300 iterations on validation classes, one for each learning rate of the head. The row of
  GCA-HNG tunes nothing else: its other settings are the paper's for CUB (2 layers, 4 heads, generator at 1.5e-4).
- Synthetic classes are dropped if they gain less than 1 point of Recall@1 and less than 0.5 points of MAP@R over the
  loss alone with two of N-pairs, multi-similarity and Proxy Anchor.
- A generator is recommended here only if its gain over the better of the loss alone and the loss with a linear
  classifier is clear of zero with two of the three losses.
"""

from comparison.contenders import CONTENDERS, Contender
from pml_gca import GlobalCorrelationGenerator

PUBLISHED = {"num_layers": 2, "num_heads": 4, "generator_lr": 1.5e-4}

PICTURES = {
    "none": CONTENDERS["none"],
    "none_double": CONTENDERS["none_double"],
    "classifier": Contender("the loss alone, linear classifier beside it", None, settings={"classifier": "linear"}),
    "norm_classifier": Contender(
        "the loss alone, BatchNorm and a linear classifier beside it", None, settings={"classifier": "norm_linear"}
    ),
    "miner": Contender("the loss alone, MultiSimilarityMiner", None, settings={"miner": "MultiSimilarityMiner"}),
    "hard_miner": Contender("the loss alone, BatchHardMiner", None, settings={"miner": "BatchHardMiner"}),
    "memory": Contender("the loss alone, CrossBatchMemory of 1,620", None, settings={"memory": 1620}),
    "gca_published": Contender("GCA-HNG as published", GlobalCorrelationGenerator, settings=PUBLISHED),
    "gca_no_synthesis": Contender(
        "GCA-HNG as published, without J_syn",
        GlobalCorrelationGenerator,
        settings={**PUBLISHED, "beta": 0.0},
        tuned_as="gca_published",
    ),
    "hardest": CONTENDERS["hardest"],
    "symmetrical_synthesis": CONTENDERS["symmetrical_synthesis"],
    "crossed_27": Contender("the loss alone, 27 synthetic classes", None, settings={"crossed": 1}),
    "crossed_81": Contender("the loss alone, 81 synthetic classes", None, settings={"crossed": 3}),
}
