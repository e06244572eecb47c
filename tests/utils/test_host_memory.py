"""What a step frees stays with the process; asking for that costs nothing."""

import platform
import subprocess
import sys

import pytest
import torch

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.sweeps import propagate  # a function; its module has the same name

COUNT_PAGE_FAULTS = """
import resource, torch
from pml_gca.utils.host_memory import keep_freed_memory

def faults_of(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def steps():
    for count, size in ((3, 2**20), (5, 2**20), (4, 2**19), (2, 3 * 2**20)):  # whether one is mapped anew is chance
        for _ in range(20):
            blocks = [torch.ones(size) for _ in range(count)]
            del blocks

steps()
print(faults_of(keep_freed_memory))
steps()
print(min(faults_of(steps) for _ in range(3)))  # where memory is short, the system may take some back meanwhile
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_steps_find_the_memory_of_the_step_before():
    run = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True)
    asking, afterwards = map(int, run.stdout.split())
    assert asking < 500  # a block that is written has some 8,000 pages
    assert afterwards < 500  # of 6,000 and more without


@pytest.mark.parametrize(("learns", "calls"), [(True, 1), (False, 0)])
def test_training_asks_for_it_once(monkeypatch, learns, calls):
    asked = []
    monkeypatch.setitem(propagate.__globals__, "keep_freed_memory", lambda: asked.append(1))
    generator = GlobalCorrelationGenerator(3, 8)
    for _ in range(2):
        with torch.set_grad_enabled(learns):
            generator(torch.randn(6, 8), torch.arange(6) % 3)
    assert len(asked) == calls
