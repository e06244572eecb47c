"""A training run with all of PML's preset hooks."""

import sqlite3

import numpy as np
import torch
from pytorch_metric_learning import losses, samplers, testers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from torch import nn

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.utils.recall_calculator import RecallCalculator

CLASSES, PER_CLASS, WIDTH, BATCH, ITERATIONS = 4, 6, 8, 8, 3
LOSS_TABLE = "metric_loss_HardNegativeGenerationLoss"
WRAPPED = {
    "n_pairs": lambda d: losses.NPairsLoss(),
    "contrastive": lambda d: losses.ContrastiveLoss(),
    "proxy_anchor": lambda d: losses.ProxyAnchorLoss(CLASSES, d),
    # a dict: for a list, PML's table names would be refused by SQLite
    "multiple": lambda d: losses.MultipleLosses({"a": losses.ContrastiveLoss(), "b": losses.NPairsLoss()}),
}


class Run:
    """A training run with all of PML's preset hooks in a folder."""

    def __init__(self, folder, wrapped="n_pairs", *, size=8, seed=0, with_generator=True, with_miner=False, **kwargs):
        torch.manual_seed(100)
        classes = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
        images = torch.randn(CLASSES, WIDTH)[classes] + 0.5 * torch.randn(len(classes), WIDTH)
        dataset = c_f.EmbeddingDataset(images, classes)
        torch.manual_seed(seed)
        self.folder = folder
        self.loss = WRAPPED[wrapped](size)
        if with_generator:
            generator = GlobalCorrelationGenerator(CLASSES, size, num_layers=1, num_heads=2)
            self.loss = HardNegativeGenerationLoss(self.loss, generator, **kwargs)
        miners = {"tuple_miner": GlobalCorrelationMiner(self.loss.generator)} if with_miner else None
        models = {
            "trunk": nn.Sequential(nn.Linear(WIDTH, size), nn.BatchNorm1d(size)),
            "classifier": nn.Linear(size, 4),
        }
        optimizers = {f"{name}_optimizer": torch.optim.Adam(m.parameters(), lr=1e-3) for name, m in models.items()}
        schedulers = {}
        if with_generator:
            optimizer = torch.optim.AdamW(self.loss.parameter_groups(lr=1e-3))
            optimizers["metric_loss_optimizer"] = optimizer
            schedulers["metric_loss_scheduler_by_epoch"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        self.keeper, _, self.writer = logging_presets.get_record_keeper(
            str(folder / "csv"), str(folder / "tensorboard")
        )
        self.hooks = logging_presets.get_hook_container(self.keeper, primary_metric="recall_at_1", log_freq=1)
        self.tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=self.hooks.end_of_testing_hook,
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
            accuracy_calculator=RecallCalculator(
                recall_at=(1, 2), include=("recall_at_1", "recall_at_2", "r_precision")
            ),
        )
        self.models_folder = str(folder / "models")
        self.save_and_test = self.hooks.end_of_epoch_hook(self.tester, {"val": dataset}, self.models_folder)
        self.trainer = trainers.TrainWithClassifier(
            models,
            optimizers,
            BATCH,
            {"metric_loss": self.loss, "classifier_loss": nn.CrossEntropyLoss()},
            dataset,
            mining_funcs=miners,
            lr_schedulers=schedulers,
            sampler=samplers.MPerClassSampler(classes, 2, BATCH, BATCH * ITERATIONS),
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
            end_of_iteration_hook=self.hooks.end_of_iteration_hook,
            end_of_epoch_hook=self.end_epoch,
        )

    def end_epoch(self, trainer):
        if isinstance(self.loss, HardNegativeGenerationLoss):
            self.loss.end_epoch()  # does nothing unless level_momentum is None
        go_on = self.save_and_test(trainer)
        self.seed(trainer.epoch)
        return go_on

    def seed(self, epoch):
        self.trainer.sampler.labels.sort()  # PML's sampler shuffles its classes in place, epoch after epoch
        torch.manual_seed(1000 + epoch)
        np.random.seed(epoch)  # noqa: NPY002 - PML's sampler draws from it

    def train(self, epochs, start=1):
        self.seed(start - 1)
        self.trainer.train(start_epoch=start, num_epochs=epochs)
        return self

    def tables(self):
        """Return {table: {column: values}} of all records."""
        with sqlite3.connect(self.folder / "csv" / "logs.db") as db:
            names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            found = {}
            for name in names:
                cursor = db.execute(f"SELECT * FROM [{name}]")
                columns = [column[0] for column in cursor.description]
                rows = cursor.fetchall()
                found[name] = {c: [row[i] for row in rows] for i, c in enumerate(columns)}
        return found

    def state(self):
        """Return every tensor and number that a resumed run needs."""
        parts = {}
        for group in ("models", "optimizers", "lr_schedulers", "loss_funcs"):
            for name, part in getattr(self.trainer, group).items():
                parts[f"{group}.{name}"] = part.state_dict()
        return parts
