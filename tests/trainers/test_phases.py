"""The two steps of an iteration: their terms, records, warnings, autocast and errors."""

import warnings

import pytest
import torch
from helpers.scheduled_training import EPOCHS, ITERATIONS, LABELS, make_models, train
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import SequentialSampler, TensorDataset

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators.base_generator import BaseGenerator, SyntheticNegatives
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer


def test_loss_inside_a_wrapper_gets_epochs_and_both_steps():
    class Wrapper(nn.Module):  # as PML's DistributedLossWrapper
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def forward(self, *args):
            return self.loss(*args)

    models, generator, images = make_models()
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, level_momentum=None)
    data = TensorDataset(images, torch.tensor(LABELS))
    AlternatingTrainer(
        models=models,
        optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameter_groups(lr=1e-3))},
        loss_funcs={"metric_loss": Wrapper(loss)},
        dataset=data,
        batch_size=len(LABELS),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    ).train()
    assert torch.isfinite(loss.metric_level)
    assert torch.isfinite(loss.generator_level)


def test_records_of_both_steps():
    models, generator, images = make_models()
    seen = []

    def look(trainer):
        loss = trainer.loss_funcs["metric_loss"]
        seen.append((loss.metric_loss, loss.generator_loss, loss.generator, trainer.losses["total_loss"].item()))

    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, level_momentum=None, collect_stats=True)
    data = TensorDataset(images, torch.tensor(LABELS))
    AlternatingTrainer(
        models=models,
        optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameter_groups(lr=1e-3))},
        loss_funcs={"metric_loss": loss},
        dataset=data,
        sampler=SequentialSampler(data),
        batch_size=len(LABELS),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=look,
    ).train()
    ((metric, of_generator, generator, total),) = seen
    assert metric > 0
    parts = (
        generator.node_classification_loss,
        generator.generation_loss,
        10 * generator.auxiliary_classification_loss,
    )
    assert min(parts) > 0
    assert of_generator == pytest.approx(sum(parts))
    assert total == pytest.approx(metric + of_generator)  # the weight of the synthetic loss is still 0


def test_phase_ends_with_its_context_even_after_an_error():
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator(4, 8))
    z, y = torch.randn(6, 8, requires_grad=True), torch.arange(6) % 3
    with loss.phase("generation"), pytest.raises(ValueError, match="finite"):
        loss(z * torch.nan, y)
    assert torch.autograd.grad(loss(z, y), z)[0].any()
    with pytest.raises(ValueError, match="one of all, embedding, generation, got 'both'"), loss.phase("both"):
        pass


class NamedTerms(BaseGenerator):
    """Real negatives, and terms of its own beside `generation_loss`."""

    TERMS = ("reconstruction_loss", "generation_loss", "generation_loss_of_mine", "Consistency")
    has_objective = True

    def __init__(self):
        super().__init__(4, 8)
        self.weights = nn.Parameter(torch.tensor([1.0, 10.0, 100.0, 1000.0]))

    def generate(self, batch, metric_level):
        anchors, negatives = (batch.anchor_labels[:, None] != batch.labels).nonzero(as_tuple=True)
        terms = dict(zip(self.TERMS, self.weights.unbind(), strict=False))
        return SyntheticNegatives(batch.embeddings[negatives], batch.labels[negatives], anchors, terms)


@pytest.mark.parametrize(
    ("phase", "value", "trained"),
    [("all", 1111, [1, 1, 1, 1]), ("embedding", 1101, [1, 0, 1, 1]), ("generation", 10, [0, 1, 0, 0])],
)
def test_only_generation_loss_belongs_to_the_second_step(phase, value, trained):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), NamedTerms(), collect_stats=True)
    with loss.phase(phase):
        loss(torch.randn(6, 8, requires_grad=True), torch.arange(6) % 3).backward()
    assert loss.generator_loss == value
    assert loss.generator.weights.grad.tolist() == trained
    assert loss.generator(torch.randn(6, 8), torch.arange(6) % 3).objectives.keys() == set(NamedTerms.TERMS)


class WithoutItsLoss(NamedTerms):
    TERMS = NamedTerms.TERMS[:1]


class CountsFully(WithoutItsLoss):
    has_objective = False


@pytest.mark.parametrize("trainer_class", [AlternatingTrainer, AutocastTrainer])
@pytest.mark.parametrize("generator_class", [NamedTerms, WithoutItsLoss, CountsFully])
def test_missing_generation_loss_warns_once(trainer_class, generator_class):
    models, *_, images = make_models()
    generator = generator_class().double()
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, collect_stats=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_class(
            models=models,
            optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameters())},
            loss_funcs={"metric_loss": loss},
            dataset=TensorDataset(images, torch.tensor(LABELS)),
            batch_size=len(LABELS),
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
        ).train(num_epochs=3)
    told = [str(w.message)[:70] for w in caught if "objective" in str(w.message)]
    is_silent = generator_class is not WithoutItsLoss
    assert told == ([] if is_silent else ["WithoutItsLoss.has_objective is True, but it returns no objective 'gen"])
    assert (loss.synthetic_weight > 0) == is_silent


@pytest.mark.parametrize("y", [[0, 0, 0, 0], [0, 1, 2, 3], [1], []])
def test_degenerate_batches_in_both_phases(y):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator(4, 8))
    for phase, requires_grad in (("embedding", True), ("generation", False)):
        with loss.phase(phase):
            total = loss(torch.randn(len(y), 8, requires_grad=requires_grad), torch.tensor(y, dtype=torch.long))
        total.backward()
        assert torch.isfinite(total)


def test_autocast_covers_forward_passes():
    models, generator, images = make_models()
    models, generator = nn.ModuleDict(models).float(), generator.float()
    dtypes = []
    models["embedder"].register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    of_graph = []
    generator.propagation.node_classifier.register_forward_hook(lambda *args: of_graph.append(args[-1].dtype))
    train(AlternatingTrainer, dict(models), generator, images.float(), autocast_dtype=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
    assert of_graph == [torch.bfloat16] * (2 * EPOCHS * ITERATIONS)
    assert all(torch.isfinite(p).all() for p in [*models.parameters(), *generator.parameters()])


def test_bad_input():
    models, generator, images = make_models()
    with pytest.raises(ValueError, match=r"autocast_dtype must be torch.bfloat16 or None, got torch.float16"):
        train(AlternatingTrainer, models, generator, images, autocast_dtype=torch.float16)
    data = TensorDataset(images, torch.tensor(LABELS))
    common = {"models": models, "batch_size": 7, "dataset": data, "optimizers": {}}
    with pytest.raises(TypeError, match=r"must be a HardNegativeGenerationLoss.*got ContrastiveLoss"):
        AlternatingTrainer(**common, loss_funcs={"metric_loss": losses.ContrastiveLoss()})
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator)
    for held in (loss, losses.MultipleLosses([losses.ContrastiveLoss(), loss])):
        with pytest.raises(ValueError, match=r"must hold 'metric_loss_optimizer'.*found none"):
            AlternatingTrainer(**common, loss_funcs={"metric_loss": held})
