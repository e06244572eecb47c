"""Contenders with a pretrained backbone: what a user of PML has already, the published generator, and its parts."""

from comparison.contenders import CONTENDERS, Contender

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
    "hardest": CONTENDERS["hardest"],
    "symmetrical_synthesis": CONTENDERS["symmetrical_synthesis"],
    "crossed_27": Contender("the loss alone, 27 synthetic classes", None, settings={"crossed": 1}),
    "crossed_81": Contender("the loss alone, 81 synthetic classes", None, settings={"crossed": 3}),
}
