"""What holds on devices that are not there: no float64 where one lacks it, and no tensor on one by default."""

import ast
from pathlib import Path

import pytest
import torch
from helpers.compared import GENERATORS, NUM_CLASSES, SIZE, random_rows
from helpers.layouts import write_image
from pytorch_metric_learning import losses
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pml_gca
from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.datasets import ClassFolder
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator, RandomGenerator
from pml_gca.losses import SyntheticBatch, synthetic_loss
from pml_gca.paper import MPerClassCoveringSampler
from pml_gca.utils import RecallCalculator

LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7])
EVERY = GENERATORS | {
    "GCA-HNG": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE),
    "GCA-HNG, mean": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, merging="mean"),
    "random, classified": lambda: ClassifiedGenerator(RandomGenerator(NUM_CLASSES, SIZE), num_layers=2),
    "real negatives": lambda: ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE)),
}
FAMILIES = {
    "N-pairs": losses.NPairsLoss,
    "N-pairs, Lp": lambda: losses.NPairsLoss(distance=losses.TripletMarginLoss().distance),
    "NCA": losses.NCALoss,
    "angular": losses.AngularLoss,
    "triplet": losses.TripletMarginLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "proxy anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
}


class NoFloat64(TorchDispatchMode):
    """Refuses every float64 tensor, as an Apple GPU does; those of one value may still be numbers of the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise TypeError(f"{func} of float64")
        return out


def reduced(value):
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def step(loss, z):
    value = loss(z, LABELS)
    value.backward()
    return value


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("level", [torch.tensor(2.0), 2.0])
def test_no_generator_makes_float64_of_float32(name, level):
    generator, z = EVERY[name](), random_rows(len(LABELS), dtype=torch.float32)
    with NoFloat64():
        negatives = generator(z, LABELS, None, level)
        (negatives.embeddings.sum() + sum(negatives.objectives.values())).backward()
        with torch.no_grad():
            generator.eval()(z, LABELS, 6, level)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_no_step_makes_float64_of_float32(name, momentum):
    loss = HardNegativeGenerationLoss(FAMILIES[name](), EVERY["GCA-HNG"](), level_momentum=momentum)
    loss.levels.generator.value.fill_(3.0)
    optimizer = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
    synthetic_loss_at_once(loss, z := random_rows(len(LABELS), dtype=torch.float32))
    with NoFloat64() if name != "angular" else torch.enable_grad():  # PML's angle is of float64
        for _ in range(2):
            step(loss, z)
            optimizer.step()
            loss.end_epoch()


def synthetic_loss_at_once(loss, z):
    """PML's own first call may compute constants."""
    negatives = loss.generator(z, LABELS)
    synthetic_loss(loss.loss, SyntheticBatch(z, LABELS, z, LABELS, negatives))


def test_no_miner_makes_float64_of_float32():
    miner, z = GlobalCorrelationMiner(EVERY["GCA-HNG"]()), random_rows(len(LABELS), dtype=torch.float32)
    with NoFloat64():
        assert len(miner(z, LABELS)[0])
        assert len(miner(z, LABELS, z.detach() + 1, LABELS)[0])


def test_float64_is_noticed():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(2) + torch.zeros(2, dtype=torch.float64)


# A default device: tensors made without a device appear there, far from those of the batch.


@pytest.fixture
def _meta_by_default():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


meta_by_default = pytest.mark.usefixtures("_meta_by_default")


def built_on_the_cpu(make):
    with torch.device("cpu"):
        return make()


@meta_by_default
@pytest.mark.parametrize("name", sorted(EVERY))
def test_generators_ignore_the_default_device(name):
    with torch.device("cpu"):
        generator, z = EVERY[name](), random_rows(len(LABELS), dtype=torch.float32)
    for level in (2.0, built_on_the_cpu(lambda: torch.tensor(2.0))):
        negatives = generator(z, LABELS, None, level)
        (negatives.embeddings.sum() + sum(negatives.objectives.values())).backward()
    assert z.grad.isfinite().all()
    assert negatives.labels.device == negatives.anchors.device == negatives.embeddings.device == LABELS.device


@meta_by_default
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_steps_ignore_the_default_device(name, monkeypatch):
    if name.startswith("N-pairs"):  # PML's own counts its pairs on the default device, and copies that
        monkeypatch.setattr(
            losses.NPairsLoss, "compute_loss", lambda self, z, *args: {"loss": reduced(z.square().sum())}
        )
    with torch.device("cpu"):
        loss = HardNegativeGenerationLoss(FAMILIES[name](), EVERY["GCA-HNG"](), level_momentum=None, collect_stats=True)
        z, references = (random_rows(len(LABELS), seed=i, dtype=torch.float32) for i in (0, 1))
        loss.levels.generator.value.fill_(3.0)
    assert step(loss, z).isfinite()
    loss.end_epoch()
    if name == "triplet":
        assert loss(z, LABELS, None, references.detach(), LABELS).isfinite()
    with loss.phase("generation"):
        assert step(loss, z).isfinite()
    assert {x.device.type for x in (*loss.parameters(), *loss.buffers(), z.grad)} == {"cpu"}


@meta_by_default
def test_miners_and_calculators_ignore_the_default_device():
    with torch.device("cpu"):
        miner, z = GlobalCorrelationMiner(EVERY["GCA-HNG"]()), random_rows(len(LABELS), dtype=torch.float32)
    for mined in (miner(z, LABELS), miner(z, LABELS, z.detach().clone(), LABELS)):
        assert {x.device.type for x in mined} == {"cpu"}
    calculator = RecallCalculator(include=("recall_at_1",), device=LABELS.device, knn_func=search)
    assert 0 <= calculator.get_accuracy(z.detach(), LABELS)["recall_at_1"] <= 1


def search(query, k, reference, ref_includes_query):
    """The k nearest references, each query itself left out."""
    apart = torch.cdist(query, reference).fill_diagonal_(torch.inf if ref_includes_query else 0)
    return apart.topk(k, largest=False)


FACTORIES = {function.__name__ for function in _device_constructors()}


def test_every_tensor_that_is_made_says_where():
    """But for parameters and buffers, which are made where modules are."""
    vague = []
    for path in Path(pml_gca.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                in_module = function.name == "__init__" and path.name in ("blocks.py", "levels.py", "memory.py")
                vague += [f"{path.name}:{call.lineno}" for call in calls_without_device(function) if not in_module]
    assert not vague


def calls_without_device(function):
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if of_torch and node.func.attr in FACTORIES and "device" not in {k.arg for k in node.keywords}:
            yield node


@meta_by_default
def test_data_stays_on_the_host(tmp_path):
    for label in range(4):
        for number in range(3):
            write_image(tmp_path / f"class {label}" / f"{number}.png", label, number, 16)
    folder = ClassFolder(tmp_path, "train", fractions=(0.5, 0.0, 0.5), image_size=16, progress=False)
    image, _ = folder[0]
    assert image.device.type == folder.labels.device.type == "cpu"
    sampler = MPerClassCoveringSampler(folder.labels, m=2, batch_size=4, length_before_new_iter=8, seed=0)
    assert len(list(sampler)) == 8
    assert {x.device.type for x in sampler.state_dict().values()} == {"cpu"}
