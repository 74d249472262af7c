"""The training pose with the smallest PA error to each validation pose: an oracle of the training set.

It looks at the truth and may turn, move and scale what it takes, but knows no articulation beyond the
training set: a network that scores worse has not learned more than to look up.
Legend: N validation poses, M training poses, J joints, P pairs. Metres in, mm out.

All N x M pairs are ranked by the root mean square (rms) of their distances after the best similarity. It
follows from the largest root of a quartic whose coefficients are sums of products of nine covariances: matrix
products and some arithmetic for thousands of pairs at a time, instead of an SVD a pair. Only promising pairs
are scored by `pa_mpjpe_mm` itself.

What is exact. Every value returned is the `pa_mpjpe_mm` of a training pose, so none is below the true
minimum. A pair is scored if it is among the `FIRST` of its row by rms, or if its rms is below the best score
of those / `LEAST_SHARE`, up to `MOST` pairs a row. So the minimum is missed only where the nearest pose's
mean distance is less than `LEAST_SHARE` of its rms (nearly all its error on few joints), or where `MOST`
others are closer by rms. With M <= FIRST nothing is left out. Ranking is in float32: rms is right to about
0.1 mm for near pairs, which the threshold allows for.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from src.errors import DataError, ShapeError
from src.evaluation.metrics import pa_mpjpe_mm
from src.runtime.progress import progress

FIRST = 32
"""Training poses per row that are scored in any case."""
MOST = 2048
"""Most training poses per row that are scored."""
LEAST_SHARE = 0.65
"""Least mean distance over rms of the pose that is looked for; 0.85 is usual, 0.69 the least seen."""

_ROWS = 32
_COLUMNS = 512
"""A tile of pairs: its planes stay in the processor's cache."""
_NEWTON_STEPS = 5
_LEAST_SLOPE = 1e-4
"""At a double root (poses on a line) Newton would divide 0 by 0: it stops there, the exact score decides."""
_ROUNDING = 4e-6
"""Of 1 - gain^2 in float32, with room."""
_FLAT_M = 1e-9
"""Norm below which a pose has no shape to compare."""
_MANY_PAIRS = 3e7
"""Fewer pairs take a few seconds: no bar."""


def nearest_pose_mm(
    train_joints_m: NDArray[np.floating],
    val_joints_m: NDArray[np.floating],
    *,
    show_progress: bool = False,
) -> NDArray[np.float64]:
    """PA-MPJPE of the best of the training poses for each validation pose.

    Memory beyond the inputs: 260 bytes a training pose and 260 a validation pose, and 200 MB at most.

    Args:
        train_joints_m: (M, J, 3) metres, any frame, all finite.
        val_joints_m: (N, J, 3) metres, any frame, same joint order; a row that is not finite gives nan.
        show_progress: draw a bar when it takes long.

    Returns:
        (N,) float64 mm.

    Raises:
        ShapeError: shapes are not these.
        DataError: no training pose, or one that is not finite.
    """
    train, val = np.asarray(train_joints_m), np.asarray(val_joints_m)
    if train.ndim != 3 or val.ndim != 3 or train.shape[1:] != val.shape[1:] or train.shape[2] != 3:
        raise ShapeError(f"nearest pose needs (M, J, 3) and (N, J, 3), got {train.shape} and {val.shape}")
    if len(train) == 0 or not np.isfinite(train).all():
        raise DataError(f"nearest pose: {len(train)} training poses, want at least one, all finite")
    out = np.full(len(val), np.nan)
    rows = np.flatnonzero(np.isfinite(val).all(axis=(1, 2)))
    train_planes, _ = _planes(train)
    val_planes, val_norm = _planes(val[rows])
    shown = show_progress and len(rows) * len(train) > _MANY_PAIRS
    starts = range(0, len(rows), _ROWS)
    for start in progress(starts, total=len(starts), desc="nearest training poses", enabled=shown):
        part = slice(start, start + _ROWS)
        gains = torch.empty(len(rows[part]), len(train))
        for column in range(0, len(train), _COLUMNS):
            tile = slice(column, column + _COLUMNS)
            gains[:, tile] = alignment_gain(val_planes[:, part], train_planes[:, tile])
        out[rows[part]] = _smallest(train, val[rows[part]], val_norm[part], gains)
    return out


def alignment_gain(val: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """How well one pose can be turned onto another: max over rotations R of trace(R^T M), M their covariance.

    Between poses of unit norm the best similarity leaves the squared error 1 - gain^2. The gain is
    s1 + s2 + sign(det M) s3 of M's singular values, the largest root of
        x^4 - 2 |M|^2 x^2 - 8 det(M) x + 2 |M M^T|^2 - |M|^4;
    all roots are real, so Newton's steps from above, x = 1, fall monotonically onto it: where they have not
    arrived (poor matches), the gain is too large, and a pair is tried in vain rather than lost.

    Args:
        val: (3, n, J) centred poses of unit norm, coordinate by coordinate.
        train: (3, m, J) likewise.

    Returns:
        (n, m) float32.

    Source: Horn 1987 (the quartic), Theobald 2005 (its largest root by Newton's method).
    """
    a, b, c = torch.matmul(val[:, None], train[None].transpose(-1, -2))  # rows of M, each (3, n, m)
    aa, bb, cc = (a * a).sum(0), (b * b).sum(0), (c * c).sum(0)
    ab, ac, bc = (a * b).sum(0), (a * c).sum(0), (b * c).sum(0)
    determinant = a[0] * (b[1] * c[2] - b[2] * c[1])
    determinant += a[1] * (b[2] * c[0] - b[0] * c[2])
    determinant += a[2] * (b[0] * c[1] - b[1] * c[0])
    square = aa + bb + cc
    gram = (aa * aa + bb * bb + cc * cc).add_(ab * ab + ac * ac + bc * bc, alpha=2.0)
    c2, c1, c0 = -2.0 * square, -8.0 * determinant, 2.0 * gram - square * square
    x = torch.ones_like(c0)
    for _ in range(_NEWTON_STEPS):
        x2 = x * x
        rest = x2 + c2
        slope = (x2 + rest).mul_(x).mul_(2.0).add_(c1)  # 4 x^3 + 2 c2 x + c1
        value = rest.mul_(x).add_(c1).mul_(x).add_(c0)
        x -= value.masked_fill_(slope < _LEAST_SLOPE, 0.0).div_(slope.clamp_min_(_LEAST_SLOPE))
    return x


def _planes(joints_m: NDArray[np.floating]) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """(n, J, 3) -> (3, n, J) float32, each pose centred and of unit norm (0 without extent); norms (n,) m."""
    points = np.asarray(joints_m, dtype=np.float64)
    points = points - points.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(points).sum(axis=(1, 2)))
    points *= np.where(norm > _FLAT_M, 1.0 / np.maximum(norm, _FLAT_M), 0.0)[:, None, None]
    return torch.from_numpy(np.ascontiguousarray(points.transpose(2, 0, 1), dtype=np.float32)), norm


def _smallest(
    train: NDArray[np.floating], val: NDArray[np.floating], norm_m: NDArray[np.float64], gains: torch.Tensor
) -> NDArray[np.float64]:
    """(n,) mm: smallest exact score of each row's promising pairs; gains (n, M)."""
    first = gains.topk(min(FIRST, len(train)), dim=1, sorted=False).indices.numpy()
    every = _scores(train, val, np.repeat(np.arange(len(val)), first.shape[1]), first.ravel())
    best: NDArray[np.float64] = every.reshape(first.shape).min(axis=1)
    # rms = norm sqrt((1 - gain^2) / J), so the largest rms to be tried is the smallest gain to be tried.
    rms_m = best / 1000.0 / LEAST_SHARE
    error = val.shape[1] * np.square(rms_m / np.maximum(norm_m, _FLAT_M)) + _ROUNDING
    reach = torch.from_numpy(np.sqrt(np.maximum(0.0, 1.0 - error)).astype(np.float32))[:, None]
    most = min(int((gains >= reach).sum(1).max()), MOST)
    if most > first.shape[1]:
        values, columns = gains.topk(most, dim=1, sorted=False)
        row, place = np.nonzero((values >= reach).numpy())
        np.minimum.at(best, row, _scores(train, val, row, columns.numpy()[row, place]))
    return best


def _scores(
    train: NDArray[np.floating], val: NDArray[np.floating], row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(P,) mm: `pa_mpjpe_mm` of training pose column[p] against row[p]."""
    return pa_mpjpe_mm(train[column], val[row])
