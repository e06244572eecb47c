"""Train a small network for retrieval with PML's TrainWithClassifier, and compare generators with the loss alone."""

import argparse
import sys

from parsers import KINDS, NUM_HEADS, SAMPLES_PER_CLASS, SEVERAL, classifier_arguments

if __name__ == "__main__":
    classifier_arguments()  # shows --help and typing errors before the imports below, which take seconds

import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from pytorch_metric_learning import samplers, testers, trainers
from torch import Tensor, nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss, visualize
from pml_gca.datasets import ClassFolder, Glyphs, check_queries, small_classes
from pml_gca.generators import NAMED_GENERATORS, ClassifiedGenerator
from pml_gca.losses import NAMED_LOSSES
from pml_gca.names import LOSS_ALONE
from pml_gca.trainers import LossLine
from pml_gca.utils import RecallCalculator, TrainingRun, records, runs, tables
from pml_gca.utils.command_line import told_when_stopped
from pml_gca.utils.files import write_text
from pml_gca.utils.validation import count_of, first_of

RECALLS = {"recall_at_1": "Recall@1", "recall_at_2": "@2", "recall_at_4": "@4", "recall_at_8": "@8"}
METRICS = {**RECALLS, "mean_average_precision_at_r": "MAP@R", "r_precision": "R-precision"}
WATCH_EVERY = 5  # iterations between two entries of watch.png


def load_data(args: argparse.Namespace) -> dict[str, Any]:
    """Return training, validation and test sets, which share no class. Raise ValueError if they cannot be used."""
    make = Glyphs if args.data is None else partial(ClassFolder, args.data, unreadable=args.unreadable)
    data: dict[str, Any] = {split: make(split, image_size=args.image_size) for split in ("train", "val", "test")}
    notes = [*getattr(data["train"], "notes", ())]
    notes += [note for split in ("val", "test") if (note := check_queries(f"the {split} set", data[split]))]
    if small := small_classes(data["train"], SAMPLES_PER_CLASS):
        few = first_of([f"{name} has {count}" for name, count in small])
        which = count_of(len(small), "training class has", "training classes have")
        notes.append(f"{which} fewer than {SAMPLES_PER_CLASS} images, which are repeated: {few}")
    for note in notes:
        print(note, file=sys.stderr)
    return data


def build_models(
    channels: int, num_classes: int, embedding_size: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> dict[str, nn.Module]:
    """Return a small network for images of any size, and a classifier, under the names of PML's trainer."""
    widths = [channels, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), norm(wide), nn.ReLU(), nn.MaxPool2d(2)]
    return {
        "trunk": nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        "embedder": nn.Linear(4 * widths[-1], embedding_size),
        "classifier": nn.Linear(embedding_size, num_classes),
    }


def build_loss(
    kind: str, args: argparse.Namespace, num_classes: int, **options: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return PML's loss, alone or wrapped with these options, and its parameter groups."""
    size = args.embedding_size
    loss = NAMED_LOSSES[args.loss](num_classes, size)
    if kind == LOSS_ALONE:
        return loss, [{"params": list(loss.parameters()), "lr": args.generator_lr}]
    layers = {"num_layers": args.layers, "num_heads": NUM_HEADS} if kind == "gca" else {}
    generator = NAMED_GENERATORS[kind](num_classes, size, **layers)
    loss = HardNegativeGenerationLoss(loss, generator, collect_stats=True, **options)
    return loss, loss.parameter_groups(lr=args.generator_lr)


def train(name: str, kind: str, args: argparse.Namespace, data: dict[str, Any], queries: Tensor) -> dict[str, Any]:
    """Train one model, or resume it. Return its learning curve, and its metrics and retrievals on unseen classes."""
    run = TrainingRun(args.out / kind, name, seed=args.seed)
    if (finished := run.read_result(args.epochs)) is not None:
        return finished
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training_set, num_classes = data["train"], data["train"].num_classes
    batch_size = min(args.classes_per_batch, num_classes) * SAMPLES_PER_CLASS

    runs.set_seed(args.seed)
    models = build_models(training_set[0][0].shape[0], num_classes, args.embedding_size)
    loss, groups = build_loss(kind, args, num_classes)
    for module in (*models.values(), loss):
        module.to(device)
    adamw = partial(torch.optim.AdamW, lr=args.lr, weight_decay=1e-4)
    optimizers = {f"{part}_optimizer": adamw(model.parameters()) for part, model in models.items()}
    if any(group["params"] for group in groups):
        optimizers["metric_loss_optimizer"] = adamw(groups)
    generator = getattr(loss, "generator", None)
    if isinstance(generator, (GlobalCorrelationGenerator, ClassifiedGenerator)):  # others cost little
        print(f"{name}: a step of the generator, {generator.cost(batch_size, SAMPLES_PER_CLASS)}")

    hooks = records.build_hooks(run.folder)  # for record-keeper and TensorBoard
    tester = testers.GlobalEmbeddingSpaceTester(
        end_of_testing_hook=hooks.end_of_testing_hook,
        accuracy_calculator=RecallCalculator(recall_at=(1, 2, 4, 8), include=tuple(METRICS), k="max_bin_count"),
        batch_size=256,
        dataloader_num_workers=0,
    )
    validate_and_save = hooks.end_of_epoch_hook(tester, {"val": data["val"]}, str(run.folder / "models"))
    watched: list[dict[str, float]] = []

    def watch(trainer: Any) -> None:
        hooks.end_of_iteration_hook(trainer)
        if isinstance(loss, HardNegativeGenerationLoss) and trainer.iteration % WATCH_EVERY == 0:
            watched.append({"iterations": trainer.get_global_iteration(), **loss.logs()})

    trainer = trainers.TrainWithClassifier(
        models=models,
        optimizers=optimizers,
        batch_size=batch_size,
        loss_funcs={"metric_loss": loss, "classifier_loss": nn.CrossEntropyLoss()},
        dataset=training_set,
        iterations_per_epoch=args.iterations,
        dataloader_num_workers=0,
        end_of_iteration_hook=LossLine(watch),
    )
    parts = {**trainer.models, **trainer.optimizers, **trainer.loss_funcs}

    def test(split: str, epoch: int) -> dict[str, float]:
        found = tester.test({split: data[split]}, epoch, models["trunk"], models["embedder"])[split]
        return {metric: float(found[f"{metric}_level0"]) for metric in METRICS}

    restored = run.restore(parts)
    history = restored.get("history")
    watched.extend(restored.get("watched", []))
    if history is None:
        print(f"{name}: before training")
        history = {"iterations": [0], "seconds": [0.0], "recall_at_1": [test("val", 0)["recall_at_1"]]}
    for epoch in run.epochs(args.epochs):
        # A new sampler for each epoch: PML's continues from its last shuffle, which a resumed run does not know.
        length = args.iterations * batch_size
        trainer.sampler = samplers.MPerClassSampler(training_set.labels, SAMPLES_PER_CLASS, batch_size, length)
        began = time.perf_counter()
        trainer.train(start_epoch=epoch, num_epochs=epoch)
        seconds = history["seconds"][-1] + time.perf_counter() - began
        validate_and_save(trainer)
        recall = float(tester.all_accuracies["val"]["recall_at_1_level0"])
        print(f"{name}: validation Recall@1 {100 * recall:.1f}%")
        for key, value in zip(history, (epoch * args.iterations, seconds, recall), strict=True):
            history[key].append(value)
        run.save(parts, history=history, watched=watched)

    print(f"{name}: unseen classes")
    result: dict[str, Any] = {"metrics": test("test", args.epochs), "history": history, "watched": watched}
    result["seconds_per_iteration"] = history["seconds"][-1] / history["iterations"][-1]
    embeddings, _ = tester.get_all_embeddings(data["test"], models["trunk"], models["embedder"])
    neighbours = visualize.nearest_neighbours(embeddings.cpu(), queries, min(4, len(embeddings) - 1))
    return run.finish({**result, "neighbours": neighbours.tolist()})


def main(argv: list[str] | None = None) -> None:
    args = classifier_arguments(argv)
    # PML's trainers print losses in a way that torch warns of.
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar", UserWarning)
    try:
        data = load_data(args)
    except (OSError, ValueError) as error:
        sys.exit(f"--data: {error}" if args.data else str(error))
    queries = visualize.choose_queries(data["test"], 8, args.seed)
    loss = args.loss.replace("_", "-")
    names = {kind: loss if kind == LOSS_ALONE else f"{loss} + {title}" for kind, title in KINDS.items()}
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "resume", "overwrite", "generator")}
    try:
        runs.claim_folder(args.out, settings, resume=args.resume, overwrite=args.overwrite, runs=tuple(KINDS))
        wanted = SEVERAL.get(args.generator, (args.generator,))
        results = {names[kind]: train(names[kind], kind, args, data, queries) for kind in wanted}
    except (OSError, ValueError) as error:
        sys.exit(str(error))

    rows = {n: [*(100 * r["metrics"][m] for m in METRICS), r["seconds_per_iteration"]] for n, r in results.items()}
    table = tables.comparison_table([*METRICS.values(), "s/iteration"], rows, [*(2 for _ in METRICS), 3])
    print(
        f"\nUnseen classes: {data['test'].num_classes} with {len(data['test'])} images, seed {args.seed}\n\n{table}\n"
    )
    try:
        write_text(args.out / "table.md", table + "\n")
    except OSError as error:
        sys.exit(str(error))
    curves = {name: result["history"] for name, result in results.items()}
    found = {name: torch.tensor(result["neighbours"]) for name, result in results.items()}
    shown = count_of(data["val"].num_classes, "validation class", "validation classes")
    titles = shown, "Unseen classes: queries and their nearest images"
    draw: dict[str, Callable[[], Any]] = {
        "curves.png": lambda: visualize.plot_curves(curves, title=titles[0]),
        "retrieval.png": lambda: visualize.plot_dataset_retrieval(data["test"], queries, found, title=titles[1]),
    }
    for kind, name in names.items():
        if logs := results.get(name, {}).get("watched"):
            draw[f"{kind}/watch.png"] = partial(visualize.plot_logs, logs, title=name)
    drawn = [str(args.out / file) for file in draw if visualize.try_to_save(args.out / file, draw[file])]
    print(f"Figures: {', '.join(drawn) or 'none'}")


if __name__ == "__main__":
    with told_when_stopped("finished epochs are kept: the same command with --resume goes on"):
        main()
