"""The paper's experiments: a recipe, a data set and a loss go in, a trained and evaluated model comes out.

Nothing else in the package imports this folder.
"""

from .backbones import build_backbone, build_head, input_config
from .checkpoints import load_published_checkpoint, load_published_generator, published_state_dict
from .dry_run import DryRun, dry_run
from .evaluation import evaluate, metric_names
from .experiment import Experiment, identity
from .m_per_class_covering_sampler import MPerClassCoveringSampler
from .options import Options
from .published_n_pairs_loss import PublishedNPairsLoss
from .recipe import Recipe, changed_recipe
from .recipes import RECIPES, experiment_title, find_recipe
from .report import seeds_table
from .training_setup import TrainingSetup, build_training_setup, unused_settings

__all__ = [
    "RECIPES",
    "DryRun",
    "Experiment",
    "MPerClassCoveringSampler",
    "Options",
    "PublishedNPairsLoss",
    "Recipe",
    "TrainingSetup",
    "build_backbone",
    "build_head",
    "build_training_setup",
    "changed_recipe",
    "dry_run",
    "evaluate",
    "experiment_title",
    "find_recipe",
    "identity",
    "input_config",
    "load_published_checkpoint",
    "load_published_generator",
    "metric_names",
    "published_state_dict",
    "seeds_table",
    "unused_settings",
]
