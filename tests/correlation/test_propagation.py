import pytest
import torch
from helpers import oracle
from helpers.strategies import DEVICES, NUM_CLASSES, embeddings, generators, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.correlation.blocks import ScaleBatchNorm, negative_attention
from pml_gca.correlation.propagation import CorrelationPropagation


@settings(max_examples=12)
@given(generators(max_layers=3, sizes=(8, 12)), labels(max_classes=4, max_samples=3), st.integers(0, 99))
def test_agrees_with_the_slow_oracle_gradients_included(generator, y, seed):
    z = embeddings(generator, len(y), seed)
    correlations = generator.correlate(z, y)
    expected = oracle.propagate(generator.propagation, z, y.tolist())
    torch.testing.assert_close(correlations.node_logits, expected.logits)
    torch.testing.assert_close(correlations.dense(), expected.coefficients)
    if len(y) > 1:
        for norm, (mean, variance) in (
            (generator.propagation.node_norm, expected.node_statistics),
            (generator.propagation.edge_norm, expected.edge_statistics),
        ):
            torch.testing.assert_close(norm.running_mean, mean)
            torch.testing.assert_close(norm.running_var, variance)

    weights = torch.randn(len(y), len(y), z.shape[1], dtype=z.dtype)
    scores = torch.randn(len(y), NUM_CLASSES, dtype=z.dtype)
    inputs = [z, *generator.propagation.parameters()]

    def gradients(logits, coefficients):
        total = (logits * scores).sum() + (coefficients * weights).sum()
        return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)

    ours = gradients(correlations.node_logits, correlations.dense())
    for actual, wanted in zip(ours, gradients(expected.logits, expected.coefficients), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-7)


@settings(max_examples=25)
@given(generators(), labels(), st.data())
def test_permuting_the_batch_permutes_the_output(generator, y, data):
    z = embeddings(generator, len(y))
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    plain, permuted = generator.correlate(z, y), generator.correlate(z[order], y[order])
    torch.testing.assert_close(permuted.node_logits, plain.node_logits[order])
    torch.testing.assert_close(permuted.dense(), plain.dense()[order][:, order])


@settings(max_examples=20)
@given(generators(), labels(), st.permutations(range(NUM_CLASSES)))
def test_renaming_labels_changes_nothing_in_the_graph(generator, y, names):
    z = embeddings(generator, len(y))
    renamed = torch.tensor(names)[y]
    plain, other = generator.correlate(z, y), generator.correlate(z, renamed)
    torch.testing.assert_close(other.node_logits, plain.node_logits)
    torch.testing.assert_close(other.coefficients, plain.coefficients)


@settings(max_examples=20)
@given(
    generators(dropout=0.1),
    labels(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.sampled_from(DEVICES),
)
def test_shapes_dtypes_and_finite_values(generator, y, dtype, parameter_dtype, training, device):
    generator.to(parameter_dtype).train(training)  # and to the device of the embeddings by itself
    z = embeddings(generator, len(y), dtype=dtype, device=device)
    correlations = generator.correlate(z, y)
    n, d = z.shape
    assert correlations.node_logits.shape == (n, NUM_CLASSES)
    assert correlations.pairs.shape == (2, n * (n + 1) // 2)
    assert correlations.coefficients.shape == (n * (n + 1) // 2, d)
    assert correlations.dense().shape == (n, n, d)
    widest = torch.promote_types(parameter_dtype, dtype)
    assert correlations.node_logits.dtype == correlations.coefficients.dtype == widest
    assert correlations.coefficients.min() >= 0
    assert correlations.coefficients.max() <= 1
    (correlations.node_logits.square().mean() + correlations.coefficients.square().mean()).backward()
    for tensor in (correlations.node_logits, correlations.coefficients, z.grad):
        assert torch.isfinite(tensor).all()
    assert z.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_agrees_with_float32(dtype):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(5, 64, dropout=0.0)
    z, y = torch.randn(12, 64), torch.arange(12) % 4
    plain = generator.correlate(z, y)
    with torch.autocast("cpu", dtype=dtype):
        cast = generator.correlate(z, y)
        half = generator.correlate(z.to(dtype), y)  # what a network under autocast hands over
    assert cast.coefficients.dtype == dtype
    for other in (cast, half):
        torch.testing.assert_close(other.coefficients.float(), plain.coefficients, rtol=0, atol=3e-2)


def test_the_sink_gives_a_node_without_negatives_a_zero_message():
    message = negative_attention(*torch.randn(3, 5, 8), torch.zeros(5, dtype=torch.long), num_heads=2)
    assert not message.any()


def test_two_way_attention_dropout_drops_either_end():
    generator = GlobalCorrelationGenerator(5, 8, dropout=0.5)
    z, y = torch.randn(6, 8), torch.arange(6) % 2
    assert not torch.equal(generator.correlate(z, y).coefficients, generator.correlate(z, y).coefficients)
    generator.eval()
    assert torch.equal(generator.correlate(z, y).coefficients, generator.correlate(z, y).coefficients)


def test_batch_norm_agrees_with_torch_on_repeated_rows():
    x, weights = torch.randn(6, 4, dtype=torch.float64), torch.tensor([1, 2, 2, 1, 2, 1])
    ours, theirs = ScaleBatchNorm(4).double(), torch.nn.BatchNorm1d(4).double()
    repeated = x.repeat_interleave(weights, dim=0)
    actual, expected = ours(x, weights), theirs(repeated)
    torch.testing.assert_close(actual.repeat_interleave(weights, dim=0), expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_too_few_rows_leaves_statistics_alone(rows):
    norm = ScaleBatchNorm(4)
    assert norm(torch.randn(rows, 4)).abs().sum() == 0
    assert norm.num_batches_tracked == 0
    assert norm.running_var.eq(1).all()


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("way", ["miner", "no_grad", "evaluation", "correlate", "loss in evaluation"])
def test_a_pass_without_gradients_leaves_nothing_in_the_cache_of_autocast(way, num_layers):
    """Else the parameters of a training pass in the same autocast get no gradient from weights that were cast there."""
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(5, 8, num_layers=num_layers, num_heads=2)
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)
    z, y = torch.randn(8, 8, requires_grad=True), torch.arange(8) % 4
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (generator.propagation.node_classifier, generator.propagation.edge_coefficients):
            module.register_forward_pre_hook(
                lambda *args: seen.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
            )
        if way == "miner":
            GlobalCorrelationMiner(generator)(z, y)
        elif way == "evaluation":
            generator.eval()(z, y)
            generator.train()
        elif way == "loss in evaluation":
            loss.eval()(z, y)
            loss.train()
        else:
            with torch.no_grad():
                (generator if way == "no_grad" else generator.correlate)(z, y)
        value = loss(z, y)
        assert torch.is_autocast_cache_enabled()
    value.backward()
    assert all(caches == learns for learns, caches in seen)
    assert (True, True) in seen
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("way", ["forward", "forward_plain"])
def test_a_graph_without_coefficients_classifies_alike(way, num_layers):
    whole, part = (
        CorrelationPropagation(
            NUM_CLASSES, 8, num_layers=num_layers, num_heads=2, dropout=0.0, with_coefficients=with_coefficients
        ).double()
        for with_coefficients in (True, False)
    )
    only_for_coefficients = ("edge_norm.", "edge_coefficients.", f"layers.{num_layers - 1}.edge.")
    needed = {name: x for name, x in whole.state_dict().items() if not name.startswith(only_for_coefficients)}
    part.load_state_dict(needed)  # and there is nothing else
    z, y = torch.randn(7, 8, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 0, 3])
    found = [getattr(propagation, way)(z, y) for propagation in (whole, part)]
    assert found[1].coefficients.shape == (0, 8)
    torch.testing.assert_close(found[1].node_logits, found[0].node_logits)
    of = [
        torch.autograd.grad(x.node_logits.square().sum(), [z, *p.parameters()], materialize_grads=True)
        for x, p in zip(found, (whole, part), strict=True)
    ]
    torch.testing.assert_close(of[1][0], of[0][0])
    assert all(gradient.any() for gradient in of[1] if gradient.numel() > 8)
