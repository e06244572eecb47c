"""The arguments of a loss or miner in one process: what is checked, measured and compared with other processes'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.batch_checks import check_counts, check_label_range, check_labels, count_unusable
from ..utils.dtypes import as_wide_as
from ..utils.host import to_device

MEASURED = 5  # numbers that `measure` returns


class CallArguments(NamedTuple):
    """The arguments of a PML loss."""

    embeddings: Tensor
    labels: Tensor | None = None
    indices_tuple: tuple[Tensor, ...] | None = None
    ref_emb: Tensor | None = None
    ref_labels: Tensor | None = None

    def as_wide_as(self, parameters: Sequence[Tensor]) -> "CallArguments":
        """Return the arguments with embeddings and references at least as wide as parameters of the loss."""
        embeddings = as_wide_as(parameters, self.embeddings)
        references = embeddings if self.ref_emb is self.embeddings else self.ref_emb
        if references is not None:
            references = as_wide_as(parameters, references)
        return self._replace(embeddings=embeddings, ref_emb=references)

    @property
    def repeats_batch(self) -> bool:
        """Whether the references are the batch itself, which is how PML says that there are none."""
        return self.ref_emb is self.embeddings and (self.ref_labels is self.labels or self.ref_labels is None)


@dataclass(frozen=True)
class Limits:
    """What values a batch may have: labels in [0, `num_classes`), embeddings of a dtype up to `largest(dtype)`."""

    num_classes: int
    largest: Callable[[torch.dtype], float]

    def check(self, numbers: Sequence[int], total: int, dtype: torch.dtype, names: tuple[str, str]) -> None:
        """Raise ValueError for what `measure` found in `total` values of a process."""
        check_label_range(torch.tensor(numbers[3:], device="cpu"), self.num_classes, names[1])
        check_counts(numbers[:3], names[0], total, dtype, self.largest(dtype))


def measure(embeddings: Tensor, labels: Tensor | None, largest: float) -> Tensor:
    """Count unusable values and find the range of labels, without waiting for the device: (5,) long."""
    counts = count_unusable(embeddings.detach(), largest)
    if labels is None or len(labels) == 0:
        return torch.cat([counts, counts.new_zeros(2)])
    return torch.cat([counts, torch.stack(to_device(labels.long(), embeddings.device).aminmax())])


def fingerprint(indices: tuple[Tensor, ...] | None, device: torch.device) -> Tensor:
    """Return a number that tells index tuples apart, (1,) long on the device."""
    total = torch.zeros(1, dtype=torch.long, device=device)
    for part in indices or ():
        part = to_device(part.detach(), device).flatten()
        part = part.long() if not part.is_floating_point() else part.double().view(torch.long)  # PML has weights too
        places = torch.arange(1, len(part) + 1, device=device)
        total = total * 1000003 + ((part + 1) * (places * 2654435761 + 97)).sum()
    return total


def check_gatherable(given: CallArguments, device: torch.device) -> None:
    """Raise unless embeddings, labels and references are tensors of rows, and processes exchange on their device."""
    pairs = (
        ("embeddings", given.embeddings, "labels", given.labels),
        ("ref_emb", given.ref_emb, "ref_labels", given.ref_labels),
    )
    for name, rows, of_labels, labels in pairs:
        if rows is None and name == "ref_emb":
            if labels is not None:
                raise ValueError("ref_labels are given without ref_emb: pass both, or neither")
            continue
        if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.ndim != 2:
            found = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{name} must be a floating (rows, channels) tensor, got {found}")
        if labels is not None:
            check_labels(labels, len(rows), of_labels, of=name)
    if given.embeddings.device != device:
        raise ValueError(
            f"embeddings must be on a device of the process group, such as {device}; got {given.embeddings.device}"
        )
    if given.indices_tuple is not None:
        check_indices(given.indices_tuple)


def check_indices(indices: object) -> None:
    """Raise TypeError unless this is a tuple of tensors, as miners return it."""
    found = type(indices).__name__
    if isinstance(indices, (tuple, list)):
        others = [type(part).__name__ for part in indices if not isinstance(part, Tensor)]
        if not others:
            return
        found += f" with {others[0]}"
    raise TypeError(f"indices_tuple must be a tuple of tensors, got {found}")


def facts_of(given: CallArguments, mode: str, module: nn.Module | None) -> dict[str, str]:
    """Return what must be the same in all processes."""
    device = given.embeddings.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "none"
    facts = {"what is computed": mode, "the dtype of autocast": str(autocast)}
    for name, rows, labels in (("embeddings", *given[:2]), ("ref_emb", *given[3:])):
        facts[f"{name} given"] = "none" if rows is None else "with labels" if labels is not None else "without labels"
        if rows is not None:
            facts[f"the dtype of {name}"], facts[f"the channels of {name}"] = str(rows.dtype), str(rows.shape[1])
    facts["references"] = "the batch itself" if given.repeats_batch else "others, if any"
    sizes = [len(part) for part in given.indices_tuple or ()]
    facts["the sizes of indices_tuple, which is that of the global batch,"] = str(sizes)
    return facts if module is None else facts | facts_of_module(module)


def facts_of_module(module: nn.Module) -> dict[str, str]:
    """Return what must be the same in all processes so that they compute and exchange the same tensors."""
    name, parameters = type(module).__name__, list(module.parameters())
    values: dict[str, int] = {}
    for tensor in (*parameters, *module.buffers()):
        values[str(tensor.dtype)] = values.get(str(tensor.dtype), 0) + tensor.numel()
    return {
        f"the parts of {name}": ", ".join(f"{key} {type(part).__name__}" for key, part in module.named_children()),
        f"the number of values in the parameters of {name}": str(values),
        f"the number of values that {name} learns": str(sum(x.numel() for x in parameters if x.requires_grad)),
        f"the number of modules of {name} in training mode": str(sum(part.training for part in module.modules())),
    }
