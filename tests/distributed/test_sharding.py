"""A graph that several processes share is computed as one process computes it."""

import pytest
from helpers.processes import launch


@pytest.mark.parametrize("world", [2, 3, 4])
def test_several_processes_compute_what_one_does(world, tmp_path):
    for rank, failures in enumerate(launch("sharding_program", world, tmp_path)):
        assert not failures, f"rank {rank}:\n" + "\n".join(failures)
