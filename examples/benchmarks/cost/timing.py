"""Times of several tasks, measured in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(
    tasks: Mapping[Any, Callable[[], Any]], repeats: int, device: str, progress: Callable[[Any], None] = lambda _: None
) -> dict[Any, list[float]]:
    """Run all tasks once per round, and return the seconds that each one took, round by round.

    A slow moment of the machine then affects all tasks alike. Every other round runs backwards. The first round warms
    up and does not count. A task that runs out of memory gets no times.

    Args:
        tasks: by name.
        repeats: rounds that count.
        device: "cpu" or "cuda".
        progress: called with the name of each task before it runs.
    """
    times: dict[Any, list[float]] = {name: [] for name in tasks}
    for repeat in range(-1, repeats):
        for name in list(times)[:: 1 if repeat % 2 else -1]:
            progress(name)
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            try:
                tasks[name]()
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                del times[name]
                continue
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Capture `work` in a CUDA graph, and return a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(keep_alive: Callable[[], None] = work) -> None:
        """Replay the graph. It holds addresses, not tensors: `work`, which owns the tensors, must live as long."""
        graph.replay()

    return replay


def copy_bandwidth() -> float:
    """Return the bytes per second that a large copy on the GPU reads and writes."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 10, "cuda")["copy"]
    return 2 * source.nbytes / statistics.median(times)
