"""Adding up sub-losses without losing digits."""

from typing import Any

import torch
from pytorch_metric_learning.reducers import MultipleReducers
from torch import Tensor

from ..utils.dtypes import compute_dtype


class TotalReducer(MultipleReducers):
    """PML's ``MultipleReducers``, which adds up in the dtype of the embeddings; this one in float32 or wider.

    The terms of the generator are large beside the metric loss, which a total in half precision would round away.
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
