"""Train a retrieval model with PML's TrainWithClassifier, with and without GCA-HNG, and compare on unseen classes."""

import argparse
import json
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import samplers, testers, trainers
from pytorch_metric_learning.utils import logging_presets
from torch import Tensor, nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss, visualize
from pml_gca.datasets import ClassFolder, Glyphs, check_queries, small_classes
from pml_gca.losses import NAMED_LOSSES
from pml_gca.utils import RecallCalculator, runs

METRICS = {
    "recall_at_1": "Recall@1",
    "recall_at_2": "@2",
    "recall_at_4": "@4",
    "recall_at_8": "@8",
    "mean_average_precision_at_r": "MAP@R",
    "r_precision": "R-precision",
}
SAMPLES_PER_CLASS = 3
QUERIES_SHOWN, NEIGHBOURS_SHOWN = 8, 4
NUM_HEADS = 2  # of the generator's attention
KINDS = {"none": "{}", "gca": "{} + GCA-HNG", "hardest": "{} + hardest real negatives, classified"}
SEVERAL = {"both": ("none", "gca"), "all": tuple(KINDS)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small convolutional network for retrieval with PML's TrainWithClassifier: once with the "
        "loss alone, once with the same loss learning from GCA-HNG's hard negatives, both from one seed. Prints a "
        "table over classes that neither has seen, and draws the learning curves and some retrievals.",
    )
    add = parser.add_argument
    add("--loss", choices=NAMED_LOSSES, default="n_pairs", help="metric loss of PML (default: %(default)s)")
    add(
        "--generator",
        choices=(*KINDS, *SEVERAL),
        default="both",
        help="the loss alone, with GCA-HNG, with the hardest real negatives and a second classifier; both: the first "
        "two, one after the other; all: the three (default: %(default)s)",
    )
    add("--data", type=Path, metavar="DIR", help="folder of class folders of images (default: characters in 16 fonts)")
    add("--epochs", type=int, default=8, help="each followed by a validation (default: %(default)s)")
    add("--iterations", type=int, default=100, help="training iterations of an epoch (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, batches and distortions (default: %(default)s)")
    add(
        "--classes-per-batch", type=int, default=27, help=f"with {SAMPLES_PER_CLASS} images each (default: %(default)s)"
    )
    add("--image-size", type=int, default=32, help="side of the images, in pixels (default: %(default)s)")
    add("--embedding-size", type=int, default=128, help="channels of an embedding (default: %(default)s)")
    add("--layers", type=int, default=1, help="propagation layers of the generator (default: %(default)s)")
    add("--lr", type=float, default=1e-3, help="learning rate of network and classifier (default: %(default)s)")
    add(
        "--generator-lr",
        type=float,
        default=1e-3,
        help="learning rate of generator, and of proxies (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="folder for results (default: runs/LOSS-seedN)")
    add("--resume", action="store_true", help="go on with the runs found in --out, to the same end")
    add("--overwrite", action="store_true", help="delete the runs found in --out")
    args = parser.parse_args(argv)
    for name in ("epochs", "iterations", "classes_per_batch", "embedding_size", "layers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.image_size < 16:
        parser.error(f"--image-size must be at least 16, which the network halves four times, got {args.image_size}")
    if args.embedding_size % NUM_HEADS:
        parser.error(f"--embedding-size must be divisible by {NUM_HEADS}, got {args.embedding_size}")
    args.out = args.out or Path("runs") / f"{args.loss}-seed{args.seed}"
    return args


def load_data(args: argparse.Namespace) -> dict[str, Any]:
    """Training, validation and test sets, whose classes have nothing in common.

    Raises:
        ValueError: they cannot be read, or no image has another of its class to find.
    """
    make = Glyphs if args.data is None else partial(ClassFolder, args.data)
    data: dict[str, Any] = {split: make(split, image_size=args.image_size) for split in ("train", "val", "test")}
    notes = [check_queries(f"the {split} set", data[split]) for split in ("val", "test")]
    small = small_classes(data["train"], SAMPLES_PER_CLASS)
    if small:
        notes.append(f"{len(small)} training classes have fewer than {SAMPLES_PER_CLASS} images, which are repeated")
    for note in filter(None, notes):
        print(note, file=sys.stderr)
    return data


def convolutional_trunk(channels: int) -> tuple[nn.Module, int]:
    """A small network for images of any size, and how many features it gives."""
    widths = [channels, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 4 * widths[-1]


class Run:
    """One training run in a folder of its own, that goes on where it was stopped."""

    def __init__(self, name: str, kind: str, args: argparse.Namespace, data: dict[str, Any]) -> None:
        self.name, self.args, self.data = name, args, data
        self.folder = args.out / kind
        self.folder.mkdir(parents=True, exist_ok=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        runs.set_seed(args.seed)
        num_classes, size = data["train"].num_classes, args.embedding_size
        trunk, features = convolutional_trunk(data["train"][0][0].shape[0])
        self.models = {
            "trunk": trunk.to(device),
            "embedder": nn.Linear(features, size).to(device),
            "classifier": nn.Linear(size, num_classes).to(device),
        }
        loss = NAMED_LOSSES[args.loss](num_classes, size).to(device)
        optimizers: dict[str, torch.optim.Optimizer] = {
            f"{name}_optimizer": torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
            for name, model in self.models.items()
        }
        if kind != "none":
            generator = (
                GlobalCorrelationGenerator(num_classes, size, num_layers=args.layers, num_heads=NUM_HEADS)
                if kind == "gca"
                else GlobalCorrelationGenerator.of_real_negatives(num_classes, size)
            )
            loss = HardNegativeGenerationLoss(loss, generator, collect_stats=True).to(device)
            groups = loss.parameter_groups(lr=args.generator_lr)
        else:
            groups = [{"params": list(loss.parameters()), "lr": args.generator_lr}]
        if groups[0]["params"]:
            optimizers["metric_loss_optimizer"] = torch.optim.AdamW(groups, weight_decay=1e-4)

        records, _, _ = logging_presets.get_record_keeper(str(self.folder / "logs"), str(self.folder / "tensorboard"))
        self.hooks = logging_presets.get_hook_container(records, primary_metric="recall_at_1")
        recalls = RecallCalculator(recall_at=(1, 2, 4, 8), include=tuple(METRICS), k="max_bin_count")
        self.tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=self.hooks.end_of_testing_hook,
            accuracy_calculator=recalls,
            batch_size=256,
            dataloader_num_workers=0,
        )
        self.batch_size = min(args.classes_per_batch, num_classes) * SAMPLES_PER_CLASS
        if kind != "none":
            print(f"{self.name}: a step of the generator, {generator.cost(self.batch_size, SAMPLES_PER_CLASS)}")
        self.trainer = trainers.TrainWithClassifier(
            models=self.models,
            optimizers=optimizers,
            batch_size=self.batch_size,
            loss_funcs={"metric_loss": loss, "classifier_loss": nn.CrossEntropyLoss()},
            dataset=data["train"],
            iterations_per_epoch=args.iterations,
            dataloader_num_workers=0,
            end_of_iteration_hook=self.hooks.end_of_iteration_hook,
            end_of_epoch_hook=self.end_of_epoch,
        )
        self.evaluate_and_save = self.hooks.end_of_epoch_hook(
            self.tester, {"val": data["val"]}, str(self.folder / "models")
        )
        self.history: dict[str, list[float]] = {"iterations": [0], "seconds": [0.0], "recall_at_1": []}

    def train(self) -> dict[str, Any]:
        """Train to the last epoch, test, and return (and keep) what the report needs."""
        result_file = self.folder / "result.json"
        if result_file.exists():
            print(f"{self.name}: finished before")
            result: dict[str, Any] = json.loads(result_file.read_text())
            return result
        first = self.load_checkpoint() + 1
        if first == 1:
            print(f"{self.name}: before training")
            self.history["recall_at_1"] = [self.test("val", 0)["recall_at_1"]]
        for epoch in range(first, self.args.epochs + 1):
            print(f"{self.name}: epoch {epoch} of {self.args.epochs}")
            # A sampler of each epoch's own, too: PML's shuffles its classes from where it left them.
            runs.set_seed(runs.seed_of_epoch(self.args.seed, epoch))
            length = self.args.iterations * self.batch_size
            self.trainer.sampler = samplers.MPerClassSampler(
                self.data["train"].labels, SAMPLES_PER_CLASS, self.batch_size, length
            )
            self.epoch_began = time.perf_counter()
            self.trainer.train(start_epoch=epoch, num_epochs=epoch)
        print(f"{self.name}: unseen classes")
        metrics = self.test("test", self.args.epochs)
        embeddings, _ = self.tester.get_all_embeddings(self.data["test"], self.models["trunk"], self.models["embedder"])
        queries = shown_queries(self.data["test"], self.args.seed)
        shown = min(NEIGHBOURS_SHOWN, len(embeddings) - 1)
        result = {
            "metrics": metrics,
            "seconds_per_iteration": self.history["seconds"][-1] / self.history["iterations"][-1],
            "history": self.history,
            "neighbours": visualize.nearest_neighbours(embeddings.cpu(), queries, shown).tolist(),
        }
        runs.write_json(result_file, result)
        return result

    def test(self, split: str, epoch: int) -> dict[str, float]:
        """PML's tester on one split; metrics by name."""
        found = self.tester.test({split: self.data[split]}, epoch, self.models["trunk"], self.models["embedder"])
        return {metric: float(found[split][f"{metric}_level0"]) for metric in METRICS}

    def end_of_epoch(self, trainer: trainers.TrainWithClassifier) -> bool | None:
        self.history["seconds"].append(self.history["seconds"][-1] + time.perf_counter() - self.epoch_began)
        self.history["iterations"].append(trainer.epoch * self.args.iterations)
        going_on: bool | None = self.evaluate_and_save(trainer)
        self.history["recall_at_1"].append(float(self.tester.all_accuracies["val"]["recall_at_1_level0"]))
        print(f"{self.name}: validation Recall@1 {100 * self.history['recall_at_1'][-1]:.1f}%")
        self.save_checkpoint(trainer.epoch)
        return going_on

    def parts(self) -> dict[str, Any]:
        """Everything with a state."""
        named = (self.trainer.models, self.trainer.optimizers, self.trainer.loss_funcs)
        return {name: part for parts in named for name, part in parts.items()}

    def save_checkpoint(self, epoch: int) -> None:
        runs.save_state(self.folder / "checkpoint.pt", self.parts(), epoch=epoch, history=self.history)

    def load_checkpoint(self) -> int:
        """Restore the last whole epoch and return its number; 0 if there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        content = runs.load_state(path, self.parts())
        self.history = content["history"]
        return int(content["epoch"])


def shown_queries(data: Any, seed: int) -> Tensor:
    """Some images of different classes, to look at what is retrieved for them."""
    source = torch.Generator().manual_seed(seed)
    classes = torch.randperm(data.num_classes, generator=source)[:QUERIES_SHOWN]
    return torch.stack([(data.labels == label).nonzero()[0, 0] for label in classes])


def prepare_folder(args: argparse.Namespace) -> None:
    """Refuse to mix runs of different settings, or to write over a run unasked."""
    ignored = ("out", "resume", "overwrite", "generator")
    settings = {name: value for name, value in vars(args).items() if name not in ignored}
    runs.claim_folder(args.out, settings, resume=args.resume, overwrite=args.overwrite, runs=tuple(KINDS))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results on unseen classes as a Markdown table, percentages but for the last column."""
    rows = {name: [*(100 * result["metrics"][m] for m in METRICS)] for name, result in results.items()}
    times = {name: result["seconds_per_iteration"] for name, result in results.items()}
    shown = {name: [*(f"{value:.2f}" for value in row), f"{times[name]:.3f}"] for name, row in rows.items()}
    alone, *others = results
    for name in others:
        change = [f"{new - old:+.2f}" for old, new in zip(rows[alone], rows[name], strict=True)]
        label = "difference" if len(others) == 1 else f"difference, {name}"
        shown[label] = [*change, f"{times[name] - times[alone]:+.3f}"]
    width = max(len(name) for name in shown)
    head = [*METRICS.values(), "s/iteration"]
    lines = [[" " * width, *head], ["-" * width, *("-" * (len(title) - 1) + ":" for title in head)]]
    lines += [
        [name.ljust(width), *(v.rjust(len(t)) for v, t in zip(row, head, strict=True))] for name, row in shown.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def retrieval_figure(test: Any, queries: Tensor, results: dict[str, dict[str, Any]]) -> Any:
    """Queries and what each model found; of the test set only the images shown are read."""
    found = torch.tensor([result["neighbours"] for result in results.values()])  # (models, Q, neighbours)
    shown, place = torch.cat([queries, found.flatten()]).unique(return_inverse=True)
    return visualize.plot_retrieval(
        torch.stack([test[i][0] for i in shown.tolist()]),
        test.labels[shown],
        place[: len(queries)],
        dict(zip(results, place[len(queries) :].view_as(found), strict=True)),
        top=found.shape[2],
        class_names=test.classes,
        title="Unseen classes: queries and their nearest images",
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        data = load_data(args)
    except (OSError, ValueError) as error:
        sys.exit(f"--data: {error}" if args.data else str(error))
    title = args.loss.replace("_", "-")
    names = {kind: name.format(title) for kind, name in KINDS.items()}
    wanted = SEVERAL.get(args.generator, (args.generator,))
    try:
        prepare_folder(args)
        results = {names[kind]: Run(names[kind], kind, args, data).train() for kind in wanted}
    except (OSError, ValueError) as error:
        sys.exit(str(error))

    test = data["test"]
    report = table(results)
    print(f"\nUnseen classes: {test.num_classes} with {len(test)} images, seed {args.seed}\n\n{report}\n")
    (args.out / "table.md").write_text(report + "\n")
    curves = {name: result["history"] for name, result in results.items()}
    title, queries = f"{data['val'].num_classes} validation classes", shown_queries(test, args.seed)
    draw = {
        args.out / "curves.png": lambda: visualize.plot_curves(curves, title=title),
        args.out / "retrieval.png": lambda: retrieval_figure(test, queries, results),
    }
    drawn = [str(path) for path in draw if visualize.try_to_save(path, draw[path])]
    print(f"Figures: {', '.join(drawn) or 'none'}")


if __name__ == "__main__":
    main()
