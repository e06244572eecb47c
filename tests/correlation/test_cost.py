"""What `cost` says before a step, against what is counted during one; and what is chosen for lack of memory."""

import contextlib
import itertools
import re
import warnings

import pytest
import torch
from helpers.counters import LiveBytes, MultiplyAdds
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.correlation.cost import _free_in_container, choose_memory, free_memory, step_bytes
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.sweeps.propagate import plan_sweeps
from pml_gca.correlation.tiles import default_chunk_size

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Free memory is what a test says it is, and plenty before."""

    def set_free(size):
        monkeypatch.setattr("pml_gca.correlation.cost.free_memory", lambda device: size)

    set_free(10**12)
    return set_free


def make(size=32, num_layers=2, edge_chunk_size=None, num_classes=40, **kwargs):
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(
        num_classes, size, num_layers=num_layers, edge_chunk_size=edge_chunk_size, **kwargs
    )


def batch(count, size=32, samples_per_class=3):
    z = torch.linspace(-9, 9, count * size).sin().view(count, size)
    return z.requires_grad_(), torch.arange(count) // samples_per_class


def step(generator, count, samples_per_class=3, loss=None):
    loss = loss or HardNegativeGenerationLoss(losses.NPairsLoss(), generator)
    loss(*batch(count, generator.embedding_size, samples_per_class)).backward()
    return loss


def generator_step(generator, count, samples_per_class):
    """Forward and backward of the generator alone."""
    negatives = generator(*batch(count, generator.embedding_size, samples_per_class))
    (sum(negatives.objectives.values()) + negatives.embeddings.sum()).backward()


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(
    ("count", "size", "num_layers", "samples_per_class", "num_classes"),
    [(12, 16, 1, 2, 9), (12, 16, 2, 3, 9), (13, 16, 3, 13, 9), (16, 32, 3, 2, 40), (1, 8, 2, 1, 5), (8, 8, 1, 1, 9)],
)
def test_multiply_adds_are_those_counted(count, size, num_layers, samples_per_class, num_classes, keeps):
    among = "batch" if size == 32 else "all"
    for chunk in (None,) if keeps else (30, 10_000):
        generator = make(size, num_layers, chunk, num_classes, classify_among=among)
        cost = generator.cost(count, samples_per_class)
        assert cost.keeps_activations == keeps
        with MultiplyAdds() as counted:
            generator_step(generator, count, samples_per_class)
        if samples_per_class == 1:  # no anchor has a positive, so that nothing is generated
            assert 0.7 * cost.multiply_adds < counted.total <= cost.multiply_adds
        else:
            assert counted.total == cost.multiply_adds


def peak_of_a_step(generator, count):
    loss = step(generator, count)  # gradients are there from now on
    with LiveBytes() as live:
        step(generator, count, loss=loss)
    return live.peak


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_bytes_are_near_the_peak_of_what_is_alive(num_layers):
    kept, recomputed = (make(num_layers=num_layers, edge_chunk_size=chunk) for chunk in (None, 256))
    peaks = [peak_of_a_step(generator, 72) for generator in (kept, recomputed)]
    for generator, peak in zip((kept, recomputed), peaks, strict=True):
        assert 0.85 < generator.cost(72, 3).bytes / peak < 1.35
    assert peaks[1] < peaks[0] / 2
    # An edge tensor a layer and the coefficients, gradients, and negatives; the rest is work in small chunks.
    assert peaks[1] < (7 + 2 * num_layers) * (72 * 73 // 2 * 32 * 4)


@pytest.mark.parametrize("chunk", [None, 256])
def test_bytes_under_autocast(chunk):
    generator = make(edge_chunk_size=chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = generator.cost(72, 3).bytes
        assert 0.85 < cost / peak_of_a_step(generator, 72) < 1.35
    assert cost < generator.cost(72, 3).bytes


def test_cost_grows_as_documented():
    generator = make(num_layers=2)
    costs = [generator.cost(count) for count in (64, 128, 256)]
    for small, large in itertools.pairwise(costs):
        assert 3 < large.multiply_adds / small.multiply_adds < 4.3
        assert large.bytes > small.bytes
    kept, recomputed = generator.cost(128), make(edge_chunk_size=256).cost(128)
    assert 1.1 < recomputed.multiply_adds / kept.multiply_adds < 1.3  # a fifth more
    assert recomputed.bytes < kept.bytes / 2
    assert generator.cost(81, 3).multiply_adds < generator.cost(81, 2).multiply_adds  # of fewer negatives


def test_the_cost_is_readable():
    kept, recomputed = (str(make(edge_chunk_size=chunk).cost(81)) for chunk in (None, 2048))
    pattern = r"batch of 81: \d+\.\d G multiply-adds, \d+\.\d\d GB \(activations {}\)"
    assert re.fullmatch(pattern.format("kept"), kept)
    assert re.fullmatch(pattern.format("recomputed in chunks of 2048 edges"), recomputed)


def test_asking_for_the_cost_changes_nothing():
    generator = make()
    before = torch.random.get_rng_state(), {k: v.clone() for k, v in generator.state_dict().items()}
    with LiveBytes() as live:
        generator.cost(10_000)
    assert live.peak == 0
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in generator.state_dict().items())


# What is chosen.


def chosen(generator, count):
    plan = plan_sweeps(generator.propagation, EdgeList(count), CPU)
    return plan.keep_hidden, max(tile.rows.stop - tile.rows.start for tile in plan.tiles)


def test_activations_are_kept_where_half_of_the_memory_is_enough(memory):
    needed = make().cost(96).bytes
    for free, keeps in ((2 * needed, True), (2 * needed - 2, False), (None, True)):
        memory(free)
        generator = make()
        assert generator.cost(96).keeps_activations == keeps
        assert chosen(generator, 96)[0] == keeps


def test_chunks_shrink_with_the_memory_until_they_are_small(memory):
    wide = default_chunk_size(32, CPU)
    sizes = {}
    for free in (10**12, 12 * 10**7, 10**7, 6 * 10**6, 5 * 10**6):
        memory(free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cost = make().cost(96)
        sizes[free] = cost.edge_chunk_size
        assert cost.keeps_activations == (free > 10**8)
        if not cost.keeps_activations:  # until it fits, or the chunk is not what fills the memory
            half = step_bytes(make().propagation.sizes(96, 96 * 47), False, cost.edge_chunk_size // 2)
            assert cost.bytes <= 0.9 * free or half > 0.95 * cost.bytes
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes[10**12] == wide
    assert sizes[5 * 10**6] < 1000


@pytest.mark.parametrize("chunk", [1, 100, 10_000])
def test_a_chosen_chunk_size_is_kept_to_whatever_the_memory(memory, chunk):
    for free in (10**12, None, 10**5):
        memory(free)
        generator = make(edge_chunk_size=chunk)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cost = generator.cost(20)
            assert (cost.keeps_activations, cost.edge_chunk_size) == (False, chunk)
            keeps, largest = chosen(generator, 20)
        assert not keeps
        assert largest <= chunk


def test_values_do_not_depend_on_the_choice(memory):
    results = []
    for free in (10**12, 2 * 10**6, 10**4):
        memory(free)
        generator = make(dropout=0.1).double()
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator)
            z, y = batch(30)
            z = z.detach().double().requires_grad_()
            value = loss(z, y)
            value.backward()
        results.append([value, z.grad, *(p.grad for p in generator.parameters()), *generator.buffers()])
        assert chosen(generator, 30)[0] == (free == 10**12)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# What does not fit.


@pytest.mark.parametrize("chunk", [None, 4000])
def test_warning_comes_before_large_allocations(memory, chunk):
    generator = make(edge_chunk_size=chunk)
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator)
    z, y = batch(96)
    memory(10**6)
    with warnings.catch_warnings(), LiveBytes() as live:
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="edge_chunk_size"):
            loss(z, y)
    assert live.peak < 96 * 97 // 2 * 4 * 4  # not even a few values per edge


def test_warning_once_per_size_and_only_with_gradients(memory):
    memory(10**5)
    generator = make()
    (small, small_labels), (large, large_labels) = batch(12), batch(15)

    def correlate(z, y, message):
        expectation = pytest.warns(UserWarning, match=message) if message else contextlib.nullcontext()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with expectation:
                generator.correlate(z, y)

    with torch.no_grad():
        correlate(small, small_labels, None)
    correlate(small, small_labels, "A training step over 12 nodes .* needs about .* GB, and 0.0001 GB are free on cpu")
    correlate(small, small_labels, None)
    correlate(large, large_labels, "edge_chunk_size")
    correlate(large, large_labels, None)
    correlate(small, small_labels, None)


def test_the_advice_is_to_the_point(memory):
    memory(8 * 10**6)
    with pytest.warns(UserWarning, match="Set edge_chunk_size to a smaller one"):
        make(edge_chunk_size=4656).cost(96)
    memory(5 * 10**6)
    with pytest.warns(UserWarning, match=r"No edge_chunk_size makes it fit .*take a smaller batch"):
        make(edge_chunk_size=1).cost(96)


def test_a_cost_that_does_not_fit_warns(memory):
    memory(10**6)
    with pytest.warns(UserWarning, match="edge_chunk_size"):
        make().cost(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory(None)
        assert make().cost(200).keeps_activations


def test_free_memory_of_the_host_and_of_devices_that_do_not_tell():
    free = free_memory(CPU)
    assert free is None or (isinstance(free, int) and free > 0)
    assert free_memory(torch.device("meta")) is None


def test_choice_without_knowledge_of_the_memory(memory):
    memory(None)
    sizes = make().propagation.sizes(5000, 0)
    assert choose_memory(sizes, None, CPU) == (True, default_chunk_size(32, CPU))
    assert choose_memory(sizes, 7, CPU) == (False, 7)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "edge_chunk_size must be at least 1, got 0"),
        (-3, ValueError, "edge_chunk_size must be at least 1, got -3"),
        (2.5, TypeError, "edge_chunk_size must be an integer, got float"),
        (True, TypeError, "edge_chunk_size must be an integer, got bool"),
        ("8", TypeError, "edge_chunk_size must be an integer, got str"),
    ],
)
def test_bad_chunk_sizes(value, error, message):
    with pytest.raises(error, match=message):
        make(edge_chunk_size=value)
    generator = make()
    with pytest.raises(error, match=message):
        generator.edge_chunk_size = value
    assert generator.edge_chunk_size is None


def test_the_chunk_size_may_be_changed():
    generator = make()
    generator.edge_chunk_size = 5
    assert generator.cost(20).edge_chunk_size == generator.edge_chunk_size == 5
    assert chosen(generator, 20) == (False, 5)
    generator.edge_chunk_size = None
    assert chosen(generator, 20)[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "batch_size must be at least 1, got 0"),
        ((2.5,), TypeError, "batch_size must be an integer, got float"),
        ((8, 0), ValueError, "samples_per_class must be at least 1, got 0"),
        ((8, "2"), TypeError, "samples_per_class must be an integer, got str"),
    ],
)
def test_bad_sizes_of_a_batch(arguments, error, message):
    with pytest.raises(error, match=message):
        make().cost(*arguments)


def test_files_that_were_read_count_as_free_in_a_container(tmp_path):
    for name, text in {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "anon 500\ninactive_file 300\nactive_file 50\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert _free_in_container(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max")
    assert _free_in_container(tmp_path) is None
