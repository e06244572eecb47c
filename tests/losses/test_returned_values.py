"""A custom loss must return one number; the error names a loss that does not."""

import copy

import pytest
import torch
from helpers.registered_losses import LABELS, SIZE, make_loss, register, within_one_batch
from torch import nn


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(len(LABELS), SIZE, requires_grad=True)


class Returns(nn.Module):
    """A plain module as a loss; `finish` turns its values into what it returns."""

    def __init__(self, finish):
        super().__init__()
        self.finish = finish

    def forward(self, embeddings, labels, *args):
        return self.finish(torch.cdist(embeddings, embeddings).mean(dim=1))


NO_SCALARS = {
    "one value each": (lambda values: values, ValueError, r"values\.mean\(\), got torch.float32 of shape \(\d+,\)"),
    "a dict": (lambda values: {"loss": values.mean()}, TypeError, "got dict"),
    "a number": (lambda values: values.mean().item(), TypeError, "got float"),
    "a count": (lambda values: (values > 1).sum(), ValueError, "got torch.int64"),
    "nothing": (lambda values: None, TypeError, "got NoneType"),
}


@pytest.mark.parametrize("labels", [LABELS, LABELS.unique()], ids=["negatives", "no positives, so no negatives"])
@pytest.mark.parametrize("case", sorted(NO_SCALARS))
def test_values_that_are_not_scalars_raise(case, labels, z):
    finish, kind, found = NO_SCALARS[case]
    wrapped = register(Returns, within_one_batch)(finish)
    loss = make_loss(wrapped)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(kind, match=f"loss Returns, and the function registered for it, must return a scalar.*{found}"):
        loss(z[: len(labels)], labels)
    for name, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_registered_function_that_returns_nothing_raises(z):
    wrapped = register(Returns, lambda loss, batch: None)(torch.mean)
    with pytest.raises(TypeError, match="the function registered for it, must return a scalar tensor, got NoneType"):
        make_loss(wrapped)(z, LABELS)


def test_a_tensor_of_one_value_is_a_scalar(z):
    values = []
    for keepdim in (True, False):
        loss = make_loss(register(Returns, within_one_batch)(lambda x, keep=keepdim: x.mean(0, keepdim=keep)))
        torch.manual_seed(3)
        values.append(loss(z, LABELS))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
