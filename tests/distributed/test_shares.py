"""Which edges are whose, and when a loss may share them."""

import re

import pytest
import torch
from helpers.every_loss import NUM_CLASSES, SIZE
from helpers.gathering.steps import alone, differences, draw, kept, make_loss, make_rows, make_trunk
from helpers.sharding.graphs import MIXED, gca
from pytorch_metric_learning.losses import ContrastiveLoss

from pml_gca import HardNegativeGenerationLoss
from pml_gca.correlation.correlations import Correlations
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import edge_pairs
from pml_gca.distributed.processes import Processes
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator


def hardest():
    return HardestNegativeGenerator(NUM_CLASSES, SIZE)


CPU = torch.device("cpu")


def shares(num_nodes, size, num_memory=0):
    return [EdgeList.share(num_nodes, Processes(None, rank, size), num_memory) for rank in range(size)]


@pytest.mark.parametrize("num_nodes", [2, 3, 7, 8, 23, 24, 64, 81])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 30])
@pytest.mark.parametrize("num_memory", [0, 5])
def test_every_edge_belongs_to_one_process(num_nodes, size, num_memory):
    total = num_nodes + num_memory
    found = torch.cat([share.pairs(CPU) for share in shares(total, size, num_memory)], dim=1)
    expected = edge_pairs(total, num_memory=num_memory)
    first, wanted = (set(map(tuple, pairs.t().tolist())) for pairs in (found, expected))
    assert found.shape == expected.shape
    assert first == wanted


@pytest.mark.parametrize(("num_nodes", "size"), [(512, 2), (512, 8), (512, 64), (513, 3), (8192, 64), (1024, 16)])
def test_all_have_the_same_load_where_they_have_as_many_nodes(num_nodes, size):
    loads = [share.num_edges for share in shares(num_nodes, size)]
    assert sum(loads) == num_nodes * (num_nodes + 1) // 2
    assert max(loads) * size / sum(loads) < 1.003


@pytest.mark.parametrize("num_nodes", [100, 101, 512])
def test_else_one_node_more(num_nodes):
    for share in shares(num_nodes, 7):
        assert num_nodes // 7 * (num_nodes // 2) <= share.num_edges <= -(-num_nodes // 7) * (num_nodes // 2 + 1)


@pytest.mark.parametrize("num_nodes", [5, 6])
@pytest.mark.parametrize("num_memory", [0, 3])
def test_random_values_are_those_of_one_process(num_nodes, num_memory):
    total = num_nodes + num_memory
    whole = torch.arange(len(edge_pairs(total, num_memory=num_memory)[0])).expand(2, -1)
    for share in shares(total, 3, num_memory):
        pairs = edge_pairs(total, num_memory=num_memory)[:, share.own(lambda n: whole[0, :n], CPU)]
        assert torch.equal(pairs, share.pairs(CPU))
        assert share.own(lambda n: whole[:, :n], CPU).shape == (2, share.num_edges)


def test_one_node_or_one_process_shares_nothing():
    assert EdgeList.share(1, Processes(None, 1, 2)) == EdgeList(1)
    assert EdgeList.share(9, None) == EdgeList(9)


def test_a_share_has_no_dense_coefficients():
    share = shares(9, 3)[0]
    found = Correlations(torch.zeros(9, 2), torch.zeros(share.num_edges, 4), torch.zeros(9, 4), 8, listed=share)
    assert found.pairs.shape == (2, 15)
    for make in (found.dense, found.mean_coefficients):
        with pytest.raises(ValueError, match="this one has 15 of 45 edges here"):
            make()


def test_one_process_shares_with_nobody():
    trunk, loss = make_trunk(), make_loss(generator=gca, shard_edges=True)
    x, y = make_rows(MIXED)
    draw(77, gather=False)
    value = loss(trunk(x), y)
    value.backward()
    assert differences("alone", kept(value, trunk, loss), alone(MIXED, generator=gca), rtol=0) == []


@pytest.mark.parametrize(
    ("make_generator", "gathers", "shares", "error", "message"),
    [
        (gca, True, 2, TypeError, "shard_edges must be a bool, got int"),
        (gca, False, True, ValueError, "set gather_across_devices=True, too"),
        (
            hardest,
            True,
            True,
            ValueError,
            "shares the work of the generator's graph, and HardestNegativeGenerator has none",
        ),
        (
            lambda: ClassifiedGenerator(hardest()),
            True,
            True,
            ValueError,
            "shares the work of the generator's graph, and ClassifiedGenerator without layers (num_layers=0) has none",
        ),
    ],
)
def test_what_a_loss_cannot_share(make_generator, gathers, shares, error, message):
    with pytest.raises(error, match=re.escape(message)):
        HardNegativeGenerationLoss(
            ContrastiveLoss(), make_generator(), gather_across_devices=gathers, shard_edges=shares
        )


def test_the_cost_of_a_share():
    generator = gca()
    one, four = generator.cost(64), generator.cost(64, num_processes=4)
    assert (one.num_processes, one.exchanged_values) == (1, 0)
    assert four.exchanged_values == 11 * 64 * 8 + 64 * 31 * 8 + 4 * 64 + 4 * 8 + 2 + 19 * 64 + 34 * 8
    assert 0.25 < four.multiply_adds / one.multiply_adds < 0.4
    assert four.bytes < one.bytes
    assert "processes" not in str(one)
    assert str(four).endswith("(activations kept), of 4 processes that exchange 23.3 k values each")
    with pytest.raises(ValueError, match="num_processes must be"):
        generator.cost(64, num_processes=0)
