"""Arguments given by mistake: swapped, a class instead of an instance, a loss of torch, nothing to optimize."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.generators import NAMED_GENERATORS, ClassifiedGenerator, HardestNegativeGenerator, MixupGenerator
from pml_gca.losses import CrossBatchMemory, SelfSupervisedLoss

NUM_CLASSES, SIZE = 12, 8
EMBEDDINGS, LABELS = torch.randn(6, SIZE), torch.tensor([3, 7, 3, 0, 7, 0])


def generator_of() -> GlobalCorrelationGenerator:
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=0)


def wrapped(loss: nn.Module | None = None) -> HardNegativeGenerationLoss:
    return HardNegativeGenerationLoss(loss or losses.ContrastiveLoss(), generator_of())


def message_of(call: Callable[[], Any], error: type[Exception] = TypeError) -> str:
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


def test_loss_and_generator_swapped() -> None:
    generator: Any = generator_of()
    message = message_of(lambda: HardNegativeGenerationLoss(generator, losses.ContrastiveLoss()))  # type: ignore[arg-type]
    assert message.startswith("loss must be a loss, got the generator GlobalCorrelationGenerator: pass the loss first")
    code = message.partition("as in ")[2]
    names = {"HardNegativeGenerationLoss": HardNegativeGenerationLoss, "losses": losses, "generator": generator}
    assert isinstance(eval(code, names), HardNegativeGenerationLoss)


def evaluating() -> HardNegativeGenerationLoss:
    return wrapped().eval()


@pytest.mark.parametrize("make", [wrapped, evaluating, generator_of, lambda: GlobalCorrelationMiner(generator_of())])
def test_embeddings_and_labels_swapped(make: Callable[[], Any]) -> None:
    called = make()
    message = message_of(lambda: called(LABELS, EMBEDDINGS))
    assert re.match(r"embeddings and labels are swapped: got torch.int64 of shape \(6,\) first, and torch.fl", message)
    called(EMBEDDINGS, LABELS)


def test_references_swapped() -> None:
    message = message_of(lambda: wrapped()(EMBEDDINGS, LABELS, None, LABELS, EMBEDDINGS))
    assert message.startswith("ref_emb and ref_labels are swapped")


def test_number_of_classes_and_embedding_size_swapped() -> None:
    swapped = GlobalCorrelationGenerator(SIZE, NUM_CLASSES, num_layers=0)
    message = message_of(lambda: swapped(EMBEDDINGS, LABELS), ValueError)
    assert message.endswith("got 8, its num_classes: are the two swapped? num_classes comes first, as in PML")
    assert "swapped" not in message_of(lambda: swapped(EMBEDDINGS[:, :5], LABELS), ValueError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator),  # type: ignore[arg-type]
        lambda: GlobalCorrelationMiner(GlobalCorrelationGenerator),  # type: ignore[arg-type]
        lambda: ClassifiedGenerator(HardestNegativeGenerator),  # type: ignore[arg-type]
    ],
)
def test_the_class_of_a_generator(call: Callable[[], Any]) -> None:
    assert re.fullmatch(
        r"generator must be a .*[gG]enerator, got the class (\w+)\. Make one: \1\(num_classes, embedding_size\)",
        message_of(call),
    )


def test_a_loss_where_a_miner_takes_its_generator() -> None:
    assert message_of(lambda: GlobalCorrelationMiner(wrapped())).endswith(  # type: ignore[arg-type]
        "got HardNegativeGenerationLoss. Pass the generator inside it: .generator"
    )


def test_the_class_of_a_loss() -> None:
    message = message_of(lambda: wrapped(losses.ContrastiveLoss))  # type: ignore[arg-type]
    assert message == "loss must be a loss, got the class ContrastiveLoss. Make one: ContrastiveLoss(...)"


def test_a_loss_that_has_a_generator() -> None:
    assert message_of(lambda: wrapped(wrapped())).endswith("It has its generator already: use it as it is")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (miners.MultiSimilarityMiner(), "got the miner MultiSimilarityMiner. Its pairs are for each call"),
        (distances.LpDistance, "got the distance LpDistance. It belongs to a loss: losses.ContrastiveLoss(distance="),
        (reducers.MeanReducer(), "got the reducer MeanReducer. It belongs to a loss: losses.ContrastiveLoss(reducer="),
        (regularizers.LpRegularizer(), "got the regularizer LpRegularizer. It belongs to a loss"),
        ([losses.ContrastiveLoss()], "got list. To combine several, wrap losses.MultipleLosses"),
        ("contrastive", "got str, as in HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)"),
        (torch.nn.functional.cross_entropy, "got function, as in"),
    ],
)
def test_no_loss_at_all(given: Any, said: str) -> None:
    message = message_of(lambda: HardNegativeGenerationLoss(given, generator_of()))
    assert message.startswith("loss must be a loss")
    assert said in message
    assert "register" not in message


@pytest.mark.parametrize("given", ["gca", None, nn.Linear(2, 2)])
def test_no_generator_at_all(given: Any) -> None:
    message = message_of(lambda: HardNegativeGenerationLoss(losses.ContrastiveLoss(), given))
    assert f"got {type(given).__name__}, instead of one such as GlobalCorrelationGenerator(num_classes" in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (miners.MultiSimilarityMiner(), "got MultiSimilarityMiner: call it, miner(embeddings, labels)"),
        (EMBEDDINGS, "got Tensor"),
    ],
)
def test_no_indices(given: Any, said: str) -> None:
    message = message_of(lambda: wrapped()(EMBEDDINGS, LABELS, given))
    assert message == f"indices_tuple must be what a miner returns, {said}"


@pytest.mark.parametrize("around", [CrossBatchMemory, SelfSupervisedLoss])
def test_pml_wrappers_around_something_else(around: Any) -> None:
    assert message_of(lambda: around(losses.ContrastiveLoss, SIZE)).endswith("Make one: ContrastiveLoss(...)")
    assert "got the generator GlobalCorrelationGenerator: give HardNegative" in message_of(
        lambda: around(generator_of(), SIZE)
    )


@pytest.mark.parametrize(
    "name", sorted(name for name in vars(nn.modules.loss) if name.endswith("Loss") and name[0] != "_")
)
def test_losses_of_torch(name: str) -> None:
    kind = getattr(nn.modules.loss, name)
    for loss in (kind, kind.__new__(kind)):
        message = message_of(lambda loss=loss: wrapped(loss))
        assert message.startswith("loss must be a loss of embeddings and labels, as those of pytorch_metric_learning")
        assert f"got {name} of torch.nn" in message
    (code,) = re.findall(r"losses\.\w+\([\w, ]*\)", message)
    made = eval(code, {"losses": losses, "num_classes": NUM_CLASSES, "embedding_size": SIZE})
    assert wrapped(made)(EMBEDDINGS, LABELS).isfinite()


WITHOUT_PARAMETERS = sorted(name for name, make in NAMED_GENERATORS.items() if not list(make(5, 8).parameters()))


@pytest.mark.parametrize("name", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_nothing_to_optimize(name: str, optimizer: Any) -> None:
    assert len(WITHOUT_PARAMETERS) > 5
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), NAMED_GENERATORS[name](NUM_CLASSES, SIZE))
    network = nn.Linear(SIZE, SIZE)
    alone = optimizer(loss.parameter_groups(lr=1.0), lr=1.0)
    beside = optimizer([{"params": network.parameters()}, *loss.parameter_groups(lr=1.0)], lr=1.0)
    before = network.weight.clone()
    loss(network(EMBEDDINGS), LABELS).backward()
    for made in (alone, beside):
        made.step()
        made.load_state_dict(made.state_dict())
    assert not torch.equal(network.weight, before)


def test_parameters_of_the_loss_alone() -> None:
    loss = HardNegativeGenerationLoss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE), MixupGenerator(NUM_CLASSES, SIZE))
    assert loss.parameter_groups(lr=1.0) == [{"params": list(loss.loss.parameters()), "lr": 1.0}]
