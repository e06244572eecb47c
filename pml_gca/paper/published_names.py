"""Parameter names of the generator in the authors' published checkpoints, and in ours.

Their files hold `gnn.*` (the propagation) and `softmax_classifier.*` (the auxiliary classifier) beside the image
model. `update_node` is in the files, but in no computation. The shifts of both batch normalisations are zeros that
were never trained.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

NODE_MODULES = {
    "query": "att.q_linear",
    "key": "att.k_linear",
    "value": "att.v_linear",
    "out": "att.out",
    "edge_to_node": "edge_to_node",
    "expand": "linear1",
    "contract": "linear2",
    "norm": "norm.1",
}
EDGE_MODULES = {
    "node_to_edge": "node_to_edge",
    "query": "att.q_linear",
    "key": "att.k_linear",
    "value": "att.v_linear",
    "expand": "linear.0",
    "expand_norm": "linear.2",
    "contract": "linear.3",
    "norm": "norm.1",
}
OUTER_MODULES = {
    "objective.classifier": "softmax_classifier",
    "propagation.input": "gnn.dim_red",
    "propagation.node_classifier": "gnn.cls.0",
    "propagation.edge_coefficients": "gnn.fc.0",
}
NORM_MODULES = {"propagation.node_norm": "gnn.bottleneck2.0", "propagation.edge_norm": "gnn.bottleneck1.0"}


def published_names(num_layers: int) -> dict[str, str]:
    """Map our parameter and buffer names to those of a published checkpoint with `num_layers` layers."""

    def modules() -> Iterator[tuple[str, str]]:
        yield from OUTER_MODULES.items()
        for k in range(num_layers):
            for ours, theirs in NODE_MODULES.items():
                yield f"propagation.layers.{k}.node.{ours}", f"gnn.gnn.{k}.node_model.layers.0.{theirs}"
            for ours, theirs in EDGE_MODULES.items():
                yield f"propagation.layers.{k}.edge.{ours}", f"gnn.gnn.{k}.edge_model.{theirs}"

    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules() for kind in ("weight", "bias")}
    for ours, theirs in NORM_MODULES.items():
        for kind in ("weight", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return names


def count_layers(state: Mapping[str, Tensor]) -> int:
    """Return the number of propagation layers in a published checkpoint."""
    return len({name.split(".")[2] for name in state if name.startswith("gnn.gnn.")})


def translate(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published checkpoint under our names, checked against `expected`, our own state dict.

    Raises:
        ValueError: parameters are missing or have another shape. The message names all of them.
    """
    names = published_names(count_layers(state))
    missing = [theirs for theirs in names.values() if theirs not in state]
    misshapen = [
        f"{theirs} {tuple(state[theirs].shape)} instead of {tuple(expected[ours].shape)}"
        for ours, theirs in names.items()
        if theirs in state and state[theirs].shape != expected[ours].shape
    ]
    if missing or misshapen:
        found = [f"missing: {', '.join(missing)}"] if missing else []
        found += [f"of another shape: {', '.join(misshapen)}"] if misshapen else []
        raise ValueError(f"state_dict_or_path is not a published checkpoint of this shape; {'; '.join(found)}")
    return {ours: state[theirs] for ours, theirs in names.items()}


def translate_back(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return our generator's state dict under the published names, without `update_node`."""
    theirs = {theirs: state[ours] for ours, theirs in published_names(num_layers).items()}
    for module in NORM_MODULES.values():
        theirs[f"{module}.bias"] = torch.zeros_like(theirs[f"{module}.weight"])
    return theirs
