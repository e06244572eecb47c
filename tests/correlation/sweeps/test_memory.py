"""What the swept propagation keeps for the backward pass."""

import pytest
import torch
from helpers.counters import LiveBytes
from helpers.strategies import small_generator

from pml_gca.correlation.edges import edge_pairs


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_kept_without_gradients(off, training, monkeypatch):
    monkeypatch.setattr("pml_gca.correlation.tiles.CPU_TILE_VALUES", 16 * 40)
    propagation, z, y = small_generator().propagation.train(training), torch.randn(60, 16), torch.arange(60) // 3
    with LiveBytes() as live:
        found = propagation(z, y)  # with gradients before, which decides to keep activations
        edges = found.coefficients.nbytes
        assert live.now > (3 + 2 * 9) * edges
    with off(), LiveBytes() as live:
        found = propagation(z, y)
        assert live.now <= edges + found.pairs.nbytes + found.node_logits.nbytes + 1000
        assert live.peak < 4 * edges
    assert not found.coefficients.requires_grad


def test_activations_are_kept_only_where_that_was_chosen():
    kept = {}
    for chunk in (None, 10_000):
        propagation, z, y = small_generator(edge_chunk_size=chunk).propagation, torch.randn(60, 16), torch.arange(60)
        with LiveBytes() as live:
            found = propagation(z, y % 6)
            size = found.coefficients.nbytes
            kept[chunk] = live.of_at_least(size) / size, live.now / size
    assert kept[10_000][0] == 2 + 1  # (E, D) tensors: one a layer, and the coefficients
    attention = 2 * propagation.layers[0].node.num_heads * 60 * 61 * 4 / size  # the weights of two layers
    assert kept[None][1] - kept[10_000][1] == pytest.approx(2 * 9 + attention, abs=0.2)


def test_pairs_are_those_of_the_graph():
    propagation, y = small_generator().propagation, torch.arange(7) % 3
    assert torch.equal(propagation(torch.randn(7, 16), y).pairs, edge_pairs(7))
