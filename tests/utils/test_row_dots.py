import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from pml_gca.utils.row_dots import norm_or_floor, row_dots


def inputs(num_shared, num_rows, size, seed, dtype=torch.float64):
    """Shared rows, rows, and which shared row each meets: some several times, some never."""
    source = torch.Generator().manual_seed(seed)
    shared, rows = (
        torch.randn(count, size, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (num_shared, num_rows)
    )
    return shared, torch.randint(num_shared, (num_rows,), generator=source), rows


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 6),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1, 7, 1000]),
)
def test_dots_and_gradients_are_those_of_the_formula(num_shared, num_rows, size, seed, dtype, at_a_time):
    shared, index, rows = inputs(num_shared, num_rows, size, seed, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pml_gca.utils.row_dots.VALUES_AT_A_TIME", at_a_time)
        dots = row_dots(shared, index, rows)
        ours = grad(dots.cos().sum(), [shared, rows])
    expected = (shared[index] * rows).sum(dim=1)
    torch.testing.assert_close(dots, expected)
    for found, wanted in zip(ours, grad(expected.cos().sum(), [shared, rows]), strict=True):
        torch.testing.assert_close(found, wanted)


def test_gradients_against_numerical_ones():
    shared, index, rows = inputs(3, 5, 2, 0)
    assert gradcheck(lambda s, r: row_dots(s, index, r), [shared, rows])


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_for_one_of_them_alone(which):
    shared, index, rows = inputs(3, 7, 4, 0)
    tensors = [shared, rows]
    tensors[1 - which] = tensors[1 - which].detach()
    expected = grad((shared[index] * rows).sum(), [shared, rows])[which]
    torch.testing.assert_close(grad(row_dots(tensors[0], index, tensors[1]).sum(), tensors[which])[0], expected)


def test_no_rows_and_no_channels():
    shared, index, rows = inputs(3, 0, 4, 0)
    dots = row_dots(shared, index, rows)
    assert dots.shape == (0,)
    assert [g.abs().sum() for g in grad(dots.sum(), [shared, rows])] == [0, 0]
    shared, index, rows = inputs(3, 4, 0, 0)
    assert row_dots(shared, index, rows).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_norms_are_those_that_normalize_divides_by(p):
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-13, 0.0]], dtype=torch.float64, requires_grad=True)
    ours, theirs = rows / norm_or_floor(rows, p)[:, None], torch.nn.functional.normalize(rows, p=p)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    torch.testing.assert_close(grad((ours * weights).sum(), rows), grad((theirs * weights).sum(), rows))
    assert norm_or_floor(rows.detach(), floor=7.0).tolist() == [7.0, 7.0, 7.0]
