"""Route calls of PML's losses through our wrapper; see pml_suite.py."""

from collections import Counter
from itertools import zip_longest

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.common_functions import NUMPY_RANDOM
from torch import nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import (
    ClassifiedGenerator,
    ConstantGenerator,
    EmbeddingExpansionGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
    SymmetricalSynthesisGenerator,
)
from pml_gca.utils.dtypes import as_wide_as

GENERATORS = {
    "global-correlation": lambda n, d: GlobalCorrelationGenerator(n, d, num_layers=1, num_heads=1),
    "real-negatives": lambda n, d: ClassifiedGenerator(HardestNegativeGenerator(n, d)),
    "constant": lambda n, d: ConstantGenerator(n, d, coefficient=0.5),
    "embedding-expansion": EmbeddingExpansionGenerator,
    "hardness-aware": HardnessAwareGenerator,
    "mixup": MixupGenerator,
    "random": RandomGenerator,
    "symmetrical-synthesis": SymmetricalSynthesisGenerator,
}
MOST_NODES = 100  # of a graph; larger calls, from PML's tests of memories, go to PML alone
plain = nn.Module.__call__
ROUTED = (losses.BaseMetricLossFunction, losses.MultipleLosses)


class Routing:
    """Within this context, route calls of PML's losses through our wrapper, and count the outcomes."""

    def __init__(self, mode, generator="global-correlation"):
        self.mode, self.generator = mode, GENERATORS[generator]
        self.counts, self.aside, self.failures = Counter(), Counter(), Counter()
        self.where = ""  # id of the running test
        self._loss, self._start, self._busy = None, None, False

    def __enter__(self):
        def call(loss, *args, **kwargs):
            return self.call(loss, args, kwargs)

        for kind in ROUTED:
            kind.__call__ = call
        return self

    def __exit__(self, *_):
        for kind in ROUTED:
            del kind.__call__

    def call(self, loss, args, kwargs):
        """Return what PML's test gets for `loss(*args, **kwargs)`."""
        if self._busy or isinstance(loss, HardNegativeGenerationLoss):
            if loss is self._loss:
                self._start = start_of(loss)
            before, self._busy = self._busy, True  # inner calls are the wrapper's own
            try:
                return plain(loss, *args, **kwargs)
            finally:
                self._busy = before
        self._busy = True
        try:
            return self.route(loss, args, kwargs)
        except Aside:
            return plain(loss, *args, **kwargs)
        finally:
            self._busy, self._loss = False, None

    def route(self, loss, args, kwargs):
        was_training, start = loss.training, start_of(loss)
        try:
            wrapper = self.wrap(loss, *args, **kwargs)
        finally:
            start_again(start)  # creating a generator draws random parameters
        self.counts["calls"] += 1
        given, (args, kwargs) = (args, kwargs), as_wide_as_parameters(loss, args, kwargs)
        expected = Outcome(loss, loss.parameters(), args, kwargs)
        start_again(start)
        self._loss, self._start = loss, None
        wrapper.train(self.mode == "training")
        if self.mode == "eval" or not torch.is_grad_enabled():  # without gradients the wrapper is PML's loss as well
            self.compare(loss, expected, Outcome(wrapper, loss.parameters(), args, kwargs))
        else:
            self.check(loss, wrapper, expected, args, kwargs)
        loss.train(was_training)
        start_again(start)
        # PML's tests of half precision need the parameters that PML narrows.
        is_widened = any(
            x is not y for x, y in zip((*given[0], *given[1].values()), (*args, *kwargs.values()), strict=True)
        )
        args, kwargs = given
        return plain(wrapper if self.mode == "eval" and not is_widened else loss, *args, **kwargs)

    def wrap(self, loss, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None):
        """Return the wrapper for one call; raise Aside if the call is not for a wrapper."""
        known = [int(x.max()) + 1 for x in (labels, ref_labels) if isinstance(x, torch.Tensor) and len(x)]
        nodes = sum(len(x) for x in (embeddings, ref_emb) if x is not None)
        if self.mode == "training" and nodes > MOST_NODES:
            self.set_aside(loss, f"more than {MOST_NODES} embeddings")
        try:
            wrapper = HardNegativeGenerationLoss(
                loss, self.generator(max(known, default=2), embeddings.shape[1]), collect_stats=self.mode == "training"
            )
        except (TypeError, ValueError) as error:
            self.set_aside(loss, f"{type(error).__name__}: {error}")
        for level in wrapper.levels.children():
            level.value.fill_(1.0)  # as in mid-training: negatives are pulled in, and count
        return wrapper

    def set_aside(self, loss, reason):
        self.aside[f"{type(loss).__name__}: {reason[:160]}"] += 1
        raise Aside

    def fail(self, loss, what):
        self.counts["failures"] += 1
        self.failures[f"{self.where}: {type(loss).__name__}: {what}"] += 1

    def compare(self, loss, expected, found):
        """In evaluation, require the same outcome."""
        if type(expected.error) is not type(found.error):
            self.fail(loss, f"PML: {expected.error!r}; wrapped: {found.error!r}")
        elif expected.error:
            self.counts["raised as by PML"] += 1
        elif not all(same(*pair) for pair in zip_longest(expected.tensors(), found.tensors())):
            self.fail(loss, f"{expected.value!r} became {found.value!r}, or gradients differ")
        else:
            self.counts["equal"] += 1

    def check(self, loss, wrapper, expected, args, kwargs):
        """In training, require finite values, and that J_m is PML's."""
        found = Outcome(wrapper, wrapper.parameters(), args, kwargs)
        if expected.error:
            if isinstance(found.error, (TypeError, ValueError, type(expected.error))):
                self.counts["raised as by PML"] += 1
            else:
                self.fail(loss, f"PML: {expected.error!r}; wrapped: {found.error!r}")
        elif isinstance(found.error, (TypeError, ValueError)):
            self.counts["refused"] += 1
            self.aside[f"{type(loss).__name__}: refused: {found.error}"[:200]] += 1
        elif found.error:
            self.fail(loss, repr(found.error))
        elif not expected.is_finite():
            self.counts["not finite in PML"] += 1
        elif not found.is_finite():
            self.fail(loss, f"a value or gradient is not finite: {found.value!r}")
        else:
            metric = 0.0  # for no embeddings
            if self._start:
                start_again(self._start)
                metric = float(Outcome(loss, (), args, kwargs).value.detach())
            if wrapper.metric_loss == metric:
                self.counts["finite, J_m is PML's"] += 1
            else:
                self.fail(loss, f"J_m is {wrapper.metric_loss}, PML's loss {metric}")


def as_wide_as_parameters(loss, args, kwargs):
    """Widen embeddings and references as the wrapper does, where PML would narrow the parameters of the loss."""
    parameters, made = list(loss.parameters()), {}

    def wide(x):  # references that are the embeddings stay the same object
        if id(x) not in made:
            made[id(x)] = as_wide_as(parameters, x)
        return made[id(x)]

    args = tuple(wide(x) if place in (0, 3) else x for place, x in enumerate(args))
    return args, {name: wide(x) if name in ("embeddings", "ref_emb") else x for name, x in kwargs.items()}


class Aside(Exception):
    """The call goes to PML alone; no wrapper is used."""


class Outcome:
    """The result of a call: a value and the gradients of embeddings, references and parameters, or an error."""

    def __init__(self, loss, parameters, args, kwargs):
        self.value, self.gradients, self.error = None, [], None
        leaves = {}

        def leaf(x):  # references that are the embeddings stay the same object
            if not isinstance(x, torch.Tensor) or not x.is_floating_point():
                return x
            return leaves.setdefault(id(x), x.detach().clone().requires_grad_())

        try:
            self.value = plain(loss, *map(leaf, args), **{key: leaf(x) for key, x in kwargs.items()})
            if isinstance(self.value, torch.Tensor) and self.value.requires_grad:
                every = [*leaves.values(), *(p for p in parameters if p.requires_grad)]
                self.gradients = list(torch.autograd.grad(self.value, every, allow_unused=True))
        except Exception as error:  # of any kind: errors are compared
            self.error = error

    def tensors(self):
        return [self.value, *self.gradients]

    def is_finite(self):
        return all(x is None or bool(torch.as_tensor(x).isfinite().all()) for x in self.tensors())


def same(x, y):
    """Return whether two results are equal to the last bit, with the same dtype; NaN equals NaN."""
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return x is y or (type(x) is type(y) and x == y)
    return x.dtype == y.dtype and torch.equal(x.nan_to_num(), y.nan_to_num()) and torch.equal(x.isnan(), y.isnan())


def start_of(loss):
    """Return what a call depends on and changes: random states, and weights (some losses normalise them)."""
    weights = [(x, x.detach().clone()) for x in (*loss.parameters(), *loss.buffers())]
    return torch.get_rng_state(), NUMPY_RANDOM.get_state(), weights


def start_again(state):
    torch.set_rng_state(state[0])
    NUMPY_RANDOM.set_state(state[1])
    for x, before in state[2]:
        x.data = before.clone()  # the dtype may have changed
