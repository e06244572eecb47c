"""The propagation, edges swept tile by tile.

What it buys: see the package's docstring. The free memory decides, once per number of nodes, whether hidden
activations are kept.
"""

from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...utils.dtypes import compute_dtype, matmul_dtype
from ...utils.host_memory import keep_freed_memory
from ..attention import negative_attention
from ..correlations import Correlations
from ..cost import choose_memory
from ..edge_list import EdgeList
from ..edges import standardize
from ..tiles import default_chunk_size
from .attention import RecomputedAttention
from .coefficients import EdgeCoefficients, edge_statistics
from .messages import EdgeMessages
from .rows import EdgeState, SweepPlan
from .update import EdgeUpdate

if TYPE_CHECKING:
    from ..propagation import CorrelationPropagation, PropagationLayer

Memory = dict[tuple[object, ...], tuple[bool, int]]
# A cache outside the modules, because it depends on the device: copies and pickles do not take it along.
memory_of: "WeakKeyDictionary[CorrelationPropagation, Memory]" = WeakKeyDictionary()


def propagate(
    module: "CorrelationPropagation", embeddings: Tensor, labels: Tensor, listed: EdgeList | None = None
) -> Correlations:
    """Compute what `module.forward_plain` does, tile by tile."""
    plan = plan_sweeps(module, listed or EdgeList(len(embeddings)), embeddings.device)
    nodes = module.first_nodes(embeddings)
    edges = EdgeState(*plan.edges.enter(standardize(embeddings).to(plan.state_dtype)))
    for layer in module.layers:
        nodes, edges = sweep_layer(cast("PropagationLayer", layer), plan, nodes, edges, labels)
    classified = module.node_norm(nodes[: plan.edges.num_batch])
    logits = module.node_classifier(classified.to(module.input.weight.dtype))
    coefficients = sweep_coefficients(module, plan, edges) if module.with_coefficients else edges.kept[:0]
    return Correlations(logits, coefficients, embeddings, plan.edge_chunk_size, plan.gradient_pass, plan.edges)


def sweep_layer(
    layer: "PropagationLayer", plan: SweepPlan, nodes: Tensor, edges: EdgeState, labels: Tensor
) -> tuple[Tensor, EdgeState]:
    """Compute what `layer.forward` does, tile by tile."""
    node, block = layer.node, layer.edge
    attention = negative_attention if plan.keep_hidden else RecomputedAttention.apply
    nodes = node.attend(nodes, labels, attention, plan.edges.num_memory)
    with torch.autocast(nodes.device.type, enabled=False):  # swept functions cast their inputs
        messages = EdgeMessages.apply(plan, len(nodes), *edges, node.edge_to_node.weight, node.edge_to_node.bias)
    (messages,) = plan.edges.leave(messages)
    nodes = node.update(nodes, messages, plan.edges.num_memory)
    if block is None:
        return nodes, edges
    dtype = messages.dtype
    ends = plan.edges.enter(*(x.to(dtype) for x in block.fold(nodes)))
    mask = block.mask(plan.edges, messages) if block.dropout.training and block.dropout.p else None
    norm, mlp = (block.norm.weight.to(dtype), block.norm.bias.to(dtype)), block.mlp()
    with torch.autocast(nodes.device.type, enabled=False):
        kept = EdgeUpdate.apply(plan, *edges, *ends, mask, *norm, *mlp)
    return nodes, EdgeState(kept, *norm)


def sweep_coefficients(module: "CorrelationPropagation", plan: SweepPlan, edges: EdgeState) -> Tensor:
    """Compute λ = sigmoid(Linear(BatchNorm(e))) of all edges, (E, D), tile by tile."""
    norm, count = module.edge_norm, None
    mean, variance = norm.running_mean, norm.running_var
    if norm.training and plan.edges.num_nodes > 0:
        count, mean, variance = edge_statistics(plan, edges)
        if plan.edges.num_nodes > 1 and torch.is_grad_enabled():
            norm.observe(count, mean, variance)
    dtype = edges.kept.dtype
    rstd = torch.rsqrt(variance.to(dtype) + norm.eps)
    linear, scale = module.edge_coefficients, norm.weight.to(dtype)
    with torch.autocast(rstd.device.type, enabled=False):
        coefficients: Tensor = EdgeCoefficients.apply(
            plan, *edges, count, mean.to(dtype), rstd, scale, linear.weight, linear.bias
        )
    return coefficients


def plan_sweeps(module: "CorrelationPropagation", edges: EdgeList, device: torch.device) -> SweepPlan:
    """Plan the sweeps over listed edges; look up the free memory once per number of nodes."""
    shares = edges.processes.size if edges.processes else 1
    matmul, state = matmul_dtype(module.input.weight), compute_dtype(module.input.weight)
    learns = torch.is_grad_enabled()
    memory = memory_of.setdefault(module, {})
    key = (edges.num_nodes, edges.num_memory, shares, device, matmul, module.edge_chunk_size)
    if learns and key not in memory:
        if device.type == "cpu":
            keep_freed_memory()
        num_negatives = module.count_negatives(edges.num_nodes, 2, edges.num_memory)
        sizes = module.sizes(edges.num_nodes, num_negatives, shares, edges.num_memory)
        memory[key] = choose_memory(sizes, module.edge_chunk_size, device)
    keep, chunk = memory.get(key, (False, 0))
    chunk = chunk or module.edge_chunk_size or default_chunk_size(module.input.in_features, device)
    return SweepPlan(edges, chunk, matmul, state, keep and learns)
