"""The report of compare_generators.py: all tables of the losses and contenders asked for."""

import argparse

from comparison.contenders import ABLATIONS
from comparison.ideas import TO_CONTROLS
from comparison.markdown import ablation_table, chosen_table, control_table, loss_table, screen_table, step_table
from comparison.plan import best_options, one_of_each, seeds, trials, tried
from comparison.registry import ALL, TITLES
from comparison.steps import CONTROLS, LEARNED, STEPS
from comparison.timing import ratios, read_times


def report(args: argparse.Namespace) -> str:
    """Return all tables as Markdown; empty without results."""
    parts = []
    for loss in args.losses:
        chosen, results, made_with = {}, {}, set[str]()
        for name in args.generators:
            best = best_options(args, loss, name)
            if best is None:
                continue
            tested = seeds(args, loss, name, best[0])
            found = {cell.number: args.out.read(cell) for cell in tested}
            done = {seed: result for seed, result in found.items() if result is not None}
            if done:
                results[name] = done
            elif args.trials_from is not args.out:
                continue  # trials of another study, and no run in this one
            made_with |= args.trials_from.machines(trials(args, loss, name)) | args.out.machines(tested)
            if ALL[name].tuned_as is None:
                chosen[name] = (*best, tried(args, loss, name))
        if chosen or results:
            times = ratios(read_times(one_of_each(args, loss), args.trials_from))
            whole = {name: done for name, done in results.items() if name not in ABLATIONS}
            parts += [f"## {loss}", loss_table(whole, TITLES, times)]
            parts += [control_table(results, TITLES, LEARNED, CONTROLS), step_table(results, TITLES, STEPS)]
            parts += [ablation_table(results, TITLES, "gca", list(ABLATIONS), times)]
            if chosen:
                parts += ["Chosen on validation classes:", chosen_table(chosen, TITLES)]
            parts += [f"Trained with {' and '.join(sorted(made_with))}."]
    return "\n\n".join(part for part in parts if part)


def screen_report(args: argparse.Namespace) -> str:
    """Return the tables of the screened seeds, of validation classes, as Markdown; empty without results."""
    parts = []
    for loss in args.losses:
        results: dict[str, dict[int, float]] = {}
        for name in args.generators:
            if best := best_options(args, loss, name):
                found = {cell.number: args.out.read(cell) for cell in seeds(args, loss, name, best[0], "screen")}
                recalls = {number: result["val_recall_at_1"] for number, result in found.items() if result}
                results |= {name: recalls} if recalls else {}
        if results:
            parts += [f"## {loss}, validation classes", screen_table(results, TITLES)]
            as_runs = {
                name: {number: {"metrics": {"recall_at_1": recall}} for number, recall in recalls.items()}
                for name, recalls in results.items()
            }
            parts += [step_table(as_runs, TITLES, TO_CONTROLS)]
    return "\n\n".join(part for part in parts if part)
