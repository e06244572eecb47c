"""The paper's experiments: a recipe, a data set and a loss go in, a trained and evaluated model comes out."""

from .changes import changed_recipe
from .checkpoints import load_published_checkpoint, load_published_generator
from .dry_run import DryRun, dry_run
from .evaluation import evaluate, metric_names
from .experiment import Experiment, identity
from .m_per_class_covering_sampler import MPerClassCoveringSampler
from .options import Options
from .parts import Parts, build_parts
from .published_n_pairs_loss import PublishedNPairsLoss

__all__ = [
    "DryRun",
    "Experiment",
    "MPerClassCoveringSampler",
    "Options",
    "Parts",
    "PublishedNPairsLoss",
    "build_parts",
    "changed_recipe",
    "dry_run",
    "evaluate",
    "identity",
    "load_published_checkpoint",
    "load_published_generator",
    "metric_names",
]
