"""Alignment of corresponding point sets, batched, in float64.

`fit_rotation` runs inside the network: plain products, nothing that a device reports back to the host.
`fit_similarity` scores on the CPU, thousands of sets at a time, mirrored ones too: there a singular value
decomposition is faster.

Legend: B sets, J points. `x' = scale * R x + t` with column vectors. No gradients: these fits measure errors
and start poses; they are not differentiated through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.errors import ShapeError
from src.geometry.rotation import largest_row, quaternion_form, rotation_from_quaternion

_SQUARINGS = 48
"""Doublings that part two eigenvalues which differ by 1e-13 of the largest: float64 tells no more apart."""

_SCALE_EVERY = 4
"""Squarings between two rescalings: numbers below 3 stay below 1e8 on the way."""

_FLAT = 1e-14
"""Sets whose mean squared spread, relative to their mean squared size, is below this have no shape."""


@dataclass(frozen=True)
class Similarity:
    """Similarity transforms, one a row."""

    scale: Tensor
    """(B,) float64."""
    rotation: Tensor
    """(B, 3, 3) float64; det +1, or -1 where reflections were allowed and fit better."""
    translation: Tensor
    """(B, 3) float64, unit of the target."""
    valid: Tensor
    """(B,) bool; rows that are not valid are NaN."""

    def apply(self, points: Tensor) -> Tensor:
        """(B, J, 3) of the source's frame -> (B, J, 3) float64 of the target's frame."""
        turned = points.double() @ self.rotation.transpose(-1, -2)
        return self.scale[:, None, None] * turned + self.translation[:, None]


@torch.no_grad()
def fit_similarity(source: Tensor, target: Tensor, *, reflection: bool = False) -> Similarity:
    """Least-squares similarity that maps each source set onto its target.

    Minimises sum_j |s R source[j] + t - target[j]|^2.

    Args:
        source: (B, J, 3), any unit and frame.
        target: (B, J, 3), its unit and frame are the result's.
        reflection: allow det R = -1 where it fits better (HO3D's official evaluation does).

    Returns:
        `Similarity` in float64. A source without extent (all points equal) maps onto the target's centroid:
        scale 0, R = I, valid. A row with a non-finite number is not valid and NaN.

    Raises:
        ShapeError: shapes differ or are not (B, J, 3) with J >= 1.

    Source: Umeyama 1991, eq. 34-43.
    """
    if source.shape != target.shape or source.ndim != 3 or source.shape[-1] != 3 or source.shape[1] < 1:
        raise ShapeError(
            "fit_similarity needs two (B, J, 3) sets of one shape, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    x, y = source.double(), target.double()
    valid = torch.isfinite(x).all(-1).all(-1) & torch.isfinite(y).all(-1).all(-1)
    keep = valid[:, None, None]
    x, y = torch.where(keep, x, 0.0), torch.where(keep, y, 0.0)
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    cx, cy = x - mean_x, y - mean_y
    variance = cx.square().sum((1, 2))
    rotation, gain = _best_rotation(cy.transpose(1, 2) @ cx, reflection)
    # Below rounding of the coordinates themselves there is no shape, only noise to be blown up.
    flat = variance <= _FLAT * x.square().sum((1, 2)).clamp_min(1e-300)
    scale = torch.where(flat, 0.0, gain / torch.where(flat, 1.0, variance))
    rotation = torch.where(flat[:, None, None], torch.eye(3, dtype=x.dtype, device=x.device), rotation)
    translation = (mean_y - scale[:, None, None] * (mean_x @ rotation.transpose(1, 2)))[:, 0]
    nan = torch.full((), torch.nan, dtype=x.dtype, device=x.device)
    return Similarity(
        scale=torch.where(valid, scale, nan),
        rotation=torch.where(keep, rotation, nan),
        translation=torch.where(valid[:, None], translation, nan),
        valid=valid,
    )


@torch.no_grad()
def fit_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Rotation about the origin that best turns each source set onto its target.

    Minimises sum_j |R source[j] - target[j]|^2 with det R = +1 (Kabsch 1976). No step depends on values:
    a GPU's host goes on meanwhile, and the function can be traced and exported.

    Args:
        source: (B, J, 3), any unit; not centred here.
        target: (B, J, 3).

    Returns:
        (B, 3, 3) in the dtype of `source`, computed in float64, without gradient. Where several rotations are
        equally good (points on a line, mirror images with two equal spreads) it is one of them; where all
        points are zero, the identity. A row with a non-finite number is NaN.

    Raises:
        ShapeError: shapes differ or are not (B, J, 3).

    Source: Horn 1987: the best rotation's quaternion belongs to the largest eigenvalue of a 4 x 4 matrix.
    """
    if source.shape != target.shape or source.ndim != 3 or source.shape[-1] != 3:
        raise ShapeError(
            "fit_rotation needs two (B, J, 3) sets of one shape, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    x, y = source.double(), target.double()
    covariance = y.transpose(1, 2) @ x
    return rotation_from_quaternion(_top_quaternion(covariance)).to(source.dtype)


def _top_quaternion(covariance: Tensor) -> Tensor:
    """Unit quaternions (B, 4) of the rotations R that maximise trace(R^T covariance).

    Squared again and again, a symmetric matrix becomes the projection on the space of the eigenvalue that is
    largest in size. Horn's matrix of a covariance of norm 1 has its largest and its lowest eigenvalue at a
    sum above -1.2, so with the identity added the largest one is the largest in size.

    Args:
        covariance: (B, 3, 3) sum_j target source^T, float64.
    """
    size = covariance.abs().amax((-2, -1), keepdim=True)
    scaled = covariance / torch.where(size > 0, size, 1.0)
    norm = scaled.square().sum((-2, -1), keepdim=True).sqrt()
    power = quaternion_form(scaled / torch.where(norm > 0, norm, 1.0))
    for k in range(1, _SQUARINGS + 1):
        power = power @ power
        if k % _SCALE_EVERY == 0:
            power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return largest_row(power)


def _best_rotation(covariance: Tensor, reflection: bool) -> tuple[Tensor, Tensor]:
    """R that maximises trace(R^T covariance), and that maximum, for (B, 3, 3) = sum_j target source^T."""
    finite = torch.isfinite(covariance).all(-1).all(-1)[:, None, None]
    u, singular, vt = torch.linalg.svd(torch.where(finite, covariance, 0.0))
    if reflection:
        rotation = u @ vt
        gain = singular.sum(-1)
    else:
        sign = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        rotation = (u * flip[:, None]) @ vt
        gain = (singular * flip).sum(-1)
    return torch.where(finite, rotation, torch.nan), gain
