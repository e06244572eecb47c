import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_gca.utils import norms
from pml_gca.utils.norms import are_usual, length, scale_of, unit
from pml_gca.utils.row_dots import norm_or_floor

SCALES = [1e-30, 1e-24, 1e-19, 1e-12, 1.0, 1e12, 1e17, 1e19, 1e24, 1e30]


def rows(count=6, size=16, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("norm_of", [length, lambda x: unit(x)[1][:, 0], lambda x: norm_or_floor(x, floor=0.0)])
def test_lengths_and_their_gradients_are_those_of_float64(scale, norm_of):
    x = (rows() * scale).requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, wanted = norm_of(x), wide.norm(dim=1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(total, z)[0].double() for total, z in ((found.sum(), x), (wanted.sum(), wide)))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [1.0, 3.0])
@pytest.mark.parametrize("scale", SCALES)
def test_other_norms_are_those_of_float64(scale, p):
    x = rows() * scale
    wanted = torch.linalg.vector_norm(x.double(), ord=p, dim=1)
    torch.testing.assert_close(norm_or_floor(x, p, floor=0.0).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_directions_and_their_gradients_are_those_of_float64(scale):
    x = (rows() * scale).requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, wanted = unit(x)[0], wide / wide.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)
    pick = rows(seed=1).double()
    (ours,) = torch.autograd.grad((found * pick).sum(), x)
    (theirs,) = torch.autograd.grad((wanted * pick).sum(), wide)
    torch.testing.assert_close(ours.double() * scale, theirs * scale, rtol=1e-5, atol=1e-6)


def test_rows_of_any_mixture_of_sizes():
    x = rows(len(SCALES)) * torch.tensor(SCALES)[:, None]
    torch.testing.assert_close(length(x).double(), x.double().norm(dim=1), rtol=1e-6, atol=0)


@given(st.floats(-29, 29), st.integers(0, 99))
def test_rows_of_usual_size_are_left_as_they_are(exponent, seed):
    x = rows(seed=seed)
    x = x / x.abs().max() * 2.0**exponent
    x[1:] = x[:1]
    assert torch.equal(scale_of(x), torch.ones(6, 1))
    assert torch.equal(length(x), torch.linalg.vector_norm(x, dim=1))


def test_zero_rows_have_no_direction_and_no_gradient():
    x = torch.zeros(2, 4)
    x[1] = 1e-30
    x.requires_grad_()
    directions, lengths = unit(x)
    assert torch.equal(scale_of(x)[0], torch.ones(1))
    assert not directions[0].any()
    torch.testing.assert_close(directions[1], torch.full((4,), 0.5))
    (directions.sum() + lengths.sum() + length(x).sum() + norm_or_floor(x, floor=0.0).sum()).backward()
    assert not x.grad[0].any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_values(shape):
    assert scale_of(torch.zeros(shape)).shape == (shape[0], 1)
    assert length(torch.zeros(shape)).shape == shape[:1]


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan, 1e12, 1e-12])
def test_norms_that_tell_too_little_are_not_usual(bad):
    assert are_usual(torch.ones(3))
    assert not are_usual(torch.tensor([1.0, bad, 1.0]))


@pytest.mark.parametrize("scale", SCALES)
def test_devices_with_wide_sums_return_the_same_lengths(scale, monkeypatch):
    monkeypatch.setattr(norms, "WIDE_NORMS", ("cpu",))
    x = torch.cat([rows() * scale, torch.zeros(1, 16)])
    found = length(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double().norm(dim=1), rtol=1e-7, atol=0)
    assert length(x.t(), dim=0, keepdim=True).shape == (1, 7)
    leaf = x.clone().requires_grad_()
    (once,) = torch.autograd.grad(length(leaf).sum(), leaf, create_graph=True)
    torch.testing.assert_close(once[:-1], x[:-1] / found[:-1, None], rtol=1e-5, atol=1e-7)
    (twice,) = torch.autograd.grad(once.sum(), leaf)
    assert not once[-1].any()
    assert not twice[-1].any()  # a wide sum would give NaN: with a gradient, the scaled one is taken
    norm_or_floor(leaf, floor=0.0).sum().backward()
    torch.testing.assert_close(leaf.grad[:-1], x[:-1] / found[:-1, None], rtol=1e-5, atol=1e-7)
