"""The paper's experiments: a recipe, a data set and a loss go in, a trained and evaluated model comes out."""

from .changes import changed_recipe
from .dry_run import DryRun, dry_run
from .evaluation import evaluate, metric_names
from .experiment import Experiment, identity
from .options import Options
from .parts import Parts, build_parts

__all__ = [
    "DryRun",
    "Experiment",
    "Options",
    "Parts",
    "build_parts",
    "changed_recipe",
    "dry_run",
    "evaluate",
    "identity",
    "metric_names",
]
