"""Tables of results over seeds, beside the paper's numbers."""

import statistics
from collections.abc import Mapping
from typing import Any

from ..datasets import Benchmark
from ..utils.tables import metrics_table
from ..utils.validation import count_of
from .evaluation import metric_names
from .options import Options
from .recipe import Recipe
from .recipes import PUBLISHED_RECALL_AT_1, changes_from_paper, experiment_title

CHOSEN = {
    "val": "The epoch was chosen on held-out training classes.",
    "test": "The epoch was chosen on the test classes themselves, as in the published code: these numbers flatter.",
    "last": "Results of the last epoch.",
}


def percent(values: list[float]) -> str:
    """Return the mean of shares in percent, with the standard deviation if there are several."""
    scaled = [100 * value for value in values]
    spread = f" ± {statistics.stdev(scaled):.1f}" if len(scaled) > 1 else ""
    return f"{statistics.mean(scaled):.1f}{spread}"


def seeds_table(
    results: Mapping[int, Mapping[str, Any]], recipe: Recipe, options: Options, benchmark: Benchmark
) -> str:
    """Return results of `Experiment.train` in percent as Markdown, for each seed and over all."""
    metrics = metric_names(benchmark)
    rows: dict[str, dict[str, str]] = {
        f"seed {seed}, epoch {result['epoch']}": {m: percent([result["metrics"][m]]) for m in metrics}
        for seed, result in results.items()
    }
    if len(results) > 1:
        rows["mean ± standard deviation"] = {
            m: percent([result["metrics"][m] for result in results.values()]) for m in metrics
        }
    changed = {**changes_from_paper(recipe), **options.unlike_the_paper()}
    published = PUBLISHED_RECALL_AT_1.get((recipe.name, options.loss_name, options.generator))
    if published and not changed:
        rows["the paper, epoch chosen on test classes"] = {"recall_at_1": "{} ± {}".format(*published)}
    seconds = statistics.mean(result["seconds_per_iteration"] for result in results.values())
    tests = ", ".join(f"{count_of(len(part), 'image')} to {name}" for name, part in benchmark.test.items())
    held_out = f", {benchmark.val.num_classes} more held out" if benchmark.val is not None else ""
    title, train = experiment_title(recipe, benchmark), benchmark.train
    settings = "" if title == recipe.name else f" with the settings of {recipe.name}"
    lines = [
        f"{title}{settings}, {options.title}, unseen classes ({tests}), in percent.",
        f"Trained on {len(train)} images of {count_of(train.num_classes, 'class', 'classes')}{held_out}.",
        CHOSEN[options.select_on],
        f"Unlike the paper: {', '.join(f'{k}={v}' for k, v in changed.items())}." if changed else "",
    ]
    return (
        f"{' '.join(filter(None, lines))}\n\n{metrics_table(rows, metrics)}\n\n"
        f"{seconds:.3g} s per iteration, {count_of(recipe.epochs, 'epoch')}.\n"
    )
