"""A graph that several processes share is computed as one process computes it."""

import pytest
from helpers.processes import launch

WORLDS = (2, 3, 4)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """[world][rank]: what is not as it should be."""
    return launch("sharding.program", tmp_path_factory.mktemp("processes"), *WORLDS)


@pytest.mark.parametrize("world", WORLDS)
def test_several_processes_compute_what_one_does(failures, world):
    for rank, found in enumerate(failures[world]):
        assert not found, f"rank {rank}:\n" + "\n".join(found)
