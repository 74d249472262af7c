"""Rotation matrices and the two other forms that exist at the doors: axis-angle and 6D.

A rotation matrix R turns column vectors: x' = R x. The 6D form is the first two **columns** of R, one after
the other, and nothing else in this project reads or writes it. Any leading axes; dtype and device are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.errors import ShapeError


def rotation_from_6d(sixd: Tensor) -> Tensor:
    """Rotation matrices from 6D, by Gram-Schmidt on the two columns.

    Args:
        sixd: (..., 6), first column then second column; any non-zero, non-parallel pair.

    Returns:
        (..., 3, 3) with det +1.

    Raises:
        ShapeError: the last axis is not 6.

    Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks".
    """
    need_axes(sixd, (6,), "6D rotations")
    first, second = sixd[..., :3], sixd[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], dim=-1)


def sixd_from_rotation(rotation: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6): the inverse of `rotation_from_6d`.

    Raises:
        ShapeError: the last two axes are not (3, 3).
    """
    need_axes(rotation, (3, 3), "rotation matrices")
    return torch.cat([rotation[..., 0], rotation[..., 1]], dim=-1)


def rotation_from_aa(aa: Tensor) -> Tensor:
    """Rotation matrices from axis-angle (Rodrigues), with exact derivatives at zero.

    Args:
        aa: (..., 3), direction = axis, length = angle in radians.

    Returns:
        (..., 3, 3).

    Raises:
        ShapeError: the last axis is not 3.
    """
    need_axes(aa, (3,), "axis-angle vectors")
    square = (aa * aa).sum(-1)[..., None, None]
    small = square < 1e-6
    # The unused branch of `where` must stay finite, or its gradient turns into nan.
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - square / 6 + square**2 / 120, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - square / 24 + square**2 / 720, (1 - angle.cos()) / safe)
    cross = cross_matrix(aa)
    eye = torch.eye(3, dtype=aa.dtype, device=aa.device)
    return eye + sine * cross + cosine * (cross @ cross)


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """(..., 4) unit quaternions as w, x, y, z -> (..., 3, 3); q and -q are one rotation.

    Raises:
        ShapeError: the last axis is not 4.
    """
    need_axes(quaternion, (4,), "quaternions")
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], -1),
    ]
    return torch.stack(rows, -2)


def quaternion_form(matrix: Tensor) -> Tensor:
    """The identity plus the symmetric matrix K with q^T K q = trace(R(q)^T matrix) for unit quaternions q.

    Of a rotation matrix it is 4 q q^T.

    Args:
        matrix: (..., 3, 3), any.

    Returns:
        (..., 4, 4); rows and columns are w, x, y, z.

    Raises:
        ShapeError: the last two axes are not (3, 3).

    Source: Horn 1987, "Closed-form solution of absolute orientation using unit quaternions".
    """
    need_axes(matrix, (3, 3), "matrices")
    m = matrix
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    a, b = m[..., 2, 1], m[..., 1, 2]
    c, d = m[..., 0, 2], m[..., 2, 0]
    e, f = m[..., 1, 0], m[..., 0, 1]
    rows = [
        torch.stack([1 + m00 + m11 + m22, a - b, c - d, e - f], -1),
        torch.stack([a - b, 1 + m00 - m11 - m22, e + f, c + d], -1),
        torch.stack([c - d, e + f, 1 - m00 + m11 - m22, a + b], -1),
        torch.stack([e - f, c + d, a + b, 1 - m00 - m11 + m22], -1),
    ]
    return torch.stack(rows, -2)


def largest_row(matrix: Tensor) -> Tensor:
    """(..., N, N) -> (..., N) the row with the largest element on the diagonal, at length 1."""
    best = matrix.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    # take_along_dim does the same, and fixes the batch of a graph that is exported.
    row = matrix.gather(-2, best.expand_as(matrix[..., :1, :])).squeeze(-2)
    return torch.nn.functional.normalize(row, dim=-1)


def rotation_about_z(angle_rad: Tensor) -> Tensor:
    """(...) angles -> (..., 3, 3) rotations about z: x towards y for positive angles, radians."""
    c, s = angle_rad.cos(), angle_rad.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = [torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1), torch.stack([zero, zero, one], -1)]
    return torch.stack(rows, -2)


def rotation_between(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation that turns each source direction onto its target.

    Args:
        source, target: (..., 3), any length above zero.

    Returns:
        (..., 3, 3) with R source / |source| = target / |target|. Opposite directions turn by pi about some
        axis perpendicular to both; a direction of length zero gives the identity.

    Raises:
        ShapeError: the last axis is not 3.
    """
    need_axes(source, (3,), "source directions")
    need_axes(target, (3,), "target directions")
    s = torch.nn.functional.normalize(source, dim=-1)
    t = torch.nn.functional.normalize(target, dim=-1)
    cosine = (s * t).sum(-1)[..., None, None]
    cross = cross_matrix(torch.linalg.cross(s, t, dim=-1))
    eye = torch.eye(3, dtype=s.dtype, device=s.device)
    opposite = cosine < -1 + 1e-6
    turn = eye + cross + cross @ cross / torch.where(opposite, 1.0, 1 + cosine)
    # Half a turn about any axis perpendicular to s: R = 2 a a^T - I.
    # The coordinate axis farthest from s, by comparison: one_hot asks the device for its largest index.
    other = (torch.arange(3, device=s.device) == s.abs().argmin(-1, keepdim=True)).to(s.dtype)
    axis = torch.nn.functional.normalize(torch.linalg.cross(s, other, dim=-1), dim=-1)
    half = 2 * axis[..., :, None] * axis[..., None, :] - eye
    return torch.where(opposite, half, turn)


def cross_matrix(vector: Tensor) -> Tensor:
    """(..., 3) -> (..., 3, 3) with cross_matrix(a) b = a x b."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack([zero, -z, y], -1), torch.stack([z, zero, -x], -1), torch.stack([-y, x, zero], -1)]
    return torch.stack(rows, -2)


def need_axes(tensor: Tensor, tail: tuple[int, ...], what: str) -> None:
    """Raise ShapeError unless the last axes of `tensor` are `tail`; `what` is its name."""
    if tuple(tensor.shape[-len(tail) :]) != tail:
        raise ShapeError(f"{what}: got shape {tuple(tensor.shape)}, want last axes {tail}")
