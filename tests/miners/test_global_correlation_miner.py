"""The miner does not change its generator; copies, records and bad input."""

import copy
import pickle

import pytest
import torch
from helpers.mining import CLASSES, GENERATOR, OUTPUTS, D, batch, make_generator, miner_of
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f

from pml_gca import GlobalCorrelationMiner, HardNegativeGenerationLoss


def test_the_generator_is_left_as_it_was():
    generator = make_generator(dropout=0.5)
    generator.propagation.layers[0].edge.eval()
    generator.propagation.node_norm.eval()
    for parameter in generator.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [module.training for module in generator.modules()]
    assert len(set(modes)) == 2
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    embeddings, labels = batch([0, 0, 1, 1, 2])
    miner = GlobalCorrelationMiner(generator)
    random_state = torch.get_rng_state()
    first = miner(embeddings.requires_grad_(), labels)
    second = miner(embeddings, labels)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [t.tolist() for t in first] == [t.tolist() for t in second]  # no dropout
    assert [module.training for module in generator.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in generator.parameters())
    assert embeddings.grad is None


def test_mode_is_restored_after_an_error(monkeypatch):
    generator = make_generator()
    monkeypatch.setattr(generator.propagation, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GlobalCorrelationMiner(generator)(*batch([0, 0, 1]))
    assert all(module.training for module in generator.modules())


def test_the_generator_may_learn_meanwhile():
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), make_generator())
    miner = GlobalCorrelationMiner(loss.generator)
    embeddings, labels = batch([0, 0, 1, 1, 2, 2])
    embeddings.requires_grad_()
    optimizer = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
    for _ in range(2):
        optimizer.zero_grad()
        loss(embeddings, labels, miner(embeddings, labels)).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loss.generator.parameters())
        optimizer.step()


def test_the_miner_owns_nothing():
    miner = GlobalCorrelationMiner(make_generator())
    assert miner.state_dict() == {}
    assert list(miner.parameters()) == []
    assert not [name for name, _ in miner.named_modules() if "generator" in name]
    miner.load_state_dict({})
    miner.eval()
    assert miner.generator.training
    miner.double()
    assert miner.generator.propagation.input.weight.dtype == torch.float32


def test_copies_mine_the_same():
    miner = GlobalCorrelationMiner(make_generator(), negatives_per_anchor=2, output="pairs")
    embeddings, labels = batch([0, 0, 1, 1, 2])
    expected = [t.tolist() for t in miner(embeddings, labels)]
    for copied in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):
        assert copied.generator is not miner.generator
        assert [t.tolist() for t in copied(embeddings, labels)] == expected
    generator, shared = copy.deepcopy((miner.generator, miner))
    assert shared.generator is generator


@pytest.mark.parametrize("output", OUTPUTS)
def test_stats(output, monkeypatch):
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)
    embeddings, labels = batch([0, 0, 1, 1, 2])
    miner = miner_of(2, output)
    miner(embeddings, labels)
    counts = (miner.num_triplets, miner.num_pos_pairs, miner.num_neg_pairs)
    assert counts == ((8, 0, 0) if output == "triplets" else (0, 4, 10))


EMBEDDINGS, LABELS = batch([0, 0, 1])
BAD_ARGUMENTS = [
    ({"generator": torch.nn.Linear(2, 2)}, TypeError, "generator must be a GlobalCorrelationGenerator, got Linear"),
    ({"negatives_per_anchor": 0}, ValueError, "negatives_per_anchor must be at least 1, got 0"),
    ({"negatives_per_anchor": -3}, ValueError, "negatives_per_anchor must be at least 1, got -3"),
    ({"negatives_per_anchor": 1.5}, TypeError, "negatives_per_anchor must be an integer, got float"),
    ({"negatives_per_anchor": True}, TypeError, "negatives_per_anchor must be an integer, got bool"),
    ({"output": "quadruplets"}, ValueError, "output must be 'triplets' or 'pairs', got 'quadruplets'"),
    ({"output": None}, ValueError, "output must be 'triplets' or 'pairs', got None"),
]
BAD_INPUT = [
    ((EMBEDDINGS[:, :5], LABELS), ValueError, "embeddings must have 8 channels, .* got 5"),
    ((EMBEDDINGS[0], LABELS[:1].expand(D)), ValueError, "embeddings must be 2-D"),
    ((EMBEDDINGS.long(), LABELS), TypeError, "embeddings must be floating point"),
    (
        (EMBEDDINGS.index_fill(0, torch.tensor(0), float("nan")), LABELS),
        ValueError,
        "embeddings must be finite, got 8 NaN",
    ),
    ((EMBEDDINGS, LABELS + CLASSES), ValueError, "labels must lie in .*set_min_label_to_zero=True"),
    ((EMBEDDINGS, LABELS - 1), ValueError, "labels must lie in"),
    ((EMBEDDINGS, LABELS.float()), TypeError, r"labels must be integers, got torch.float32; .*pass .long\(\)"),
    ((EMBEDDINGS, LABELS.bool()), TypeError, "labels must be integers, got torch.bool"),
    ((EMBEDDINGS, torch.full((3,), 2**63, dtype=torch.uint64)), ValueError, "labels must fit into int64, got 92233"),
    ((EMBEDDINGS, (LABELS + CLASSES).to(torch.uint16)), ValueError, "labels must lie in .*got values from 12 to 13"),
    ((EMBEDDINGS, LABELS[:2]), ValueError, "(?i)number of embeddings must equal number of labels"),
    ((EMBEDDINGS, LABELS, EMBEDDINGS[:, :5], LABELS), ValueError, "ref_emb must have 8 channels, .* got 5"),
    ((EMBEDDINGS, LABELS, EMBEDDINGS.clone(), None), TypeError, "ref_labels must be a torch.Tensor, got NoneType"),
    ((EMBEDDINGS, LABELS, EMBEDDINGS / 0, LABELS), ValueError, "ref_emb must be finite"),
    ((EMBEDDINGS, LABELS, EMBEDDINGS.clone(), LABELS + 100), ValueError, "ref_labels must lie in"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GlobalCorrelationMiner(**{"generator": GENERATOR, **arguments})


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_INPUT)
def test_bad_input(arguments, error, message):
    miner = GlobalCorrelationMiner(GENERATOR)
    with pytest.raises(error, match=message):
        miner(*arguments)
    assert all(module.training for module in GENERATOR.modules())
