"""Count multiply-adds and memory of a step, operator by operator."""

import weakref
from collections import Counter

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class MultiplyAdds(TorchDispatchMode):
    """Multiply-adds of matrix products and of attention, by operator."""

    def __init__(self):
        super().__init__()
        self.by_operator = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        operator = function._overloadpacket
        name = operator.__name__
        if "scaled_dot_product" in name:  # torch versions differ in which of these they can count
            query, key = args[1:3] if "backward" in name else args[:2]
            heads, rows, size = query.shape[-3:]
            self.by_operator[name] += (5 if "backward" in name else 2) * heads * rows * key.shape[-2] * size
        elif operator in flop_registry:
            self.by_operator[name] += flop_registry[operator](*args, **(kwargs or {}), out_val=out) // 2
        return out

    @property
    def total(self):
        return sum(self.by_operator.values())


class LiveBytes(TorchDispatchMode):
    """Bytes of storages created within this context: alive now, and at the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in storages((args, kwargs)):
            self._see(storage, 0)  # existed before
        out = function(*args, **(kwargs or {}))
        for storage in storages(out):
            self._see(storage, storage.nbytes())
        return out

    def of_at_least(self, size):
        """Return the bytes of live storages that take `size` or more each."""
        return sum(n for n in self._sizes.values() if n >= size)

    def _see(self, storage, size):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.now -= self._sizes.pop(key)


def storages(values):
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]
