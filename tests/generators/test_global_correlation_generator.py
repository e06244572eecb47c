import math

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.compared import generate
from helpers.strategies import DEVICES, NUM_CLASSES, embeddings, generators, labels
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pml_gca import GlobalCorrelationGenerator


@settings(max_examples=10)
@given(
    generators(max_layers=2, sizes=(8, 12)),
    labels(max_classes=4, max_samples=3),
    st.floats(0.1, 100),
    st.integers(0, 99),
)
def test_negatives_and_objectives_agree_with_the_slow_oracle(generator, y, level, seed):
    assume(len(y) > 1)  # the oracle's root has no slope at 0
    z = embeddings(generator, len(y), seed)
    draws = torch.rand(len(y), len(y), dtype=torch.float64)
    negatives = generate(generator, z, y, len(y), level, draws=draws)
    expected = oracle.objectives(generator, z, y.tolist(), draws, level)
    assert negatives.anchors.tolist() == [i for i, _, _ in expected.negatives]
    assert negatives.labels.tolist() == [label for _, label, _ in expected.negatives]
    names = y.tolist()
    assert negatives.num_skipped_anchors == sum(names.count(name) == 1 for name in names)
    for ours, (_, _, wanted) in zip(negatives.embeddings, expected.negatives, strict=True):
        torch.testing.assert_close(ours, wanted)

    terms = negatives.objectives
    parameters = list(generator.parameters())
    pairs = (
        ("node_classification_loss", expected.node_classification, True),
        ("generation_loss", expected.generator, False),
        ("auxiliary_classification_loss", expected.auxiliary, False),
    )
    for name, wanted, reaches_embeddings in pairs:
        torch.testing.assert_close(terms[name], wanted)
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        ours = torch.autograd.grad(terms[name], [z, *parameters], **options)
        theirs = torch.autograd.grad(wanted, [z, *parameters], **options)
        assert reaches_embeddings or not ours[0].any()
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if k or reaches_embeddings:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)

    # Synthetic negatives carry gradient to the embeddings, with coefficients held fixed, and to nothing else.
    if len(negatives):
        weight = torch.randn_like(negatives.embeddings)
        (ours,) = torch.autograd.grad((negatives.embeddings * weight).sum(), z)
        total = sum((w * synthetic).sum() for w, (_, _, synthetic) in zip(weight, expected.negatives, strict=True))
        (theirs,) = torch.autograd.grad(total, z)
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=30)
@given(
    generators(dropout=0.1),
    labels(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from(DEVICES),
)
def test_any_composition_gives_labelled_finite_negatives(generator, y, dtype, device):
    z = embeddings(generator.float(), len(y), dtype=dtype, device=device)
    negatives = generator(z, y)
    names = y.tolist()
    classes = len(set(names))
    anchors = sum(names.count(name) > 1 for name in names)
    assert negatives.embeddings.shape == (anchors * (classes - 1), z.shape[1])
    assert negatives.labels.shape == negatives.anchors.shape == (len(negatives),)
    assert negatives.embeddings.dtype == dtype
    assert negatives.labels.dtype == negatives.anchors.dtype == torch.long
    assert (negatives.labels.cpu() != y[negatives.anchors.cpu()]).all()
    (negatives.embeddings.float().square().mean(dim=0).sum() + sum(negatives.objectives.values())).backward()
    assert torch.isfinite(z.grad).all()
    for parameter in generator.parameters():
        assert torch.isfinite(parameter.grad).all()


@settings(max_examples=15)
@given(generators(), labels(max_samples=2), st.data())
def test_permuting_the_batch_permutes_the_negatives(generator, y, data):
    """With two samples a class at most, the next positive does not depend on the order."""
    z = embeddings(generator, len(y))
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    draws = torch.ones(len(y), len(y), dtype=torch.float64)  # the first candidate of a class is kept
    first = {label: y.tolist().index(label) for label in y.tolist()}
    wanted = {}
    for i, label, row in _rows(generate(generator, z, y, len(y), math.inf, draws=draws)):
        wanted[i, label] = row
    moved = torch.zeros_like(draws)  # the same candidate wins, wherever it stands now
    permuted_labels = y[order]
    for j, old in enumerate(order.tolist()):
        moved[:, j] = 0.0 if first[y[old].item()] == old else 1.0
    for i, label, row in _rows(generate(generator, z[order], permuted_labels, len(y), math.inf, draws=moved)):
        torch.testing.assert_close(row, wanted[order[i].item(), label])


def _rows(negatives):
    return list(zip(negatives.anchors.tolist(), negatives.labels.tolist(), negatives.embeddings, strict=True))


@settings(max_examples=15)
@given(generators(), labels(), st.permutations(range(NUM_CLASSES)))
def test_renaming_labels_changes_only_classification_terms(generator, y, names):
    z = embeddings(generator, len(y))
    draws = torch.rand(len(y), len(y), dtype=torch.float64)
    renamed = torch.tensor(names)[y]
    generator.start_collecting_stats()
    before = {(i, names[label]): row for i, label, row in _rows(generate(generator, z, y, len(y), 1.0, draws=draws))}
    terms = generator.similarity_loss, generator.diversity_loss
    for i, label, row in _rows(generate(generator, z, renamed, len(y), 1.0, draws=draws)):
        torch.testing.assert_close(row, before[i, label])
    assert (generator.similarity_loss, generator.diversity_loss) == pytest.approx(terms)


def test_rows_beyond_num_anchors_are_references():
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(9, 8, dropout=0.0).double()
    y = torch.tensor([0, 1, 2, 0, 1, 1, 5])
    z = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    draws = torch.rand(3, 7, dtype=torch.float64)
    negatives = generate(generator, z, y, 3, math.inf, draws=draws)
    # Anchors 0 and 1 have positives among the references only; anchor 2 has none; class 5 is there as a negative.
    assert list(zip(negatives.anchors.tolist(), negatives.labels.tolist(), strict=True)) == [
        (0, 1), (0, 2), (0, 5), (1, 0), (1, 2), (1, 5),
    ]  # fmt: skip
    (negatives.embeddings.square().sum() + sum(negatives.objectives.values())).backward()
    assert z.grad[:3].any(dim=1).all()
    assert not z.grad[3:].any()


def test_interpolation_strength_of_extreme_levels():
    generator = GlobalCorrelationGenerator(5, 8, alpha=5.0)
    assert generator.interpolation_strength(math.inf) == 1
    assert generator.interpolation_strength(0.0) == 0
    assert generator.interpolation_strength(-1.0) == 0
    assert generator.interpolation_strength(2.0) == pytest.approx(math.exp(-2.5))
    assert GlobalCorrelationGenerator(5, 8, alpha=0.0).interpolation_strength(0.0) == 1


def test_evaluation_generates_without_objectives_and_without_changing_anything():
    generator = GlobalCorrelationGenerator(5, 8).eval()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    negatives = generator(torch.randn(6, 8), torch.arange(6) % 3)
    assert len(negatives) == 12
    assert not negatives.objectives
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"embedding_size": 10, "num_heads": 4},
            ValueError,
            "embedding_size must be divisible by num_heads, got 10 channels for 4",
        ),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an integer, got float"),
        ({"num_layers": -1}, ValueError, "num_layers must be at least 0, got -1"),
        ({"num_heads": True}, TypeError, "num_heads must be an integer, got bool"),
        ({"alpha": -1}, ValueError, "alpha must be a finite number of at least 0, got -1"),
        ({"alpha": math.nan}, ValueError, "alpha must be a finite number of at least 0, got nan"),
        ({"dropout": 1.0}, ValueError, "dropout must be below 1, got 1.0"),
        ({"classification_weight": -0.1}, ValueError, "classification_weight must be .* at least 0, got -0.1"),
        ({"similarity_weight": "20"}, TypeError, "similarity_weight must be a number, got str"),
        ({"diversity_weight": math.inf}, ValueError, "diversity_weight must be a finite number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GlobalCorrelationGenerator(**{"num_classes": 5, "embedding_size": 8, **arguments})


def test_numbers_of_numpy_are_numbers():
    generator = GlobalCorrelationGenerator(np.int64(5), np.int32(8), alpha=np.float32(2))
    assert len(generator(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))) == 4


Z, Y = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
BAD_BATCHES = [
    (Z.tolist(), Y, TypeError, "embeddings must be a torch.Tensor, got list"),
    (Z.long(), Y, TypeError, "embeddings must be floating point, got torch.int64"),
    (Z[0], Y, ValueError, r"embeddings must be 2-D .* got 1-D, shape \(8,\)"),
    (Z[:, :7], Y, ValueError, "embeddings must have 8 channels, the generator's embedding_size, got 7"),
    (Z.clone().fill_(math.nan), Y, ValueError, "embeddings must be finite, got 32 NaN and 0 infinite of 32 values"),
    (Z.clone().fill_(-math.inf), Y, ValueError, "embeddings must be finite, got 0 NaN and 32 infinite of 32 values"),
    (Z, Y.tolist(), TypeError, "labels must be a torch.Tensor, got list"),
    (Z, Y.float(), TypeError, "labels must be integers, got torch.float32"),
    (Z, Y.bool(), TypeError, "labels must be integers, got torch.bool"),
    (Z, Y[:, None], ValueError, r"labels must be 1-D .* got 2-D"),
    (Z, Y[:3], ValueError, "labels must be as many as embeddings: expected 4, got 3"),
    (Z, Y - 1, ValueError, r"labels must lie in \[0, num_classes\) = \[0, 5\), got values from -1 to 0"),
    (Z, Y + 4, ValueError, "got values from 4 to 5.*dataset_labels.*set_min_label_to_zero"),
]


@pytest.mark.parametrize("method", ["forward", "correlate"])
@pytest.mark.parametrize(("z", "y", "error", "message"), BAD_BATCHES)
def test_bad_batches_are_named_and_change_nothing(method, z, y, error, message):
    generator = GlobalCorrelationGenerator(5, 8)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    with pytest.raises(error, match=message):
        getattr(generator, method)(z, y)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_num_anchors_out_of_range():
    with pytest.raises(ValueError, match=r"num_anchors must lie in \[0, 4\], the batch size, got 5"):
        GlobalCorrelationGenerator(5, 8)(Z, Y, num_anchors=5)


@pytest.mark.parametrize(
    ("z", "y"),
    [
        (torch.randn(0, 8), []),
        (torch.randn(1, 8), [2]),
        (torch.randn(5, 8), [3] * 5),
        (torch.randn(4, 8), [0, 1, 2, 3]),
        (torch.randn(1, 8).expand(6, 8), [0, 0, 1, 1, 2, 2]),
        (torch.zeros(6, 8), [0, 0, 1, 1, 2, 2]),
        (torch.full((6, 8), 1e18), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["empty", "one sample", "one class", "singletons", "duplicates", "zeros", "huge constants"],
)
def test_degenerate_batches_are_finite_with_a_graph(z, y):
    generator = GlobalCorrelationGenerator(5, 8)
    z = z.clone().requires_grad_()
    negatives = generator(z, torch.tensor(y, dtype=torch.long))
    assert len(negatives) == (12 if len(set(y)) == 3 else 0)
    total = negatives.embeddings.sum() + sum(negatives.objectives.values())
    total.backward()
    for tensor in (total, z.grad, *(p.grad for p in generator.parameters())):
        assert torch.isfinite(tensor).all()


def test_negatives_alone_leave_the_generator_without_gradients():
    """An optimizer would take gradients of zero for a reason to decay weights; and out of training no graph is kept."""
    generator = GlobalCorrelationGenerator(5, 8)
    kept = []
    generator.propagation.register_forward_hook(lambda *args: kept.append(args[-1].coefficients.requires_grad))
    z, y = torch.randn(6, 8, requires_grad=True), torch.arange(6) % 3
    for training in (True, False):
        generator.train(training)(z, y).embeddings.sum().backward()
        assert all(p.grad is None for p in generator.parameters())
    assert z.grad.any()
    assert kept == [True, False]


@pytest.mark.parametrize(("channels", "heads"), [(50, 2), (512, 4), (7, 1), (9, 3), (6, 3), (1, 1), (8, 4)])
def test_heads_are_by_default_the_largest_divisor_up_to_four(channels, heads):
    generator = GlobalCorrelationGenerator(5, channels)
    assert [layer.node.num_heads for layer in generator.propagation.layers] == [heads, heads]
    negatives = generator(torch.randn(6, channels), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert negatives.embeddings.isfinite().all()


def test_heads_that_are_asked_for_must_divide_the_channels():
    with pytest.raises(ValueError, match="embedding_size must be divisible by num_heads, got 50 channels for 4 heads"):
        GlobalCorrelationGenerator(5, 50, num_heads=4)
