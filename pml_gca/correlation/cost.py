"""Estimates of what a training step costs, in multiply-adds and bytes, from sizes alone.

They hold for the swept form (`pml_gca.correlation.sweeps`). Without its folder a step takes more memory.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.quantities import count, data_size
from .edges import count_edges
from .tiles import default_chunk_size

SMALLEST_CHUNK = 256  # below it, matrix products slow down


@dataclass(frozen=True)
class StepCost:
    """The estimated cost of one training step of the generator, forward and backward.

    The trunk and the wrapped loss come on top.

    Attributes:
        batch_size: B, nodes of the graph: the batch, and references if any.
        keeps_activations: whether hidden activations are kept for the backward pass; else they are recomputed.
        edge_chunk_size: edges computed at a time.
        multiply_adds: of all matrix products, in forward and backward. The backward pass counts twice where it also
            computes gradients of the embeddings.
        bytes: peak allocation on top of parameters, their gradients and the embeddings.
        memory_size: M, further nodes from a memory.
        num_processes: W, processes that share the edges; the numbers are those of one, on average.
        exchanged_values: values that enter the all-reduces of the shared graph; see `exchanged`.
    """

    batch_size: int
    keeps_activations: bool
    edge_chunk_size: int
    multiply_adds: int
    bytes: int
    memory_size: int = 0
    num_processes: int = 1
    exchanged_values: int = 0

    def __str__(self) -> str:
        kept = "kept" if self.keeps_activations else f"recomputed in chunks of {self.edge_chunk_size} edges"
        memory = f" and a memory of {self.memory_size}" if self.memory_size else ""
        shared = f", of {self.num_processes} processes that exchange {count(self.exchanged_values)} values each"
        return (
            f"batch of {self.batch_size}{memory}: {count(self.multiply_adds)} multiply-adds, "
            f"{data_size(self.bytes)} (activations {kept})" + shared * (self.num_processes > 1)
        )


@dataclass(frozen=True)
class Sizes:
    """Sizes that the cost of a step depends on.

    Attributes:
        num_nodes: N.
        embedding_size: D.
        num_layers: K.
        num_classes: training classes.
        num_negatives: S.
        matmul_bytes: bytes of a value in matrix products.
        state_bytes: bytes of a value in sums and norms.
        with_coefficients: whether λ is learned; if not, edges are updated for the nodes alone.
        num_shares: W, processes that share the edges.
        num_memory: M, how many of the nodes are a memory, without edges among each other.
        num_soft_classes: classes that J_soft tells negatives from; all if None.
    """

    num_nodes: int
    embedding_size: int
    num_layers: int
    num_classes: int
    num_negatives: int
    matmul_bytes: int = 4
    state_bytes: int = 4
    with_coefficients: bool = True
    num_shares: int = 1
    num_memory: int = 0
    num_soft_classes: int | None = None

    @property
    def num_edges(self) -> int:
        """Number of edges that one process computes."""
        return -(-count_edges(self.num_nodes, num_memory=self.num_memory) // self.num_shares)

    @property
    def num_ordered_pairs(self) -> int:
        """Number of ordered pairs of nodes that share an edge."""
        return self.num_nodes**2 - self.num_memory**2

    @property
    def updates_below(self) -> int:
        """Number of edge updates that reach the node logits."""
        return max(self.num_layers - 1, 0)

    @property
    def edge_updates(self) -> int:
        """Number of edge updates that are computed."""
        return self.num_layers if self.with_coefficients else self.updates_below


def step_multiply_adds(sizes: Sizes, keeps_activations: bool) -> int:
    """Return the multiply-adds of a training step's matrix products.

    In units of D² per edge and layer, the edge-to-node projection takes 1 and the edge MLP 8 in the forward pass. A
    backward pass takes as many for the inputs, and as many for the parameters. With coefficients there are two backward
    passes. One is for the parameters. The other is for the embeddings, through what the node logits depend on, and
    skips the last layer's edge update. Without coefficients, one pass serves both.
    """
    d, k, n, e = sizes.embedding_size, sizes.num_layers, sizes.num_nodes, sizes.num_edges
    batch = n - sizes.num_memory  # a memory is not classified
    u, below = sizes.edge_updates, sizes.updates_below
    node_layer = 12  # query, key, value, out, and 8 of the feed-forward net
    folding = 4  # of the edge attention: g, key, folded query, value
    soft = 0
    per_edge, per_node = 3 * (k + 8 * u), 3 * (k * node_layer + u * folding + 1)
    attention, classifiers = 6 * k, 3 * batch  # two products forward, four backward
    if not keeps_activations:
        per_edge, attention = per_edge + k + 4 * u, attention + 2 * k
    if sizes.with_coefficients:
        per_edge += 3 - 1  # the coefficients; the first edges need no gradient in the pass for all terms
        per_edge, per_node = per_edge + k + 8 * below, per_node + k * node_layer + below * folding + 1
        attention, classifiers = attention + 4 * k, classifiers + 3 * batch
        soft = 2 * sizes.num_negatives * (sizes.num_soft_classes or sizes.num_classes)
        if not keeps_activations:
            per_edge, attention = per_edge + k + 4 * below, attention + 2 * k
    products = d * d * (per_edge * e + per_node * n)
    return products + d * (attention * sizes.num_ordered_pairs + sizes.num_classes * classifiers + soft)


def step_bytes(sizes: Sizes, keeps_activations: bool, edge_chunk_size: int) -> int:
    """Return the peak bytes of a training step on top of parameters, their gradients and the embeddings.

    One (E, D) tensor a layer is always kept. Hidden activations take nine more a layer, if they are kept. The rest was
    fitted to measured peaks. Fragmentation may add a third.
    """
    d, k, e, s = sizes.embedding_size, sizes.num_layers, sizes.num_edges, sizes.num_negatives
    state, product = sizes.state_bytes, sizes.matmul_bytes
    kept = sizes.num_layers * d * product + sizes.edge_updates * 8 * d * product + k * state  # of an edge
    hidden = e * kept if keeps_activations else 0
    # The peak is where gradients of coefficients and negatives coexist, or in the sweep of an edge block.
    at_negatives = e * d * ((k + 3) * state + product) + 4 * s * d * state
    workspace = min(edge_chunk_size, e) * d * ((8 if keeps_activations else 16) * product + 5 * state)
    in_sweep = e * d * state * 23 * (k + 1) // 10 + workspace
    lookup = e * (48 + 8 * k) + 3 * 8 * sizes.num_ordered_pairs
    sums = 26 * k * d * d * state  # gradients of the parameters, before autograd takes them
    return hidden + max(at_negatives, in_sweep) + lookup + sums


def choose_memory(sizes: Sizes, edge_chunk_size: int | None, device: torch.device) -> tuple[bool, int]:
    """Decide whether to keep hidden activations, and how many edges to compute at a time.

    Args:
        sizes: of the step.
        edge_chunk_size: the user's choice; activations are then always recomputed. None: keep them if the step then
            takes at most half of the free memory.
        device: where the step runs.

    Returns:
        `(keeps_activations, edge_chunk_size)`.

    Warns:
        UserWarning: the step does not seem to fit even if activations are recomputed.
    """
    chunk = edge_chunk_size or default_chunk_size(sizes.embedding_size, device)
    free = free_memory(device)
    if edge_chunk_size is None and (free is None or step_bytes(sizes, True, chunk) <= free / 2):
        return True, chunk
    if edge_chunk_size is None and free is not None:
        chunk = min(chunk, max(sizes.num_edges, 1))
        while chunk > SMALLEST_CHUNK and step_bytes(sizes, False, chunk) > 0.9 * free:
            if step_bytes(sizes, False, chunk // 2) > 0.95 * step_bytes(sizes, False, chunk):
                break  # smaller chunks would save little
            chunk //= 2
    needed = step_bytes(sizes, False, chunk)
    if free is not None and needed > free:
        fits = step_bytes(sizes, False, 1) <= free
        advice = "Set edge_chunk_size to a smaller one" if fits else "No edge_chunk_size makes it fit"
        warnings.warn(
            f"A training step over {sizes.num_nodes} nodes (batch and references) needs about {needed / 1e9:.3g} GB, "
            f"and {free / 1e9:.3g} GB are free on {device}. {advice} (activations are already recomputed in chunks "
            f"of {chunk} edges), or take a smaller batch.",
            UserWarning,
            stacklevel=3,
        )
    return False, chunk


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on `device`; None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_free_on_host(), _free_in_container()) if limit is not None]
    return min(limits, default=None)


def _free_on_host() -> int | None:
    """Return the bytes that the system can allocate without swapping; None if unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _free_in_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes left of a control group's limit; None if there is none."""
    for folder, limit, used, cached in (
        (group, "memory.max", "memory.current", ("inactive_file", "active_file")),
        (
            group / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_inactive_file", "total_active_file"),
        ),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Cached files count toward the limit, but are evicted on demand.
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return left + sum(int(count) for name, count in lines if name in cached)
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return None
