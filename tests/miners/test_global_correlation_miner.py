import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss

CLASSES, D = 12, 8
OUTPUTS = ("triplets", "pairs")
COMPOSITIONS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=14)


def make_generator(**kwargs):
    """A generator whose batch normalisation has seen data, left in training mode."""
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2, **kwargs)
    for _ in range(3):
        generator(torch.randn(10, D), torch.randint(CLASSES, (10,)))
    return generator


GENERATOR = make_generator()


def batch(labels, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.randn(len(labels), D, dtype=dtype), torch.tensor(labels, dtype=torch.long)


def slow_negatives(generator, embeddings, labels, count, ref_emb=None, ref_labels=None):
    """{(anchor, negative)}: per anchor, the ``count`` negatives of least mean coefficient, from the dense ones."""
    offset, nodes, node_labels = 0, embeddings, labels
    if ref_emb is not None:
        offset, nodes, node_labels = len(labels), torch.cat([embeddings, ref_emb]), torch.cat([labels, ref_labels])
    generator = copy.deepcopy(generator).eval()
    with torch.no_grad():
        coefficients = generator.correlate(nodes, node_labels).dense()
    found = set()
    for i in range(len(labels)):
        others = [j for j in range(offset, len(nodes)) if node_labels[j] != labels[i]]
        others.sort(key=lambda j: float(coefficients[i, j].mean()))
        found |= {(i, j - offset) for j in others[:count]}
    return found


def positives_of(labels, ref_labels, itself):
    rows = range(len(labels))
    return {(i, j) for i in rows for j in range(len(ref_labels)) if labels[i] == ref_labels[j] and not itself(i, j)}


def couples(first, second):
    return list(zip(first.tolist(), second.tolist(), strict=True))


def assert_mined(mined, output, positives, negatives):
    assert isinstance(mined, tuple)
    assert len(mined) == (3 if output == "triplets" else 4)
    assert all(t.dtype == torch.long and t.ndim == 1 and not t.requires_grad for t in mined)
    if output == "pairs":
        for got, expected in ((couples(*mined[:2]), positives), (couples(*mined[2:]), negatives)):
            assert len(got) == len(expected)  # none twice
            assert set(got) == expected
    else:
        got = list(zip(*(t.tolist() for t in mined), strict=True))
        expected = {(a, p, n) for a, p in positives for b, n in negatives if a == b}
        assert len(got) == len(expected)
        assert set(got) == expected


@given(labels=COMPOSITIONS, count=st.integers(1, 20), output=st.sampled_from(OUTPUTS), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_against_a_slow_oracle(labels, count, output, seed):
    embeddings, labels = batch(labels, seed)
    mined = GlobalCorrelationMiner(GENERATOR, count, output)(embeddings, labels)
    positives = positives_of(labels, labels, lambda i, j: i == j)
    assert_mined(mined, output, positives, slow_negatives(GENERATOR, embeddings, labels, count))


@given(labels=COMPOSITIONS, ref_labels=COMPOSITIONS, count=st.integers(1, 20), output=st.sampled_from(OUTPUTS))
@settings(max_examples=30, deadline=None)
def test_references_against_a_slow_oracle(labels, ref_labels, count, output):
    (embeddings, labels), (ref_emb, ref_labels) = batch(labels), batch(ref_labels, seed=1)
    mined = GlobalCorrelationMiner(GENERATOR, count, output)(embeddings, labels, ref_emb, ref_labels)
    positives = positives_of(labels, ref_labels, lambda i, j: False)
    negatives = slow_negatives(GENERATOR, embeddings, labels, count, ref_emb, ref_labels)
    assert_mined(mined, output, positives, negatives)


def test_the_hardest_are_mined_first():
    """The negatives for a count are among those for a larger one, and all of them when the count is large enough."""
    embeddings, labels = batch([0, 0, 1, 1, 2, 3, 3, 4])
    mined = [set(couples(*GlobalCorrelationMiner(GENERATOR, k, "pairs")(embeddings, labels)[2:])) for k in range(1, 9)]
    assert all(fewer <= more for fewer, more in itertools.pairwise(mined))
    different = {(i, j) for i in range(8) for j in range(8) if labels[i] != labels[j]}
    assert mined[6] == mined[7] == different


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("repeat", ["the same tensor", "a copy", "rotated", "with others", "another dtype"])
def test_a_repeated_batch_never_gives_an_anchor_itself(output, repeat):
    embeddings, labels = batch([0, 0, 1, 2, 2, 2])
    ref_emb, ref_labels, row = embeddings.clone(), labels.clone(), list(range(6))
    if repeat == "the same tensor":
        ref_emb = embeddings
    elif repeat == "rotated":
        ref_emb, ref_labels, row = ref_emb.roll(2, 0), ref_labels.roll(2), [2, 3, 4, 5, 0, 1]
    elif repeat == "with others":
        other, other_labels = batch([0, 1, 3], seed=1)
        ref_emb, ref_labels = torch.cat([other, ref_emb]), torch.cat([other_labels, ref_labels])
        row = [3, 4, 5, 6, 7, 8]
    elif repeat == "another dtype":
        ref_emb = ref_emb.double()
    mined = GlobalCorrelationMiner(GENERATOR, 3, output)(embeddings, labels, ref_emb, ref_labels)
    got = set(couples(*mined[:2]))
    assert got == positives_of(labels, ref_labels, lambda i, j: j == row[i])


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_repeated_batch_mines_what_the_batch_does(output):
    """References that are the batch's own samples are no further nodes of the graph, as in the loss."""
    embeddings, labels = batch([0, 0, 1, 1, 2, 2, 3, 3, 3, 4])
    miner = GlobalCorrelationMiner(GENERATOR, 2, output)
    alone = miner(embeddings, labels)
    repeated = miner(embeddings, labels, embeddings.clone(), labels.clone())
    assert [t.tolist() for t in repeated] == [t.tolist() for t in alone]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("size", [3, 10])
def test_some_of_the_batch_repeated_mines_what_the_whole_does(output, size):
    """The first anchors mine the same whether the batch is all there is, or the anchors come with it as references."""
    torch.manual_seed(2)
    embeddings, labels = torch.randn(40, D), torch.randint(5, (40,))
    miner = GlobalCorrelationMiner(GENERATOR, 2, output)
    whole = miner(embeddings, labels)
    split = miner(embeddings[:size], labels[:size], embeddings.clone(), labels.clone())
    starts = (0,) if output == "triplets" else (0, 2)
    for start, stop in zip(starts, (3,) if output == "triplets" else (2, 4), strict=True):
        of_first = whole[start] < size
        assert [t.tolist() for t in split[start:stop]] == [t[of_first].tolist() for t in whole[start:stop]]


def test_equal_samples_are_told_apart_in_references():
    """A small class is drawn with repetition, and the distributed wrapper passes the batch as references."""
    z, labels = batch([0, 1])
    embeddings, labels = torch.cat([z, z]), torch.cat([labels, labels])
    miner = GlobalCorrelationMiner(GENERATOR, 3, "pairs")
    for references in ((), (embeddings.clone(), labels.clone()), (embeddings, labels.clone())):
        mined = miner(embeddings, labels, *references)
        assert couples(*mined[:2]) == [(0, 2), (1, 3), (2, 0), (3, 1)]
        assert couples(*mined[2:]) == [(0, 1), (0, 3), (1, 0), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2)]


@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    order=st.randoms(use_true_random=False),
    size=st.integers(1, 10),
    output=st.sampled_from(OUTPUTS),
)
@settings(max_examples=30, deadline=None)
def test_repeated_samples_mine_the_same_wherever_they_stand(rows, order, size, output):
    """References that hold the batch, or the first of a batch whose rest comes as references, mine what it does."""
    points, point_labels = batch([0, 0, 1, 1, 2])
    embeddings, labels = points[rows], point_labels[rows]
    miner = GlobalCorrelationMiner(GENERATOR, 20, output)
    alone = miner(embeddings, labels)
    repeated = miner(embeddings, labels, embeddings.clone(), labels.clone())
    assert [t.tolist() for t in repeated] == [t.tolist() for t in alone]
    head = miner(embeddings[:size], labels[:size], embeddings.clone(), labels.clone())
    for start, stop in ((0, 3),) if output == "triplets" else ((0, 2), (2, 4)):
        of_first = alone[start] < size
        assert [t.tolist() for t in head[start:stop]] == [t[of_first].tolist() for t in alone[start:stop]]
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    mixed = miner(embeddings, labels, embeddings[shuffled], labels[shuffled])
    assert [len(t) for t in mixed] == [len(t) for t in alone]
    assert (
        all((shuffled[p], a) for a, p in couples(*mixed[:2]) if shuffled[p] == a and rows.count(rows[a]) == 1) is True
    )


def test_more_and_fewer_copies_in_references():
    z, labels = batch([0, 1])
    miner = GlobalCorrelationMiner(GENERATOR, 9, "pairs")
    twice, both = (torch.cat([z, z]), torch.cat([labels, labels])), (z, labels)
    # Beyond those of the batch, a copy is a sample of its own: a positive of its anchor, and a negative of the other.
    more = miner(*both, *twice)
    assert couples(*more[:2]) == [(0, 2), (1, 3)]
    assert couples(*more[2:]) == [(0, 1), (0, 3), (1, 0), (1, 2)]
    # The only copy is the first of the batch's, and so a positive of the second alone.
    fewer = miner(*twice, *both)
    assert couples(*fewer[:2]) == [(2, 0), (3, 1)]
    assert couples(*fewer[2:]) == [(0, 1), (1, 0), (2, 1), (3, 0)]


def test_other_labels_of_the_batch_itself_are_references():
    embeddings, labels = batch([0, 0, 1, 1])
    other = torch.tensor([0, 1, 1, 0])
    mined = GlobalCorrelationMiner(GENERATOR, 4, "pairs")(embeddings, labels, embeddings, other)
    copied = GlobalCorrelationMiner(GENERATOR, 4, "pairs")(embeddings, labels, embeddings.clone(), other)
    assert [t.tolist() for t in mined] == [t.tolist() for t in copied]


DEGENERATE = {
    "one class": [3, 3, 3, 3],
    "singletons": [0, 1, 2, 3],
    "one sample": [5],
    "empty": [],
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("composition", DEGENERATE)
@pytest.mark.parametrize("with_references", [False, True])
def test_degenerate_batches(output, composition, with_references):
    embeddings, labels = batch(DEGENERATE[composition])
    embeddings.requires_grad_()
    references = (embeddings.detach().clone(), labels.clone()) if with_references else ()
    mined = GlobalCorrelationMiner(GENERATOR, 2, output)(embeddings, labels, *references)
    assert all(t.dtype == torch.long for t in mined)
    if output == "triplets":
        assert [len(t) for t in mined] == [0, 0, 0]
    else:
        pairs = {"one class": [12, 12, 0, 0], "singletons": [0, 0, 8, 8]}.get(composition, [0, 0, 0, 0])
        assert [len(t) for t in mined] == pairs
    for loss in (losses.TripletMarginLoss(), losses.ContrastiveLoss(), losses.MultiSimilarityLoss()):
        value = loss(embeddings, labels, mined, *references)
        value.backward()
        assert torch.isfinite(value)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_empty_set_of_references(output):
    embeddings, labels = batch([0, 0, 1])
    mined = GlobalCorrelationMiner(GENERATOR, 2, output)(embeddings, labels, embeddings[:0], labels[:0])
    assert all(t.dtype == torch.long and len(t) == 0 for t in mined)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("wrapped", [losses.TripletMarginLoss, losses.ContrastiveLoss, losses.NTXentLoss])
def test_pml_losses_take_what_is_mined(output, wrapped):
    embeddings, labels = batch([0, 0, 1, 1, 2, 2])
    ref_emb, ref_labels = batch([0, 1, 2, 3], seed=1)
    embeddings.requires_grad_()
    miner = GlobalCorrelationMiner(GENERATOR, 2, output)
    for references in ((), (ref_emb, ref_labels)):
        value = wrapped()(embeddings, labels, miner(embeddings, labels, *references), *references)
        value.backward()
        assert torch.isfinite(value)
        assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "label_dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
def test_dtypes(dtype, label_dtype):
    embeddings, labels = batch([0, 0, 1, 1, 2], dtype=torch.float32)
    mined = GlobalCorrelationMiner(GENERATOR, 4)(embeddings.to(dtype), labels.to(label_dtype))
    expected = GlobalCorrelationMiner(GENERATOR, 4)(embeddings, labels)
    assert all(t.dtype == torch.long for t in mined)
    assert [t.tolist() for t in mined] == [t.tolist() for t in expected]  # all negatives, so no order of hardness
    mined = GlobalCorrelationMiner(GENERATOR, 4)(embeddings, labels, embeddings.to(dtype), labels.to(label_dtype))
    if dtype in (torch.float32, torch.float64):
        assert [t.tolist() for t in mined] == [t.tolist() for t in expected]


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


def test_the_mode_comes_back_after_an_error(monkeypatch):
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
    miner = GlobalCorrelationMiner(make_generator(), 2, "pairs")
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
    miner = GlobalCorrelationMiner(GENERATOR, 2, output)
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
