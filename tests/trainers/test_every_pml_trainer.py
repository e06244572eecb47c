"""Which of PML's trainers step the generator, and the warning for the one that does not."""

import warnings

import pytest
import torch
from pytorch_metric_learning import losses, samplers, trainers
from pytorch_metric_learning.utils.common_functions import EmbeddingDataset
from torch import nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.trainers import AutocastTrainer

CLASSES, PER_CLASS, WIDTH, D, BATCH, ITERATIONS = 5, 8, 10, 16, 12, 6
ADVERSARIAL = trainers.DeepAdversarialMetricLearning


def make_loss():
    torch.manual_seed(1)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2)
    return HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator)


class Cascaded(trainers.CascadedEmbeddings):
    """PML's trainer with a single embedding of the full size."""

    def __init__(self, *args, **kwargs):
        super().__init__([D], *args, **kwargs)


class Pairs(torch.utils.data.Dataset):
    """Two images of a class, for PML's two-stream trainer."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image, image + 0.1, label


def make_any_trainer(trainer, loss, with_optimizer=True, held_by="metric_loss"):
    """Make any of PML's trainers; `held_by` names the optimizer that has the loss's parameters."""
    torch.manual_seed(2)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    dataset = EmbeddingDataset(torch.randn(len(labels), WIDTH), labels)
    suffix, kwargs = "_0" if trainer is Cascaded else "", {}
    models = {"trunk": nn.Linear(WIDTH, D), "embedder": nn.Linear(D, D)}
    loss_funcs = {f"metric_loss{suffix}": loss}
    if issubclass(trainer, trainers.TrainWithClassifier):
        models["classifier"], loss_funcs["classifier_loss"] = nn.Linear(D, CLASSES), nn.CrossEntropyLoss()
    if issubclass(trainer, ADVERSARIAL):
        models["generator"] = nn.Linear(3 * D, D)
        loss_funcs |= {"synth_loss": losses.TripletMarginLoss(), "g_adv_loss": losses.TripletMarginLoss()}
        weights = dict.fromkeys((*loss_funcs, "g_hard_loss", "g_reg_loss"), 1)
        kwargs = {"g_triplets_per_anchor": 2, "loss_weights": weights}
    parameters = {name: list(model.parameters()) for name, model in models.items()}
    if with_optimizer:
        held_by += suffix if held_by == "metric_loss" else ""
        parameters[held_by] = [*parameters.get(held_by, []), *loss.parameters()]
    return trainer(
        models=models,
        optimizers={f"{name}_optimizer": torch.optim.AdamW(group, lr=1e-3) for name, group in parameters.items()},
        batch_size=BATCH,
        loss_funcs=loss_funcs,
        dataset=Pairs(dataset) if trainer is trainers.TwoStreamMetricLoss else dataset,
        sampler=samplers.MPerClassSampler(dataset.labels, 3, BATCH, BATCH * ITERATIONS),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        **kwargs,
    )


def moved_by(made, loss):
    """Return how many of the generator's parameters a training moves, and its warnings."""
    before = [p.clone() for p in loss.generator.parameters()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train()
    moved = sum(not torch.equal(p, q) for p, q in zip(loss.generator.parameters(), before, strict=True))
    return moved, [str(w.message) for w in caught if "does not learn" in str(w.message)]


STEPPING = (trainers.MetricLossOnly, trainers.TrainWithClassifier, Cascaded, trainers.TwoStreamMetricLoss)


@pytest.mark.parametrize("trainer", STEPPING)
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_every_other_trainer_steps_the_generator_if_given_its_optimizer(trainer, with_optimizer):
    loss = make_loss()
    moved, messages = moved_by(make_any_trainer(trainer, loss, with_optimizer), loss)
    assert moved == (len(list(loss.generator.parameters())) if with_optimizer else 0)
    assert len(messages) == (0 if with_optimizer else 1)


def test_all_pml_trainers_are_tested():
    base = trainers.BaseTrainer.step_optimizers
    found = {t for t in vars(trainers).values() if isinstance(t, type)} - {trainers.BaseTrainer, ADVERSARIAL}
    assert all(issubclass(t, tuple(found)) for t in STEPPING)
    assert len(found) == len(STEPPING)
    assert all(t.step_optimizers is base for t in STEPPING)
    assert ADVERSARIAL.step_optimizers is not base


@pytest.mark.parametrize(
    ("with_optimizer", "held_by", "learns"),
    [(True, "metric_loss", False), (False, "", False), (True, "embedder", True), (True, "classifier", True)],
)
def test_the_adversarial_trainer_steps_optimizers_of_models_alone(with_optimizer, held_by, learns):
    """README states it, and the warning says what to do."""
    loss = make_loss()
    moved, messages = moved_by(make_any_trainer(ADVERSARIAL, loss, with_optimizer, held_by), loss)
    assert moved == (len(list(loss.generator.parameters())) if learns else 0)
    assert len(messages) == (0 if learns else 1)
    assert learns or "DeepAdversarialMetricLearning steps no optimizer of a loss" in messages[0]


def test_adversarial_trainer_subclass_that_steps_does_not_warn():
    class Taught(ADVERSARIAL):
        def step_optimizers(self):
            super().step_optimizers()
            if self.iteration == ITERATIONS - 1:
                self.optimizers["metric_loss_optimizer"].step()

    loss = make_loss()
    assert moved_by(make_any_trainer(Taught, loss), loss) == (len(list(loss.generator.parameters())), [])


def step_seldom(trainer):
    if trainer.iteration % 4 == 3:
        trainer.own.step()


class SteppingSeldom(trainers.MetricLossOnly):
    def clip_gradients(self):
        super().clip_gradients()
        step_seldom(self)


@pytest.mark.parametrize(
    ("trainer", "hook", "learns"),
    [
        (trainers.MetricLossOnly, None, False),
        (trainers.TrainWithClassifier, None, False),
        (AutocastTrainer, None, False),
        (AutocastTrainer, step_seldom, True),
        (trainers.MetricLossOnly, step_seldom, True),
        (SteppingSeldom, None, True),
    ],
)
def test_optimizer_that_no_trainer_has(trainer, hook, learns):
    """It counts as missing, unless other code may step it."""
    loss = make_loss()
    made = make_any_trainer(trainer, loss, with_optimizer=False)
    made.own = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
    made.end_of_iteration_hook = hook or made.end_of_iteration_hook
    moved, messages = moved_by(made, loss)
    assert moved == (len(list(loss.generator.parameters())) if learns else 0)
    assert [text[:24] for text in messages] == ([] if learns else ["Optimizers step, but so "])


def test_incomplete_trainers_do_not_matter():
    kept = [AutocastTrainer.__new__(AutocastTrainer), make_any_trainer(trainers.MetricLossOnly, make_loss())]
    kept[1].loss_funcs["metric_loss"] = lambda *args: 0.0
    loss = make_loss()
    assert len(moved_by(make_any_trainer(trainers.MetricLossOnly, loss, with_optimizer=False), loss)[1]) == 1


def test_an_optimizer_of_a_frozen_model():
    """PML does not step the optimizer of a frozen model, whatever else it holds."""
    loss = make_loss()
    made = make_any_trainer(trainers.MetricLossOnly, loss, held_by="embedder")
    made.freeze_these = ["embedder"]
    moved, messages = moved_by(made, loss)
    assert (moved, len(messages)) == (0, 1)
