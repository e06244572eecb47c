"""A loss's own parameters, such as proxies, keep their precision, and are trained."""

import copy
import warnings

import pytest
import torch
from pytorch_metric_learning import losses, regularizers
from pytorch_metric_learning.losses.mixins import WeightMixin

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import NAMED_GENERATORS
from pml_gca.losses import NAMED_LOSSES
from pml_gca.trainers import AutocastTrainer

CLASSES, SIZE = 6, 16
WITH_PARAMETERS = {
    "proxy_anchor": lambda: NAMED_LOSSES["proxy_anchor"](CLASSES, SIZE),
    "arcface": lambda: NAMED_LOSSES["arcface"](CLASSES, SIZE),
    "normalized softmax": lambda: losses.NormalizedSoftmaxLoss(CLASSES, SIZE),
    "soft triple": lambda: losses.SoftTripleLoss(CLASSES, SIZE),
    "proxy NCA": lambda: losses.ProxyNCALoss(CLASSES, SIZE),
    "regularized": lambda: losses.ProxyAnchorLoss(
        CLASSES, SIZE, weight_regularizer=regularizers.RegularFaceRegularizer()
    ),
    "multiple": lambda: losses.MultipleLosses([losses.ProxyAnchorLoss(CLASSES, SIZE), losses.TripletMarginLoss()]),
}
LABELS = torch.arange(12) % CLASSES


def build(name, generator="hardest_real"):
    torch.manual_seed(0)
    network = torch.nn.Linear(8, SIZE)
    loss = HardNegativeGenerationLoss(WITH_PARAMETERS[name](), NAMED_GENERATORS[generator](CLASSES, SIZE))
    groups = [{"params": network.parameters()}, *loss.parameter_groups(lr=1e-3)]
    return {"network": network, "loss": loss, "optimizer": torch.optim.AdamW(groups, lr=1e-3)}


def step(parts, dtype, seed, scaler=None):
    images = torch.randn(12, 8, generator=torch.Generator().manual_seed(seed))
    parts["optimizer"].zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype=dtype):
        value = parts["loss"](parts["network"](images), LABELS)
    if scaler is None:
        value.backward()
        parts["optimizer"].step()
    else:
        scaler.scale(value).backward()
        scaler.step(parts["optimizer"])
        scaler.update()
    return value.detach()


def states(parts):
    moments = [v for state in parts["optimizer"].state.values() for v in state.values() if v.is_floating_point()]
    return [*parts["network"].parameters(), *parts["loss"].parameters(), *moments]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
@pytest.mark.parametrize("generator", ["hardest_real", "gca"])
def test_they_stay_in_float32_under_bfloat16_and_a_run_resumes_exactly(name, generator):
    unbroken, first = build(name, generator), build(name, generator)
    for seed in range(4):
        step(unbroken, torch.bfloat16, seed)
    for seed in range(2):
        step(first, torch.bfloat16, seed)
    resumed = build(name, generator)
    for part in resumed:
        resumed[part].load_state_dict(copy.deepcopy(first[part].state_dict()))
    for seed in range(2, 4):
        step(resumed, torch.bfloat16, seed)
    assert {value.dtype for value in states(unbroken)} == {torch.float32}
    torch.testing.assert_close(states(resumed), states(unbroken), rtol=0, atol=0)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_float16_with_a_gradient_scaler(name):
    parts, scaler = build(name), torch.amp.GradScaler("cpu", init_scale=256.0)
    before = [p.detach().clone() for p in parts["loss"].parameters()]
    for seed in range(3):
        assert step(parts, torch.float16, seed, scaler).isfinite()
    after = list(parts["loss"].parameters())
    assert {p.dtype for p in after} == {torch.float32}
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_float32_after_bfloat16_and_evaluation(name):
    parts = build(name)
    step(parts, torch.bfloat16, 0)
    parts["loss"].eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        parts["loss"](parts["network"](torch.randn(12, 8)), LABELS)
    parts["loss"].train()
    parts["loss"](parts["network"](torch.randn(12, 8)), LABELS).backward()
    parts["optimizer"].step()
    assert {p.dtype for p in parts["loss"].parameters()} == {torch.float32}


def test_half_precision_embeddings_have_a_gradient_of_their_own_dtype_and_the_value_of_wide_ones():
    loss = build("proxy_anchor")["loss"]
    narrow = torch.randn(12, SIZE).bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    torch.testing.assert_close(loss(narrow, LABELS), loss(wide, LABELS), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(loss(narrow, LABELS), narrow)
    (expected,) = torch.autograd.grad(loss(wide, LABELS), wide)
    torch.testing.assert_close(gradient, expected.bfloat16(), rtol=0, atol=0)


def test_a_loss_in_half_precision_stays_in_it():
    loss = build("proxy_anchor")["loss"].bfloat16()
    assert loss(torch.randn(12, SIZE).bfloat16().requires_grad_(), LABELS).isfinite()
    assert {p.dtype for p in loss.loss.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("alone", [True, False])
def test_a_trainer_with_autocast_keeps_them_too(alone):
    """A loss of PML alone has the parameters of a training whose network alone is under autocast."""
    loss, network = build("regularized")["loss"].loss, build("regularized")["network"]
    metric_loss = (
        loss if alone else losses.MultipleLosses([build("arcface")["loss"], losses.ProxyAnchorLoss(CLASSES, SIZE)])
    )
    images = torch.randn(12, 8)
    expected_network, expected = copy.deepcopy(network), copy.deepcopy(loss)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (expected_network, expected)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = expected_network(images)
    expected(embeddings.float(), LABELS).backward()
    for optimizer in optimizers:
        optimizer.step()
    trainer = AutocastTrainer(
        models={"trunk": network, "embedder": torch.nn.Identity()},
        loss_funcs={"metric_loss": metric_loss},
        optimizers={
            "trunk_optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
            "metric_loss_optimizer": torch.optim.SGD(metric_loss.parameters(), lr=0.1),
        },
        batch_size=12,
        dataset=torch.utils.data.TensorDataset(images, LABELS),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        autocast_dtype=torch.bfloat16,
    )
    trainer.train(num_epochs=1)
    assert {p.dtype for p in metric_loss.parameters()} == {torch.float32}
    if alone:  # the loader shuffles the batch
        torch.testing.assert_close(loss.proxies, expected.proxies, rtol=1e-4, atol=1e-5)


def warned(loss, parameters, batches=6):
    """Train a network and `parameters`, and return the warnings."""
    network = torch.nn.Linear(8, SIZE)
    optimizer = torch.optim.AdamW([*network.parameters(), *parameters])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            optimizer.zero_grad()
            loss(network(torch.randn(12, 8)), LABELS).backward()
            optimizer.step()
    return [str(w.message) for w in caught if "Optimizers step" in str(w.message)]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_they_are_missed_in_the_optimizer_apart_from_the_generators(name):
    def missing(*which):
        loss = build(name, "gca")["loss"]
        held = {"generator": loss.generator.parameters(), "loss": loss.loss.parameters()}
        return warned(loss, [p for part in which for p in held[part]])

    assert missing("generator", "loss") == []
    (message,) = missing("generator")
    assert "the wrapped loss's own parameters, such as proxies or class weights, of HardNegative" in message
    assert "they do not learn" in message
    (message,) = missing("loss")
    assert "the parameters of HardNegativeGenerationLoss: its generator does not learn" in message
    assert len(missing()) == 2


def test_a_generator_without_parameters_does_not_hide_them():
    loss = build("proxy_anchor")["loss"]
    assert len(warned(loss, [])) == 1
    assert warned(loss, []) == []  # once
    loss.loss.requires_grad_(False)
    assert warned(copy.deepcopy(loss), []) == []


@pytest.mark.parametrize(
    "name",
    ["proxy_anchor", "arcface", "normalized softmax", "soft triple", "proxy NCA", "P2SGrad", "sub-center ArcFace"],
)
def test_other_classes_in_evaluation_are_explained(name):
    made = {
        "P2SGrad": lambda: losses.P2SGradLoss(descriptors_dim=SIZE, num_classes=CLASSES),
        "sub-center ArcFace": lambda: losses.SubCenterArcFaceLoss(num_classes=CLASSES, embedding_size=SIZE),
    }
    inner = made.get(name, WITH_PARAMETERS.get(name))()
    loss = HardNegativeGenerationLoss(inner, NAMED_GENERATORS["hardest_real"](CLASSES, SIZE)).eval()
    z = torch.randn(12, SIZE)
    assert loss(z, LABELS).isfinite()
    with pytest.raises(ValueError, match=r"Loss has a value for the 6 training classes alone.* from 1000 to 1005"):
        loss(z, LABELS + 1000)
    with pytest.raises(ValueError, match="from -1 to 5"):
        loss(z, torch.where(LABELS == 0, -1, LABELS))


def test_other_errors_in_evaluation_are_those_of_the_loss():
    class Scaled(losses.NTXentLoss):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def compute_loss(self, *args):
            raise torch.OutOfMemoryError("no memory left")

    loss = HardNegativeGenerationLoss(Scaled(), NAMED_GENERATORS["hardest_real"](CLASSES, SIZE)).eval()
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        loss(torch.randn(12, SIZE), LABELS + 1000)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("generator", ["gca", "hardest_real"])
def test_parameters_may_be_frozen_after_the_first_steps(batches, generator):
    parts = build("proxy_anchor", generator)
    optimizer = torch.optim.AdamW(parts["network"].parameters())
    for batch in range(6):
        if batch == batches:
            parts["loss"].requires_grad_(False)
        optimizer.zero_grad()
        parts["loss"](parts["network"](torch.randn(12, 8)), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_autocast_does_not_reach_a_loss_with_parameters(name):
    """The value is that of float32, of the same embeddings; distances of proxies would else be in half precision."""
    narrow = torch.randn(12, SIZE).bfloat16()
    for mode in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = build(name)["loss"].train(mode)(narrow.requires_grad_(), LABELS)
        expected = build(name)["loss"].train(mode)(narrow.float(), LABELS)
        torch.testing.assert_close(inside, expected, rtol=0, atol=0)


def test_a_loss_of_your_own_need_not_tell_its_classes():
    class Own(WeightMixin, losses.ContrastiveLoss):
        def __init__(self):
            super().__init__()
            self.scales = torch.nn.Parameter(torch.ones(3))

    loss = HardNegativeGenerationLoss(Own(), NAMED_GENERATORS["hardest_real"](CLASSES, SIZE)).eval()
    assert loss(torch.randn(12, SIZE), LABELS + 1000).isfinite()
