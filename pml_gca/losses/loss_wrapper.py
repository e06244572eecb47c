"""A loss around another one: it passes attributes on, and each regularizer counts once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction, P2SGradLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from pytorch_metric_learning.reducers import MeanReducer, MultipleReducers
from torch import Tensor, nn

from ..generators.planning import next_positive
from ..utils.batch_checks import as_long, check_not_swapped
from ..utils.dtypes import compute_dtype, outside_autocast
from ..utils.validation import check_pml_arguments

REGULARIZERS = ("embedding_regularizer", "weight_regularizer")
OWN_NAMES = {"beta": "synthetic_beta"}  # the wrapper's attribute for a name, used if the wrapped loss lacks the name


class LossWrapper(BaseMetricLossFunction):
    """A PML loss around another loss. A subclass sets `self.loss`, then calls `delegate_attributes`.

    A public attribute that the wrapper does not have is read from the wrapped loss, and set and called there:
    `distance`, `reducer`, `margin`, `proxies`, `get_logits(...)`. Private attributes (`_...`) are not delegated.
    """

    def __init__(self, reducer: nn.Module | None = None, **kwargs: Any) -> None:
        check_pml_arguments({"reducer": reducer, **kwargs})
        if reducer is None:  # its statistics would be meaningless
            reducer = TotalReducer({}, MeanReducer(collect_stats=False), collect_stats=False)
        super().__init__(reducer=reducer, **kwargs)

    def delegate_attributes(self) -> None:
        """Delete what PML's base class creates for every loss, to make the wrapped loss's attributes visible."""
        self.total_reducer = self.reducer
        del self.reducer, self.distance
        if self.embedding_regularizer is None and hasattr(self._modules["loss"], "embedding_regularizer"):
            del self.embedding_regularizer, self.embedding_reg_weight

    def _is_own(self, name: str) -> bool:
        """Return whether the wrapper itself has the attribute."""
        places = (self.__dict__, *(self.__dict__.get(kind, {}) for kind in ("_modules", "_parameters", "_buffers")))
        return hasattr(type(self), name) or any(name in place for place in places)

    def _delegate_of(self, name: str) -> nn.Module | None:
        """Return the wrapped loss if it has the attribute and the wrapper does not, else None."""
        wrapped = self.__dict__.get("_modules", {}).get("loss")
        if wrapped is None or name.startswith("_") or self._is_own(name):
            return None
        return wrapped if hasattr(wrapped, name) else None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute as any module does, else the wrapped loss's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            wrapped = self._delegate_of(name)
            if wrapped is not None:
                return getattr(wrapped, name)
            if name in OWN_NAMES:
                return getattr(self, OWN_NAMES[name])
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute as any module does; on the wrapped loss if only that one has it."""
        wrapped = self._delegate_of(name)
        if wrapped is not None:
            setattr(wrapped, name, value)
        else:
            super().__setattr__(OWN_NAMES.get(name, name), value)

    def set_reducer(self, reducer: nn.Module | None) -> None:
        """Set the wrapped loss's reducer, or the wrapper's before there is a wrapped loss; PML's interface."""
        wrapped = self.__dict__["_modules"].get("loss")
        set_reducer: Any = getattr(wrapped, "set_reducer", super().set_reducer)
        set_reducer(reducer)

    def all_regularization_loss_names(self) -> list[str]:
        """Return the names of the wrapper's own regularization losses; PML's interface.

        The wrapped loss's are part of its value.
        """
        return ["embedding_reg_loss"] if self._is_own("embedding_regularizer") and self.embedding_regularizer else []

    def sum_sub_losses(
        self, values: dict[str, Tensor], embeddings: Tensor, labels: Tensor | None, *, regularize: bool = True
    ) -> Tensor:
        """Add up sub-losses, all scalars, and the wrapper's own regularizer, which would be NaN for an empty batch."""
        loss_dict = {
            name: {"losses": v, "indices": None, "reduction_type": "already_reduced"} for name, v in values.items()
        }
        if regularize and self.all_regularization_loss_names() and len(embeddings):
            self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        total: Tensor = self.total_reducer(loss_dict, embeddings, labels)
        return total

    def keep_evaluation(self, value: object) -> None:
        """Take notice of the wrapped loss's value of a batch in evaluation."""

    def evaluate(self, embeddings: Tensor, labels: Tensor | None, *args: Any) -> Tensor:
        """Compute the wrapped loss and the wrapper's own regularizer.

        Integer labels are converted to long as in training: PML's losses take some integer dtypes only.

        Raises:
            ValueError: the wrapped loss has proxies or class weights, and labels are of other classes.
        """
        self.reset_stats()
        check_not_swapped(embeddings, labels)
        loss, labels_given = self.loss, labels
        labels = as_long(labels)
        # PML detects references by their labels being another object: the same labels stay the same object.
        args = tuple(labels if x is labels_given else as_long(x) for x in args)
        check_known_classes(loss, labels)
        value = call_loss(loss, embeddings, labels, *args)
        self.keep_evaluation(value)
        if not self.all_regularization_loss_names():
            return value
        return self.sum_sub_losses({"metric_loss": as_scalar(value, loss)}, embeddings, labels_given)


class TotalReducer(MultipleReducers):
    """PML's `MultipleReducers`, but adding up in float32 or wider instead of the dtype of the embeddings.

    The generator's terms are large beside the metric loss; a sum in half precision would round it away.
    """

    def forward(self, loss_dict: dict[str, dict[str, Any]], embeddings: Tensor, labels: Tensor) -> Tensor:
        """Reduce each sub-loss, and add them up to a scalar."""
        self.reset_stats()
        dtype = compute_dtype(embeddings)
        values = []
        for name, info in loss_dict.items():
            reducer = self.reducers[name] if name in self.reducers else self.default_reducer  # noqa: SIM401 - no dict
            values.append(reducer({name: info}, embeddings, labels).to(dtype))
        return torch.stack(values).sum()


UNKNOWN_CLASSES = (
    "loss {loss} has a value for the {num_classes} training classes alone, as it has proxies or class weights of them, "
    "got labels from {low} to {high}. For a validation loss on other classes take one over pairs, or compare retrieval "
    "metrics"
)


def check_known_classes(loss: nn.Module, labels: Tensor | None) -> None:
    """Raise ValueError for labels in evaluation that a loss's proxies or class weights do not know.

    PML gives an index error, which on a GPU ends the process, or NaN. This waits for the device.
    """
    if not isinstance(labels, Tensor) or labels.numel() == 0:
        return
    for part in loss.modules():
        if isinstance(part, (WeightMixin, P2SGradLoss)):
            num_classes = num_classes_of(part)
            low, high = labels.aminmax()
            if num_classes is not None and (low < 0 or high >= num_classes):
                name = type(part).__name__
                raise ValueError(
                    UNKNOWN_CLASSES.format(loss=name, num_classes=num_classes, low=int(low), high=int(high))
                )


def num_classes_of(loss: Any) -> int | None:
    """Return the number of classes of a PML loss with proxies or class weights; None if it does not tell.

    PML leaves `num_classes` at 0 in two of its losses.
    """
    if number := getattr(loss, "num_classes", 0):
        return int(number)
    if isinstance(proxies := getattr(loss, "proxies", None), Tensor):
        return len(proxies)
    weights = getattr(loss, "W", None)  # (D, N)
    return weights.shape[1] if isinstance(weights, Tensor) else None


def call_loss(loss: nn.Module, embeddings: Tensor, labels: Tensor | None, *args: Any) -> Tensor:
    """Call `loss` without the last arguments that are None: not every loss takes them."""
    while args and args[-1] is None:
        args = args[:-1]
    with outside_autocast(loss.parameters(), embeddings):
        value: Tensor = loss(embeddings, labels, *args)
    return value


def metric_loss_of(
    loss: nn.Module, args: tuple[Any, ...], node_labels: Tensor, has_negatives: bool
) -> tuple[Tensor, bool]:
    """Compute J_m, the wrapped loss of a real batch, always with a graph.

    Some PML losses fail for an empty batch. Without positives most are 0, some NaN, and only regularizers remain.

    Args:
        loss: the wrapped loss.
        args: its arguments: embeddings (B, D), labels (B,), and others.
        node_labels: (N,) long, of the batch and its references.
        has_negatives: whether there are synthetic negatives; the batch then also has positives.

    Returns:
        The loss, 0 if it has no value; and whether the metric level should follow it.
    """
    embeddings, labels = args[:2]
    if has_negatives:
        return as_scalar(call_loss(loss, *args), loss), True
    # Distributed training waits for a gradient of every parameter.
    zero = sum(((p * 0).sum() for p in loss.parameters()), start=(embeddings * 0).sum())
    if len(embeddings) == 0:
        return zero, False
    value = as_scalar(call_loss(loss, *args), loss)
    with without_regularizers(loss) as had_regularizers:
        bare = call_loss(loss, *args) if had_regularizers else value
    _, has_positive = next_positive(node_labels, len(labels))
    is_telling = bool(has_positive.any() | (bare.isfinite() & (bare != 0)))
    return (value + zero if is_telling or value.isfinite() else zero), is_telling


@contextmanager
def without_regularizers(loss: nn.Module) -> Iterator[bool]:
    """Remove the PML regularizers of a loss, and of losses inside it, within this context; yield whether it has any.

    A loss with `penalizes_synthetic = True` keeps its own: they apply to synthetic batches as well.
    """
    found = [
        (module, name, getattr(module, name))
        for module in loss.modules()
        for name in REGULARIZERS
        if isinstance(module, BaseMetricLossFunction)  # in other modules the name may mean something else
        and getattr(module, name, None) is not None
        and not getattr(module, "penalizes_synthetic", False)
    ]
    for module, name, _ in found:
        setattr(module, name, None)
    try:
        yield bool(found)
    finally:
        for module, name, regularizer in found:
            setattr(module, name, regularizer)


def as_scalar(value: object, loss: nn.Module) -> Tensor:
    """Return the value of a loss as a 0-dimensional tensor.

    Raises:
        TypeError, ValueError: it is not a tensor of one floating-point number.
    """
    expected = f"loss {type(loss).__name__}, and the function registered for it, must return a scalar tensor"
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"{expected}, such as values.mean(), got {value.dtype} of shape {tuple(value.shape)}")
    return value.reshape(())
