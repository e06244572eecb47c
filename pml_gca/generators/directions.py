"""Points made of two embeddings: mixed by direction and length, or mirrored."""

import torch
from torch import Tensor

from ..utils.norms import directed, unit

ROUNDING = 8  # in units of the dtype's resolution: a sum of two unit vectors of at most this length has no direction


def mix(first: Tensor, second: Tensor, share: Tensor, normalize: bool) -> Tensor:
    r"""Return points between two rows, with t the share of the first: $v = t\,a + (1 - t)\,b$.

    With `normalize`, rows and mixture have unit length. The mixture is then scaled to the length
    $t \lVert a \rVert + (1 - t) \lVert b \rVert$, about that of the embeddings it is compared with. Opposite
    directions that cancel give the zero vector.

    Args:
        first, second: (R, D), in float32 or wider.
        share: t, (R, 1) or what broadcasts to it, in [0, 1].
        normalize: mix directions and lengths, else the rows as they are.
    """
    if not normalize:
        return torch.lerp(second, first, share)
    return mix_directions(unit(first), unit(second), share)


def mix_directions(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """Return `mix` with `normalize`, from directions (R, D) and lengths (R, 1)."""
    (a, a_length), (b, b_length) = first, second
    direction, _ = directed(torch.lerp(b, a, share), ROUNDING * torch.finfo(a.dtype).eps)
    return direction * torch.lerp(b_length, a_length, share)


def reflect(points: Tensor, axes: Tensor) -> Tensor:
    r"""Return points mirrored about the lines through 0 and `axes`: $q = 2 (p \cdot u) u - p$, with u = a/‖a‖.

    Length and angle with the axis stay the same. A zero vector is no axis: the point stays where it is.

    Args:
        points, axes: (R, D), in float32 or wider: p and a.
    """
    u, length = unit(axes)
    mirrored = 2 * (points * u).sum(dim=1, keepdim=True) * u - points
    return torch.where(length > 0, mirrored, points)
