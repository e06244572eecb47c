"""A loss around another: whose attributes are whose, and each regularizer once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from ..generators.interpolation import next_positive
from ..utils.validation import as_long, check_pml_arguments
from .total_reducer import TotalReducer

REGULARIZERS = ("embedding_regularizer", "weight_regularizer")
SHARED = {"beta": "synthetic_beta"}  # names that are the wrapped loss's where it has them, else the wrapper's


class WrappingLoss(BaseMetricLossFunction):
    """What a loss around another needs. A subclass sets ``self.loss``, and then calls `pass_on`.

    A public attribute that the wrapper does not have is the wrapped loss's, to read, to set and to call: ``distance``,
    ``reducer``, ``margin``, ``proxies``, ``get_logits(...)``. Private ones (``_...``) are not passed on.
    """

    def __init__(self, reducer: nn.Module | None = None, **kwargs: Any) -> None:
        check_pml_arguments({"reducer": reducer, **kwargs})
        if reducer is None:  # whose statistics would say nothing
            reducer = TotalReducer({}, MeanReducer(collect_stats=False), collect_stats=False)
        super().__init__(reducer=reducer, **kwargs)

    def pass_on(self) -> None:
        """Give up what PML's base class makes for every loss, so that the wrapped loss's is found in its place."""
        self.total_reducer = self.reducer
        del self.reducer, self.distance
        if self.embedding_regularizer is None and hasattr(self._modules["loss"], "embedding_regularizer"):
            del self.embedding_regularizer, self.embedding_reg_weight

    def _is_own(self, name: str) -> bool:
        places = (self.__dict__, *(self.__dict__.get(kind, {}) for kind in ("_modules", "_parameters", "_buffers")))
        return hasattr(type(self), name) or any(name in place for place in places)

    def _owner_of(self, name: str) -> nn.Module | None:
        """The wrapped loss, if it has ``name`` and the wrapper has not; else None."""
        wrapped = self.__dict__.get("_modules", {}).get("loss")
        if wrapped is None or name.startswith("_") or self._is_own(name):
            return None
        return wrapped if hasattr(wrapped, name) else None

    def __getattr__(self, name: str) -> Any:
        """As of any module; else the wrapped loss's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            wrapped = self._owner_of(name)
            if wrapped is not None:
                return getattr(wrapped, name)
            if name in SHARED:
                return getattr(self, SHARED[name])
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module; to the wrapped loss what that one alone has."""
        wrapped = self._owner_of(name)
        if wrapped is not None:
            setattr(wrapped, name, value)
        else:
            super().__setattr__(SHARED.get(name, name), value)

    def set_reducer(self, reducer: nn.Module | None) -> None:
        """PML's interface: the wrapped loss's reducer, once there is a wrapped loss."""
        wrapped = self.__dict__["_modules"].get("loss")
        set_reducer: Any = getattr(wrapped, "set_reducer", super().set_reducer)
        set_reducer(reducer)

    def all_regularization_loss_names(self) -> list[str]:
        """PML's interface: of the wrapper's own regularizer; the wrapped loss's is part of its value."""
        return ["embedding_reg_loss"] if self._is_own("embedding_regularizer") and self.embedding_regularizer else []

    def add_up(
        self, loss_dict: dict[str, dict[str, Any]], embeddings: Tensor, labels: Tensor | None, regularize: bool = True
    ) -> Any:
        """What PML does with a dict of losses; of an empty batch a regularizer would be NaN."""
        if regularize and self.all_regularization_loss_names() and len(embeddings):
            self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        return self.total_reducer(loss_dict, embeddings, labels)

    def _wrapped_loss(self, embeddings: Any, labels: Any = None, *args: Any) -> Tensor:
        """The wrapped loss; not every loss takes the arguments that are None."""
        while args and args[-1] is None:
            args = args[:-1]
        value: Tensor = self.loss(embeddings, labels, *args)
        return value

    def evaluate(self, embeddings: Tensor, labels: Tensor | None, *args: Any) -> Tensor:
        """The wrapped loss, and the regularizer that was given to this one.

        Labels of integers are the same for it as in training, where they are long: of others PML's losses take some.
        """
        self.reset_stats()
        whole = as_long(labels)
        # PML tells references by their labels, which are another object.
        value = self._wrapped_loss(embeddings, whole, *(whole if x is labels else as_long(x) for x in args))
        if not self.all_regularization_loss_names():
            return value
        metric = already_reduced(as_scalar(value, self.loss))
        total: Tensor = self.add_up({"metric_loss": metric}, embeddings, labels)
        return total

    def value_with_graph(self, args: tuple[Any, ...], node_labels: Tensor, has_negatives: bool) -> tuple[Tensor, bool]:
        """The wrapped loss of a real batch, 0 with a graph where it has no value; and whether L is to follow it.

        Of an empty batch some PML losses fail. Of one without positives most make 0, some NaN, and regularizers are
        all that is left.
        """
        embeddings, labels = args[:2]
        if has_negatives:
            return as_scalar(self._wrapped_loss(*args), self.loss), True
        # Distributed training waits for a gradient of every parameter.
        zero = sum(((p * 0).sum() for p in self.loss.parameters()), start=(embeddings * 0).sum())
        if len(embeddings) == 0:
            return zero, False
        value = as_scalar(self._wrapped_loss(*args), self.loss)
        with without_regularizers(self.loss) as regularizes:
            bare = self._wrapped_loss(*args) if regularizes else value
        _, has_positive = next_positive(node_labels, len(labels))
        is_telling = bool(has_positive.any() | (bare.isfinite() & (bare != 0)))
        return (value + zero if is_telling or value.isfinite() else zero), is_telling


@contextmanager
def without_regularizers(loss: nn.Module) -> Iterator[bool]:
    """Leave out PML's regularizers of a loss, and of the losses in it, for a while; tells whether there are any.

    A loss that is to be penalised on synthetic batches as well says so with ``penalizes_synthetic = True``.
    """
    found = [
        (module, name, getattr(module, name))
        for module in loss.modules()
        for name in REGULARIZERS
        if isinstance(module, BaseMetricLossFunction)  # of others, None may be no regularizer
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
    """What a loss returned, 0-dimensional.

    Raises:
        TypeError, ValueError: it is no tensor of one floating-point number.
    """
    expected = f"loss {type(loss).__name__}, and what is registered for it, must return a scalar tensor"
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"{expected}, such as values.mean(), got {value.dtype} of shape {tuple(value.shape)}")
    return value.reshape(())


def already_reduced(value: Tensor) -> dict[str, Any]:
    """A scalar as an entry of PML's dict of losses."""
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}
