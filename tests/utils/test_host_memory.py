"""What a step frees stays with the process, unless the user decided otherwise; asking for that costs nothing."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.sweeps import propagate  # a function; its module has the same name
from pml_gca.utils.host_memory import chosen_by_user, is_glibc, keep_freed_memory

COUNT_PAGE_FAULTS = """
import resource, torch
from pml_gca.utils.host_memory import keep_freed_memory

def faults_of(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def steps():
    # Blocks of 2 to 31 MB, up to 250 MB together: glibc by itself keeps 64 MB. Whether one is mapped anew is chance.
    for count, megabytes in ((3, 4), (5, 4), (4, 2), (2, 12), (20, 4), (8, 31)):
        for _ in range(3):
            blocks = [torch.ones(megabytes * 2**18 - 2**12) for _ in range(count)]
            del blocks

steps()
print(faults_of(keep_freed_memory))
steps()
print(min(faults_of(steps) for _ in range(3)))  # where memory is short, the system may take some back meanwhile
"""
OF_THE_USER = {
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "131072",
    "MALLOC_MMAP_MAX_": "65536",
    "GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.malloc.trim_threshold=131072",
}


def count_page_faults(**environment):
    """Return the page faults of asking for kept memory, and of steps afterwards, in a process of its own."""
    ours = {name: value for name, value in os.environ.items() if name not in OF_THE_USER}
    run = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env={**ours, **environment},
    )
    asking, afterwards = map(int, run.stdout.split())
    return asking, afterwards


on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own"
)


@on_glibc
def test_steps_find_the_memory_of_the_step_before():
    asking, afterwards = count_page_faults()
    assert asking < 500
    assert afterwards < 500  # of some 70,000 without


@on_glibc
def test_what_the_user_chose_stays():
    _, afterwards = count_page_faults(MALLOC_TRIM_THRESHOLD_=OF_THE_USER["MALLOC_TRIM_THRESHOLD_"])
    assert afterwards > 20_000


@pytest.mark.parametrize("name", OF_THE_USER)
def test_variables_of_the_environment_count_as_chosen(monkeypatch, name):
    for each in OF_THE_USER:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert not chosen_by_user()
    monkeypatch.setenv(name, OF_THE_USER[name])
    assert chosen_by_user()


@pytest.mark.parametrize("version", [None, "", "musl 1.2.5", ValueError("unknown name"), AttributeError("no confstr")])
def test_other_c_libraries_are_left_alone(monkeypatch, version):
    def confstr(name):
        if isinstance(version, Exception):
            raise version
        return version

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    assert not is_glibc()
    monkeypatch.setattr("pml_gca.utils.host_memory.ctypes.CDLL", None)  # calling it would fail
    keep_freed_memory.__wrapped__()


@pytest.mark.parametrize(("accepts", "asked"), [(1, [(-3, 2**25), (-1, 2**30)]), (0, [(-3, 2**25)])])
def test_a_refused_threshold_changes_nothing_else(monkeypatch, accepts, asked):
    calls = []

    class Library:
        def __init__(self, name):
            assert name is None  # the C library of the process

        def mallopt(self, *arguments):
            calls.append(arguments)
            return accepts

    monkeypatch.setattr("pml_gca.utils.host_memory.ctypes.CDLL", Library)
    monkeypatch.setattr("pml_gca.utils.host_memory.is_glibc", lambda: True)
    monkeypatch.setattr("pml_gca.utils.host_memory.chosen_by_user", lambda: False)
    keep_freed_memory.__wrapped__()
    assert calls == asked


@pytest.mark.parametrize(("learns", "calls"), [(True, 1), (False, 0)])
def test_training_asks_for_it_once(monkeypatch, learns, calls):
    asked = []
    monkeypatch.setitem(propagate.__globals__, "keep_freed_memory", lambda: asked.append(1))
    generator = GlobalCorrelationGenerator(3, 8)
    for _ in range(2):
        with torch.set_grad_enabled(learns):
            generator(torch.randn(6, 8), torch.arange(6) % 3)
    assert len(asked) == calls
