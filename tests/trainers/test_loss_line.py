"""The line with the parts of the loss below PML's progress bar."""

import re
import sys

import pytest
import torch
from pytorch_metric_learning import losses, samplers, trainers
from pytorch_metric_learning.utils.common_functions import EmbeddingDataset
from torch import nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.trainers import AlternatingTrainer, LossLine

CLASSES, SIZE, BATCH, ITERATIONS = 4, 8, 8, 3


def wrapped():
    generator = GlobalCorrelationGenerator(CLASSES, SIZE, num_layers=1, num_heads=2)
    return HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator)


def train(loss, trainer=trainers.MetricLossOnly, hook=None):
    torch.manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(4)
    trunk = nn.Linear(5, SIZE)
    optimizers = {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.01)}
    if isinstance(loss, HardNegativeGenerationLoss):
        optimizers["metric_loss_optimizer"] = torch.optim.SGD(loss.parameter_groups(lr=0.01))
    trainer(
        models={"trunk": trunk},
        optimizers=optimizers,
        batch_size=BATCH,
        loss_funcs={"metric_loss": loss},
        dataset=EmbeddingDataset(torch.randn(len(labels), 5), labels),
        sampler=samplers.MPerClassSampler(labels, 2, BATCH, BATCH * ITERATIONS),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=LossLine(hook),
    ).train(num_epochs=2)


def written(text):
    return re.findall(r"^(epoch \d: .*)$", text.replace("\r", "\n"), flags=re.MULTILINE)


@pytest.mark.parametrize("trainer", [trainers.MetricLossOnly, AlternatingTrainer])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_each_epoch_ends_with_the_parts_of_its_last_iteration(trainer, is_terminal, capsys, monkeypatch):
    seen = []

    def look(made):
        found = made.loss_funcs["metric_loss"].logs()
        seen.append(" ".join(f"{n}_loss={found[f'{n}_loss']:.4g}" for n in ("metric", "synthetic", "generator")))

    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    train(wrapped(), trainer, look)
    text = capsys.readouterr().err
    assert len(seen) == 2 * ITERATIONS
    assert written(text) == [f"epoch 1: {seen[ITERATIONS - 1]}", f"epoch 2: {seen[-1]}"]
    assert "total_loss=" in text  # PML's own bar
    assert (f"\r{seen[0]} " in text or f"\r{seen[0]}\x1b" in text or f"\r{seen[0]}\r" in text) == is_terminal


def test_without_a_generator_there_is_no_line(capsys):
    calls = []
    train(losses.ContrastiveLoss(), hook=calls.append)
    assert len(calls) == 2 * ITERATIONS
    assert not written(capsys.readouterr().err)


def test_losses_inside_others_are_shown_beside_each_other(capsys):
    train(losses.MultipleLosses({"a": wrapped(), "b": wrapped()}))
    assert [line.count("metric_loss=") for line in written(capsys.readouterr().err)] == [2, 2]


def test_the_hook_must_be_a_function():
    with pytest.raises(TypeError, match=r"^hook must be a function or None, got int"):
        LossLine(3)
