"""Parameters of the authors' published checkpoints, under our names.

Their files hold ``gnn.*`` (the propagation) and ``softmax_classifier.*`` (the auxiliary classifier) beside the keys of
the image model. ``update_node`` is in the files and in no computation; the shifts of both batch normalisations are
zeros that were never trained.
"""

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from typing import Any

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
    "auxiliary_classifier": "softmax_classifier",
    "propagation.input": "gnn.dim_red",
    "propagation.node_classifier": "gnn.cls.0",
    "propagation.edge_coefficients": "gnn.fc.0",
}
WRAPPER = "module."  # torch's data-parallel modules put it in front of all names
NORM_MODULES = {"propagation.node_norm": "gnn.bottleneck2.0", "propagation.edge_norm": "gnn.bottleneck1.0"}


def published_names(num_layers: int) -> dict[str, str]:
    """Our parameter and buffer names, each with its name in a published checkpoint of ``num_layers`` layers."""

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


def read_checkpoint(state_dict_or_path: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    """A checkpoint by name, that of a file on the CPU; files are read with ``weights_only=True``.

    A state dict may lie under the key ``"state_dict"``, and its names may all begin with ``"module."``.

    Raises:
        TypeError: it is neither a mapping of names to tensors nor a path to one.
        ValueError: the file cannot be read so.
    """
    state = state_dict_or_path
    if isinstance(state, (str, PathLike)):
        path = fspath(state)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # what is no pickle fails in any way
            raise ValueError(
                f"{path} is no whole file of torch.save, or holds more than tensors; it is read with weights_only=True"
            ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise TypeError(
            "state_dict_or_path must be a mapping of parameter names to tensors, or the path of a file holding one, "
            f"got {type(state).__name__}"
        )
    named = {str(name): value for name, value in state.items()}
    prefix = WRAPPER if all(name.startswith(WRAPPER) for name in named) else ""
    return {name.removeprefix(prefix): value for name, value in named.items()}


def read_state_dict(state_dict_or_path: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Tensor]:
    """The generator's part of `read_checkpoint`."""
    state = read_checkpoint(state_dict_or_path)
    return {
        name: torch.as_tensor(value, device="cpu")
        for name, value in state.items()
        if name.startswith(("gnn.", "softmax_"))
    }


def count_layers(state: Mapping[str, Tensor]) -> int:
    """Propagation layers in a published checkpoint."""
    return len({name.split(".")[2] for name in state if name.startswith("gnn.gnn.")})


def translate(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint under our names, fit for ``expected``, our own state dict.

    Raises:
        ValueError: a parameter is missing or of another shape; all of them are named.
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
        raise ValueError(f"state_dict_or_path is no published checkpoint of this shape; {'; '.join(found)}")
    return {ours: state[theirs] for ours, theirs in names.items()}


def translate_back(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our generator's state dict under the published names, but for ``update_node``."""
    theirs = {theirs: state[ours] for ours, theirs in published_names(num_layers).items()}
    for module in NORM_MODULES.values():
        theirs[f"{module}.bias"] = torch.zeros_like(theirs[f"{module}.weight"])
    return theirs
