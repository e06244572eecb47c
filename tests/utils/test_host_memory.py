"""What a step frees may stay with the process; asking for that costs nothing."""

from pathlib import Path

import pytest
import torch

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.sweeps import propagate  # a function; its module has the same name
from pml_gca.utils import host_memory


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory as Linux tells it")
def test_the_block_is_never_in_memory():
    host_memory.keep_freed_memory.cache_clear()
    before = resident_bytes()
    host_memory.keep_freed_memory()
    assert resident_bytes() - before < host_memory.LARGEST_BLOCK / 8


@pytest.mark.parametrize(("learns", "calls"), [(True, 1), (False, 0)])
def test_training_asks_for_it_once(monkeypatch, learns, calls):
    asked = []
    monkeypatch.setitem(propagate.__globals__, "keep_freed_memory", lambda: asked.append(1))
    generator = GlobalCorrelationGenerator(3, 8)
    for _ in range(2):
        with torch.set_grad_enabled(learns):
            generator(torch.randn(6, 8), torch.arange(6) % 3)
    assert len(asked) == calls
