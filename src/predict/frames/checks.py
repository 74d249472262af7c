"""What can be seen of depth before anything is predicted: its unit, and whether it lies on the pictures.

Both look at a sample of the frames. `require_range` sees a unit that is wrong by a factor of eight or more
where hands are held at the usual 0.3 to 1 m; by a factor of four or five it may pass.

`require_on_picture` compares edges. Where depth jumps, the colour mostly changes; so the places of the
depth's edges are laid on the picture, moved, mirrored, turned and scaled, and the strength of the colour's
edges under them is averaged. An error is raised only if another placement has more than twice the strength
of the given one and stands out from all of its own shifts. It sees depth that is moved by more than about 5 %
of the picture's longer side, mirrored, turned upside down, or of a camera with another field of view. It does
not see less than that, nor depth of another frame or scene, which fits nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.predict.frame import Frame
from src.predict.frames.depth import UNITS_M

SAMPLE = 8
"""Frames that are looked at."""

_HAND_M = (0.15, 1.5)
"""Where a hand stands."""
_USUAL_M = 0.6
_LEAST_SHARE = 0.002
"""Of a picture's measured pixels within `_HAND_M`; a hand at 1.5 m takes three times as much."""
_NEAREST_M = 0.1
"""Depth cameras measure nothing nearer; and the share of pixels that may be nearer all the same."""
_NEAREST_PERCENT = 5

_SIDE = 160
"""Longer side of the pictures that are compared, pixels; further lengths are in these pixels."""
_REACH = 24
"""Farthest shift."""
_TOLERATED = 3
"""A sensor's own misalignment."""
_APART = 4
"""Shifts so near to tolerated ones are no other placement: edges are wide."""
_STEP = 0.06
"""Least relative step of depth that is an edge."""
_RATIO = 2.0
"""Another placement fits so much better."""
_OUTSTANDING = 5.0
"""And its strength is so many standard deviations above the mean of its shifts."""

_PLACEMENTS: dict[str, tuple[float, float]] = {
    "moved": (1, 1),
    "mirrored": (-1, 1),
    "turned upside down": (-1, -1),
    **{f"scaled by {scale:g} (another field of view)": (scale, scale) for scale in (0.67, 0.78, 0.88)},
    **{f"scaled by {scale:g} (another field of view)": (scale, scale) for scale in (1.12, 1.27, 1.45)},
}
"""Factors about the picture's centre, x and y."""

_KERNEL = np.ones((3, 3), np.uint8)


def require_range(depths_m: Sequence[NDArray[np.float32]], unit_m: float) -> None:
    """Refuse depth in which nothing is measured, or nothing where a hand could be.

    Args:
        depths_m: of some frames, (H, W) metres, 0 where nothing was measured.
        unit_m: metres per unit of what is stored.

    Raises:
        DataError: with the unit of `UNITS_M` that would fit.
    """
    measured = [depth[depth > 0] for depth in depths_m]
    measured = [m for m in measured if m.size]
    if not measured:
        raise DataError(
            f"depth: no pixel is measured in any of the {len(depths_m)} frames looked at. Leave --depth out, "
            "or export it anew"
        )
    if _has_room(measured, 1.0):
        return
    median = float(np.median(np.concatenate(measured)))
    hint = f"is the unit of {unit_m:.6g} m right?"
    if fitting := [u for u in UNITS_M if _has_room(measured, u / unit_m)]:
        best = min(fitting, key=lambda u: abs(np.log(u / unit_m * median / _USUAL_M)))
        hint = (
            f"the unit of {unit_m:.6g} m is wrong. With {best:g} ({UNITS_M[best]}) it would be "
            f"{best / unit_m * median:.2f} m"
        )
    raise DataError(
        f"depth: the median of the {len(measured)} frames looked at is {median:.4g} m, and a hand stands at "
        f"{_HAND_M[0]} to {_HAND_M[1]} m: {hint}"
    )


def require_on_picture(frames: Sequence[Frame]) -> None:
    """Refuse depth that lies on the pictures only when it is moved, mirrored, turned or scaled.

    Args:
        frames: of one source, all with depth.

    Raises:
        DataError: with what would fit.
    """
    strengths = {name: np.zeros((2 * _REACH + 1,) * 2) for name in _PLACEMENTS}
    weights = dict.fromkeys(_PLACEMENTS, 1e-6)
    for frame in frames:
        assert frame.depth_m is not None
        height, width = frame.rgb.shape[:2]
        size = (round(width * _SIDE / max(height, width)), round(height * _SIDE / max(height, width)))
        colour, edges = _colour_edges(frame.rgb, size), _depth_edges(frame.depth_m, size)
        for name, (sx, sy) in _PLACEMENTS.items():
            cx, cy = (size[0] - 1) / 2, (size[1] - 1) / 2
            affine = np.array([[sx, 0, cx - sx * cx], [0, sy, cy - sy * cy]])
            placed = cv2.warpAffine(edges, affine, size, flags=cv2.INTER_NEAREST)
            strengths[name] += _correlation(np.asarray(placed, np.float32), colour)
            weights[name] += float(placed.sum())
    strengths = {name: total / weights[name] for name, total in strengths.items()}
    near = slice(_REACH - _TOLERATED, _REACH + _TOLERATED + 1)
    given = float(strengths["moved"][near, near].max())
    beside = slice(near.start - _APART, near.stop + _APART)
    best, name, shift = 0.0, "", (0, 0)
    for placement, strength in strengths.items():
        others = strength.copy()
        if placement == "moved":
            others[beside, beside] = -np.inf
        y, x = np.unravel_index(others.argmax(), others.shape)
        if others[y, x] > max(best, strength.mean() + _OUTSTANDING * strength.std()):
            best, name, shift = float(others[y, x]), placement, (int(x) - _REACH, int(y) - _REACH)
    if best > _RATIO * max(given, 0.0):
        pixels = max(frames[0].rgb.shape) / _SIDE
        moved = f" by about ({shift[0] * pixels:.0f}, {shift[1] * pixels:.0f}) px" if name == "moved" else ""
        raise DataError(
            f"depth does not lie on the pictures: in {len(frames)} frames ({frames[0].name}, ...) its edges "
            f"fit those of the colour {best / max(given, 1e-3):.3g} times as well when it is {name}{moved}. "
            "Align depth to the colour camera (RealSense: rs.align(rs.stream.color)), or leave --depth out"
        )


def _has_room(measured: Sequence[NDArray[np.float32]], factor: float) -> bool:
    """Whether a hand could be in a frame, and no pixel is too near, if depth is `factor` times as far."""
    low, high = (limit / factor for limit in _HAND_M)
    shares = [float(np.mean((m >= low) & (m <= high))) for m in measured]
    nearest = float(np.percentile(np.concatenate(measured), _NEAREST_PERCENT))
    return max(shares) >= _LEAST_SHARE and nearest * factor >= _NEAREST_M


def _depth_edges(depth_m: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Relative steps of the nearest depth in each block, where both sides are measured."""
    inverse = np.where(depth_m > 0, 1 / np.maximum(depth_m, 0.05), 0).astype(np.float32)
    block = max(1, round(depth_m.shape[1] / size[0]))
    nearest = cv2.dilate(inverse, np.ones((block, block), np.uint8))
    inverse = np.asarray(cv2.resize(nearest, size, interpolation=cv2.INTER_NEAREST), np.float32)
    measured = inverse > 0
    high = cv2.dilate(inverse, _KERNEL)
    low = cv2.erode(np.where(measured, inverse, np.float32(np.inf)), _KERNEL)
    step = np.where(measured, 1 - np.where(measured, low, 0) / np.maximum(high, 1e-6), 0)
    return np.where(step > _STEP, np.minimum(step, 2.5 * _STEP), 0).astype(np.float32)


def _colour_edges(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Strength of colour edges relative to their surroundings, of mean 0 and deviation 1."""
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    edges = np.sqrt((cv2.dilate(small, _KERNEL) - cv2.erode(small, _KERNEL)).max(-1))
    edges -= cv2.blur(edges, (31, 31))
    return np.asarray(edges / (edges.std() + 1e-6), np.float32)


def _correlation(edges: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of edges x colour for all shifts of the edges up to _REACH; [_REACH, _REACH] is none."""
    padded = (edges.shape[0] + 2 * _REACH, edges.shape[1] + 2 * _REACH)
    spectrum = np.conj(np.fft.rfft2(edges, padded)) * np.fft.rfft2(colour, padded)
    rolled = np.roll(np.fft.irfft2(spectrum, padded), (_REACH, _REACH), (0, 1))
    return np.asarray(rolled[: 2 * _REACH + 1, : 2 * _REACH + 1])
