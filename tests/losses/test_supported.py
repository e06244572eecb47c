"""The advice of refusals works: every line of code in a message is run."""

import re

import pytest
import torch
from losses.test_every_pml_loss import REFUSED
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

import pml_gca
from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 12, 8
LABELS = torch.tensor([3, 7, 3, 0, 7, 0])


def generator_of():
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2)


def run(line, loss):
    """Evaluate a line of code with the names that messages use."""
    names = {
        "HardNegativeGenerationLoss": HardNegativeGenerationLoss,
        "DistributedLossWrapper": DistributedLossWrapper,
        "pml_gca": pml_gca,
        "losses": losses,
        "reducers": reducers,
        "torch": torch,
        "generator": generator_of(),
        "loss": loss,
        "embeddings": torch.randn(6, SIZE, requires_grad=True),
        "views": torch.randn(6, SIZE),
        "ref_emb": torch.randn(6, SIZE),
        "labels": LABELS,
        "ref_labels": LABELS,
    }
    return eval(line, names)


def lines_of(message):
    """Return the code in a message: calls with their brackets, and sums of calls."""
    found, start = [], 0
    pattern = re.compile(r"(?:pml_gca\.|losses\.|torch\.)?[\w.]*[A-Za-z]\(")
    while match := pattern.search(message, start):
        end, depth = match.end(), 1
        while depth or message[end : end + 1] == "(" or message[end : end + 3] == " + ":
            depth += {"(": 1, ")": -1}.get(message[end], 0)
            end += 1
        found.append(message[match.start() : end])
        start = end
    return found


def message_of(call):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_loss(name):
    loss = REFUSED[name][0]()
    lines = lines_of(message_of(lambda: HardNegativeGenerationLoss(loss, generator_of())))
    assert lines
    for line in lines:
        value = run(line, loss)
        if isinstance(value, nn.Module):
            embeddings = torch.randn(6, SIZE, requires_grad=True)
            value = value(embeddings, torch.randn(6, SIZE) if name == "SelfSupervisedLoss" else LABELS)
        assert value.isfinite(), line
        value.backward()


def test_loss_without_references():
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator_of())
    embeddings = torch.randn(6, SIZE)
    message = message_of(lambda: loss(embeddings, LABELS, None, torch.randn(6, SIZE), LABELS))
    (line,) = lines_of(message)
    assert run(line, loss).isfinite()


def test_a_batch_without_labels():
    loss = HardNegativeGenerationLoss(losses.NTXentLoss(), generator_of())
    (line, *_) = lines_of(message_of(lambda: loss(torch.randn(6, SIZE), None)))
    assert line.startswith("loss(torch.cat([embeddings, views])")
    assert run(line, loss).isfinite()


@pytest.mark.parametrize("reducer", [reducers.DoNothingReducer(), reducers.PerAnchorReducer()])
def test_a_reducer(reducer):
    (line,) = lines_of(
        message_of(lambda: HardNegativeGenerationLoss(losses.NTXentLoss(reducer=reducer), generator_of()))
    )
    assert HardNegativeGenerationLoss(run(line, None), generator_of())(torch.randn(6, SIZE), LABELS).isfinite()


INSIDE = {
    "distributed": lambda loss: DistributedLossWrapper(loss),
    "parallel": lambda loss: nn.DataParallel(loss),
    "compiled": lambda loss: torch.compile(loss, backend="eager"),
}


@pytest.mark.parametrize("name", sorted(INSIDE))
def test_a_loss_inside_something_else(name):
    loss = INSIDE[name](losses.ContrastiveLoss())
    message = message_of(lambda: HardNegativeGenerationLoss(loss, generator_of()))
    line = next(line for line in lines_of(message) if line.startswith("HardNegativeGenerationLoss"))
    assert run(line, loss)(torch.randn(6, SIZE), LABELS).isfinite()


def test_classes_and_losses_with_a_generator_are_refused():
    message = message_of(lambda: HardNegativeGenerationLoss(losses.ContrastiveLoss, generator_of()))
    assert "got the class ContrastiveLoss. Make one: ContrastiveLoss(...)" in message
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator_of())
    assert "use it as it is" in message_of(lambda: HardNegativeGenerationLoss(loss, generator_of()))
    assert "register" in message_of(lambda: HardNegativeGenerationLoss(torch.nn.Linear(2, 2), generator_of()))


AROUND = {
    **INSIDE,
    "memory": lambda loss: pml_gca.losses.CrossBatchMemory(loss, SIZE),
    "views": pml_gca.losses.SelfSupervisedLoss,
    "several": lambda loss: losses.MultipleLosses({"member": loss}),
}


@pytest.mark.parametrize("name", sorted(AROUND))
def test_a_loss_that_has_a_generator_inside_something_else(name):
    loss = AROUND[name](HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator_of()))
    message = message_of(lambda: HardNegativeGenerationLoss(loss, generator_of()))
    assert "has its generator already: use it as it is" in message
    assert "Wrap the loss inside it" not in message
