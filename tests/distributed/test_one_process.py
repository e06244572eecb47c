"""A loss that gathers works alone as one that does not; what becomes of its process group."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from helpers.every_loss import NUM_CLASSES, SIZE
from helpers.gathering.steps import alone, differences, draw, kept, make_loss, make_rows, make_trunk
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.distributed import gather_batch
from pml_gca.losses import CrossBatchMemory, SelfSupervisedLoss

LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 0]
NOT_INITIALISED = "no process group"


@pytest.fixture(params=[NOT_INITIALISED, "a group of one"])
def _alone(request, tmp_path):
    if request.param == NOT_INITIALISED:
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


one_process = pytest.mark.usefixtures("_alone")


@one_process
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "NPairsLoss", "ProxyAnchorLoss"])
def test_a_loss_that_gathers_works_alone(name):
    trunk, loss = make_trunk(), make_loss(name, gather=True)
    x, y = make_rows(LABELS)
    draw(77, gather=False)
    value = loss(trunk(x), y)
    value.backward()
    assert differences(name, kept(value, trunk, loss), alone(LABELS, name), rtol=0) == []


@one_process
def test_a_miner_and_a_batch_alone():
    x, y = make_rows(LABELS)
    rows = make_trunk()(x)
    generator = make_loss().generator
    expected = GlobalCorrelationMiner(generator)(rows, y)
    for found, wanted in zip(
        GlobalCorrelationMiner(generator, gather_across_devices=True)(rows, y), expected, strict=True
    ):
        assert torch.equal(found, wanted)
    embeddings, labels = gather_batch(rows, y)
    assert torch.equal(embeddings, rows)
    assert torch.equal(labels, y)
    assert not embeddings.requires_grad


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


def test_copies_gather_over_the_same_group(group):
    loss = make_loss(process_group=group)
    copied = copy.deepcopy(loss)
    assert copied.gathering.group is group
    assert copied.gathering is not loss.gathering
    assert copied.gathering.enabled


def test_no_group_is_in_the_state(group):
    loss, plain = make_loss(process_group=group), make_loss(gather=False)
    assert loss.state_dict().keys() == plain.state_dict().keys()
    loss.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("save", [pickle.dumps, "torch"])
def test_a_pickle_holds_no_group(group, save):
    x, y = make_rows(LABELS)
    rows = make_trunk()(x)
    for loss in (make_loss(process_group=group), make_loss()):
        stored = io.BytesIO()
        torch.save(loss, stored) if save == "torch" else stored.write(save(loss))
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False) if save == "torch" else pickle.load(stored)
        assert loaded.gathering.enabled
        if loss.gathering.group is None:
            assert loaded(rows, y).isfinite()
            continue
        with pytest.raises(RuntimeError, match="process_group cannot be saved in a pickle: build the loss again"):
            loaded(rows, y)


def make_generator():
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    "build",
    [
        lambda **kwargs: HardNegativeGenerationLoss(ContrastiveLoss(), make_generator(), **kwargs),
        lambda **kwargs: GlobalCorrelationMiner(make_generator(), **kwargs),
    ],
)
def test_a_group_that_is_none(build, group):
    for wrong in ("gloo", -100, [0, 1]):  # new_group gives others than its members a number
        with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup or None, got \w+"):
            build(gather_across_devices=True, process_group=wrong)
    with pytest.raises(ValueError, match="process_group is used with gather_across_devices=True only"):
        build(process_group=group)


def test_wrappers_that_pair_the_rows_of_one_process():
    with pytest.raises(ValueError, match="numbers the samples of each process from 0"):
        SelfSupervisedLoss(make_loss())
    with pytest.raises(ValueError, match="Give the loss a memory of its own, which all processes share"):
        CrossBatchMemory(make_loss(), SIZE, memory_size=8)


def test_wrappers_of_processes_are_refused_before_there_are_several(group):
    x, y = make_rows(LABELS)
    rows = make_trunk()(x)
    with pytest.raises(ValueError, match="Take the wrapper away"):
        DistributedLossWrapper(make_loss())(rows, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistributedLossWrapper(make_loss(gather=False))(rows, y)
    miner = GlobalCorrelationMiner(make_loss().generator, gather_across_devices=True)
    with pytest.raises(ValueError, match="Take the wrapper away"):
        DistributedMinerWrapper(miner)(rows, y)
