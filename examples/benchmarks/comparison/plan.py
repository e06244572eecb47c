"""The cells of the comparison, and the choices of its trials."""

import argparse
import math
from typing import Any

from comparison.beside_the_loss import LOSSES
from comparison.cells import Cell, trial_options
from comparison.contenders import LEARNING_RATES
from comparison.ideas import NEED_PROXIES
from comparison.registry import ALL, WITH_BACKBONE, WITH_SMALL_NETWORK
from comparison.training import FIXED

HEAD_LEARNING_RATES = (1e-3, 2e-3, 4e-3)
"""Of the head on a pretrained backbone."""


def common_settings(args: argparse.Namespace, iterations: int, frozen_through: str | None) -> dict[str, Any]:
    """Return the settings that all cells of a stage share, unless a contender replaces one."""
    return {
        "iterations": iterations,
        "embedding_size": args.embedding_size,
        "image_size": args.image_size,
        "classes_per_batch": 27,
        "samples_per_class": 3,
        "evaluate_every": args.evaluate_every,
        "augment": args.augment,
        **args.inputs.settings(args.backbone, frozen_through),
        "schedule": "one_backward",
        **FIXED,
    }


def learning_rates(args: argparse.Namespace) -> tuple[float, ...]:
    """Return the learning rates of the network to choose from, the same for all contenders."""
    return LEARNING_RATES if args.backbone is None else HEAD_LEARNING_RATES


def misfit(loss: str, name: str) -> str | None:
    """Return why a contender cannot be trained with a loss: one of them has proxies, the other needs or lacks them.

    New classes need proxies of their own where the loss has proxies of the training classes alone.
    """
    settings, has_proxies = ALL[name].settings, bool(list(LOSSES[loss](2, 2).parameters()))
    makes_classes = "crossed" in settings and settings.get("mask") != "dropped" and "proxies" not in settings
    if makes_classes and has_proxies:
        return f"{name} makes new classes, and {loss} has proxies of the training classes alone: leave it out"
    if name in NEED_PROXIES and not has_proxies:
        return f"{name} changes how proxies learn, and {loss} has none: leave it out"
    return None


def trained_with(args: argparse.Namespace, loss: str) -> list[str]:
    """Return the contenders to train with a loss: all that were named, or those of the usual ones that fit.

    Raises:
        ValueError: one that was named cannot be trained with the loss.
    """
    reasons = {name: misfit(loss, name) for name in args.generators}
    for reason in reasons.values():
        if reason and not args.usual:
            raise ValueError(reason)
    return [name for name, reason in reasons.items() if reason is None]


def trials(args: argparse.Namespace, loss: str, name: str) -> list[Cell]:
    """Return the cells that choose hyperparameters of a contender.

    Those of another study trained the whole backbone, and may have embeddings of another size.
    """
    name = ALL[name].tuned_as or name
    own = args.trials_from is args.out
    common = {
        **common_settings(args, args.trial_iterations, args.freeze_through if own else None),
        **({} if own else args.trials_from.settings(Cell("tune", loss, name, 0, {}), "embedding_size")),
        **ALL[name].settings,
    }
    tried = trial_options(name, loss, {"lr": learning_rates(args), **ALL[name].tuned}, args.trials)
    return [Cell("tune", loss, name, i, {**common, **options}, args.inputs) for i, options in enumerate(tried)]


def best_options(args: argparse.Namespace, loss: str, name: str) -> tuple[dict[str, Any], float] | None:
    """Return the hyperparameters with the best Recall@1 on validation classes, and that; None while trials are missing.

    Raises:
        ValueError: a trial was made with other settings.
    """
    cells = trials(args, loss, name)
    remedy = "choose another --out" if args.trials_from is args.out else "choose another --trials-from"
    found = [args.trials_from.read(cell, remedy) for cell in cells]
    if any(result is None for result in found):
        return None
    recalls = [result["val_recall_at_1"] for result in found if result is not None]
    best = max(range(len(cells)), key=recalls.__getitem__)
    tuned = sorted(["lr", *ALL[ALL[name].tuned_as or name].tuned])
    return {option: cells[best].settings[option] for option in tuned}, recalls[best]


def tried(args: argparse.Namespace, loss: str, name: str) -> str:
    """Return the number of choices tried, such as "6 of 72"."""
    there_are = math.prod(len(values) for values in (learning_rates(args), *ALL[name].tuned.values()))
    return f"{len(trials(args, loss, name))} of {there_are}"


def seeds(args: argparse.Namespace, loss: str, name: str, options: dict[str, Any], stage: str = "run") -> list[Cell]:
    """Return the seeds of a contender with the chosen hyperparameters; its own settings go before them.

    Args:
        args: arguments.
        loss: name.
        name: of the contender.
        options: the chosen hyperparameters.
        stage: `"run"`, or `"screen"`, which looks at validation classes alone.
    """
    common = common_settings(args, args.iterations * ALL[name].length, args.freeze_through)
    settings = {**common, **options, **ALL[name].settings}
    count = args.screen if stage == "screen" else args.seeds
    return [Cell(stage, loss, name, seed, settings, args.inputs) for seed in range(count)]


def one_of_each(args: argparse.Namespace, loss: str) -> dict[str, Cell]:
    """Return a run of each contender whose hyperparameters are chosen, whether it was asked for or not."""
    names = WITH_SMALL_NETWORK if args.backbone is None else WITH_BACKBONE
    best = {name: best_options(args, loss, name) for name in names}
    return {name: seeds(args, loss, name, found[0])[0] for name, found in best.items() if found is not None}
