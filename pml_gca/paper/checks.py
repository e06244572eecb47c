"""What must hold before a run starts."""

from ..datasets import Benchmark
from .evaluation import check_split
from .options import Options
from .recipes import Recipe


def check_classes(recipe: Recipe, benchmark: Benchmark, options: Options) -> None:
    """Raise if a batch cannot be filled, the epoch not be chosen as asked, or nothing be found in evaluation."""
    if benchmark.train.num_classes < recipe.classes_per_batch:
        raise ValueError(
            f"classes_per_batch is {recipe.classes_per_batch}, but there are {benchmark.train.num_classes} training "
            "classes; set fewer"
        )
    if options.select_on == "val" and benchmark.val is None:
        raise ValueError("select_on is 'val', but there are no validation classes: val_fraction is 0")
    evaluated = ["val", "test"] if options.select_on == "val" else ["test"]
    for split in evaluated:
        check_split(benchmark, split)
