"""What a training step copies of the edges: each copy is a pass over memory, which a GPU waits for."""

import collections

import pytest
import torch
from pytorch_metric_learning import losses
from torch.utils._python_dispatch import TorchDispatchMode

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

SIZE, COUNT = 16, 9
EDGE_VALUES = COUNT * (COUNT + 1) // 2 * SIZE


class Copies(TorchDispatchMode):
    """Count operations that only move values, as many as the edges have or more, by name and size.

    `onto_itself` counts copies of any size onto their own source, as `x[rows] += y` makes one.
    """

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()
        self.onto_itself = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._overloadpacket.__name__
        if name in ("copy_", "clone", "constant_pad_nd", "_to_copy") and result.numel() >= EDGE_VALUES:
            self.found[name, result.numel() // EDGE_VALUES] += 1
        if name == "copy_" and args[0].numel() and args[0].data_ptr() == args[1].data_ptr():
            self.onto_itself += 1
        return result


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_step_copies_edges_only_where_sums_need_them(num_layers):
    generator = GlobalCorrelationGenerator(2, SIZE, num_layers=num_layers, num_heads=2)
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator)
    loss.levels.metric.value.fill_(3.0)
    loss.levels.generator.value.fill_(3.0)
    labels = torch.arange(COUNT) % 2  # fewer negatives than edges
    for _ in range(2):
        loss(torch.randn(COUNT, SIZE, requires_grad=True), labels).backward()
    with Copies() as copies:
        loss(torch.randn(COUNT, SIZE, requires_grad=True), labels).backward()
    # Of each layer the messages, and of λ what J_div sums: into the room of their second ends.
    assert copies.found == {("copy_", 1): num_layers + 1}
    assert copies.onto_itself == 0
