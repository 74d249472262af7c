"""The crop as a virtual camera: one homography moves picture, depth, intrinsics and joints together.

The crop camera shares the image camera's optical centre. It is turned so that the crop's centre lies on its
axis, rolled, and zoomed so that the square around the hand's box fits the shorter side of the crop:
`crop_from_img = K_crop R K_img^-1`, exact for pixels, and R is exact for points and rotations.

Pixel coordinates are OpenCV's: a pixel's centre has whole numbers. The optical axis meets the crop at (W/2,
H/2), so a point on it has `joints_unit` = (0, 0). Everything here is float64; it is rounded once, when a
sample is made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.crop.augment import UNCHANGED, Augmentation
from src.errors import DataError
from src.schema import DEPTH_UNIT_M

Array = NDArray[np.float64]

MIN_BOX_SIDE_PX = 8.0
"""A hand smaller than this is a broken label, not a hand."""

MIN_OVERLAP = 0.02
"""Smallest share of the crop that the picture must cover."""

HAND_SIDE_M = 0.122
"""Longer side of the box around a hand's joints, seen at its wrist's depth: geometric mean over the
synthetic set. It varies by 27 % with the pose, so without depth z_ref is a start, not an answer.
"""

_BEHIND = 0.01
"""What is nearer to a crop camera's plane than this share of its centre's depth is not seen by it."""

CENTRE_SHARE = 0.5
"""Part of the crop's shorter side, around its centre, in which depth is read for z_ref."""

NEAREST_PERCENTILE = 5.0
"""Percentile of the depths there that counts as the front of the hand: a few stray values may be nearer."""

HAND_REACH_M = 0.15
"""What lies farther behind that front is background. z_ref is the median of the rest.

On the synthetic set z_ref minus the wrist's z has a mean of -14 mm, a standard deviation of 25 mm and at most
76 mm, and hardly depends on these numbers. A plain percentile does as well until a narrow hand leaves the
centre to the wall.
"""

FOOTPRINT_MARGIN_PX = 2
"""Pixels around a crop's outline that belong to its footprint: the resampler's neighbour and rounding."""


def inverse(matrix: Array) -> Array:
    """(3, 3) inverse; OpenCV's takes a sixth of the time of numpy's, and every sample needs several.

    Raises:
        DataError: there is none.
    """
    determinant, out = cv2.invert(matrix)
    if determinant == 0:
        raise DataError(f"{np.round(matrix, 4).tolist()} has no inverse: check the annotation's camMat")
    return np.asarray(out, np.float64)


class Window(NamedTuple):
    """A rectangle of whole picture pixels, x0 <= x < x1 and y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    def contains(self, other: Window) -> bool:
        """Whether every pixel of `other` is in this window."""
        return self.x0 <= other.x0 and self.y0 <= other.y0 and self.x1 >= other.x1 and self.y1 >= other.y1


@dataclass(frozen=True, eq=False)
class CropCamera:
    """One crop of one picture."""

    size: tuple[int, int]
    """(H, W) of the crop."""
    intrinsics_px: Array
    """(3, 3) K of the crop camera."""
    rot_crop_from_img: Array
    """(3, 3) image camera -> crop camera."""
    crop_from_img: Array
    """(3, 3) homography of pixels."""
    box_angle_rad: float
    """Angle under which the longer side of the (jittered) box is seen: as a detector would give it."""

    @functools.cached_property
    def outline_px(self) -> tuple[list[float], list[float]] | None:
        """x and y of the crop's corner pixels in the picture; None where one of them is seen from behind."""
        height, width = self.size
        corners = np.array([[0, width - 1, width - 1, 0], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
        x, y, w = (inverse(self.crop_from_img) @ corners).tolist()
        if min(w) <= 0:
            return None
        return [a / c for a, c in zip(x, w, strict=True)], [b / c for b, c in zip(y, w, strict=True)]

    def ray_z(self) -> Array:
        """(3,) w such that w . [x, y, 1] is the image camera's z per crop camera's z at crop pixel (x, y)."""
        return np.asarray(self.rot_crop_from_img[:, 2] @ inverse(self.intrinsics_px))


def crop_camera(
    intrinsics_img_px: Array,
    box_px: Array,
    size: tuple[int, int],
    box_scale: float,
    augmentation: Augmentation = UNCHANGED,
) -> CropCamera:
    """The virtual camera that looks at a box.

    Args:
        intrinsics_img_px: (3, 3) K of the picture.
        box_px: (4,) x0, y0, x1, y1 in picture pixels, before jitter.
        size: (H, W) of the crop.
        box_scale: side of the square shown over the box's longer side; from sqrt(2) on, a box stays inside
            for any roll.
        augmentation: its roll, scale and shift are used.

    Raises:
        DataError: the box is not finite or smaller than MIN_BOX_SIDE_PX.
    """
    side = float(max(box_px[2] - box_px[0], box_px[3] - box_px[1]))
    if not np.isfinite(box_px).all() or side < MIN_BOX_SIDE_PX:
        raise DataError(
            f"hand box {np.round(box_px, 1).tolist()} px: want finite x0, y0, x1, y1, "
            f"at least {MIN_BOX_SIDE_PX:.0f} px long"
        )
    centre = (box_px[:2] + box_px[2:]) / 2 + side * np.asarray(augmentation.shift)
    side *= augmentation.scale
    ray_from_px = inverse(intrinsics_img_px)
    ray = ray_from_px @ np.array([centre[0], centre[1], 1.0])
    ray /= np.linalg.norm(ray)
    rotation = _roll(augmentation.roll_rad) @ np.array(turn_to_axis(ray))
    focal_img = float(np.sqrt(intrinsics_img_px[0, 0] * intrinsics_img_px[1, 1]))
    # Away from the picture's centre a pixel is seen under a smaller angle, by the cosine to the axis.
    angle = side * float(ray[2]) / focal_img
    focal = min(size) / (box_scale * angle)
    height, width = size
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    homography = intrinsics @ rotation @ ray_from_px
    return CropCamera(size, intrinsics, rotation, homography / homography[2, 2], angle)


def rolled(camera: CropCamera, roll_rad: float) -> CropCamera:
    """A crop camera turned about its axis, x towards y; `cut.turn_pixels` turns what it shows."""
    turn = _roll(roll_rad)
    homography = camera.intrinsics_px @ turn @ inverse(camera.intrinsics_px) @ camera.crop_from_img
    return dataclasses.replace(
        camera,
        rot_crop_from_img=turn @ camera.rot_crop_from_img,
        crop_from_img=homography / homography[2, 2],
    )


def turn_to_axis(ray: Array) -> list[list[Any]]:
    """Rows of the smallest rotation that takes a unit ray (3,) in front of the camera to (0, 0, 1).

    Of (3, N) rays, each element is (N,).
    """
    x, y, z = ray
    k = 1 / (1 + z)
    return [[1 - k * x * x, -k * x * y, -x], [-k * x * y, 1 - k * y * y, -y], [x, y, z]]


def covered_share(camera: CropCamera, picture_size: tuple[int, int]) -> float:
    """Share of a crop that a picture of (H, W) covers, 0 to 1."""
    height, width = camera.size
    if _inside(camera, picture_size):
        return 1.0
    edge_y, edge_x = picture_size[0] - 0.5, picture_size[1] - 0.5
    outline = np.array([[-0.5, -0.5], [edge_x, -0.5], [edge_x, edge_y], [-0.5, edge_y]])
    seen = _in_front(np.concatenate([outline, np.ones((4, 1))], 1) @ camera.crop_from_img.T, camera)
    if not len(seen):
        return 0.0
    picture = (seen[:, :2] / seen[:, 2:]).astype(np.float32)
    crop = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    area, _ = cv2.intersectConvexConvex(crop, picture)
    return float(area / (width * height))


def _in_front(corners: Array, camera: CropCamera) -> Array:
    """The part of an outline, (n, 3) homogeneous crop pixels, that a crop camera has in front of it.

    A wide picture may reach behind a camera that looks at its border.
    """
    height, width = camera.size
    # A homography has no sign; the crop's own centre is in front.
    ahead = 1 / float((inverse(camera.crop_from_img) @ np.array([width / 2, height / 2, 1.0]))[2])
    depth = corners[:, 2] / ahead - _BEHIND
    if (depth > 0).all():
        return corners
    kept = []
    for k, after in enumerate(np.roll(np.arange(len(corners)), -1)):
        if depth[k] > 0:
            kept.append(corners[k])
        if (depth[k] > 0) != (depth[after] > 0):
            share = depth[k] / (depth[k] - depth[after])
            kept.append(corners[k] + share * (corners[after] - corners[k]))
    return np.array(kept)


def _inside(camera: CropCamera, picture_size: tuple[int, int]) -> bool:
    """Whether the picture covers the whole crop, with a pixel to spare: the usual case, seen at once."""
    if camera.outline_px is None:
        return False
    x, y = camera.outline_px
    height, width = picture_size
    return min(x) >= 1 and min(y) >= 1 and max(x) <= width - 2 and max(y) <= height - 2


def footprint(camera: CropCamera, picture_size: tuple[int, int]) -> Window:
    """The pixels of a picture that a crop can depend on.

    Every crop is resampled from just these, whatever they are cut from: the resampler works in float32, so
    from another rectangle a few pixels would round the other way.

    Args:
        camera: the crop; it shows some of the picture, see `covered_share`.
        picture_size: (H, W).
    """
    outline = camera.outline_px
    if outline is None:
        return Window(0, 0, picture_size[1], picture_size[0])
    x, y = outline
    margin = FOOTPRINT_MARGIN_PX
    return Window(
        max(0, math.floor(min(x)) - margin),
        max(0, math.floor(min(y)) - margin),
        min(picture_size[1], math.ceil(max(x)) + margin + 1),
        min(picture_size[0], math.ceil(max(y)) + margin + 1),
    )


def warp_rgb(
    piece: NDArray[np.uint8], camera: CropCamera, window: Window, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """(H, W, 3) crop of an RGB picture, linear; black outside the picture.

    Args:
        piece: (h, w, 3) the picture's pixels inside `window`.
        camera: the crop.
        window: its footprint.
        out: (H, W, 3), contiguous, where the crop is written; None: a new array.
    """
    # OpenCV resamples four channels three times as fast as three, to the same values; and what lies scattered
    # in a large picture is gathered once, in order.
    wide = _warp(cv2.cvtColor(piece, cv2.COLOR_RGB2RGBA), camera, window, cv2.INTER_LINEAR)
    crop = np.empty((*camera.size, 3), np.uint8) if out is None else out
    cv2.cvtColor(wide, cv2.COLOR_RGBA2RGB, dst=crop)
    return crop


def warp_depth(piece: NDArray[np.uint16], camera: CropCamera, window: Window) -> NDArray[np.uint16]:
    """(H, W) crop of a depth picture, nearest: depths must not be mixed; 0 outside. As `warp_rgb`."""
    return np.asarray(_warp(piece.copy(), camera, window, cv2.INTER_NEAREST), np.uint16)


def z_ref_from_depth(depth_u16: NDArray[np.uint16], camera: CropCamera) -> float | None:
    """Reference depth from what the sensor measured around the crop's centre.

    Args:
        depth_u16: (H, W) crop, image camera's z in units of DEPTH_UNIT_M, 0 = not measured.
        camera: the crop.

    Returns:
        metres along the crop camera's axis; None where nothing was measured there.
    """
    height, width = camera.size
    half = int(min(height, width) * CENTRE_SHARE / 2)
    rows = np.arange(height // 2 - half, height // 2 + half, 2)
    columns = np.arange(width // 2 - half, width // 2 + half, 2)
    window = depth_u16[rows[0] : rows[-1] + 1 : 2, columns[0] : columns[-1] + 1 : 2]
    if not window.any():
        return None
    w = camera.ray_z()
    z = (window * DEPTH_UNIT_M / (w[0] * columns[None, :] + w[1] * rows[:, None] + w[2]))[window > 0]
    z.sort()  # once, for percentile and median: numpy's own cost ten times the sort
    near = z[: int(np.searchsorted(z, _quantile(z, NEAREST_PERCENTILE / 100) + HAND_REACH_M))]
    return float((near[(len(near) - 1) // 2] + near[len(near) // 2]) / 2)


def z_ref_from_box(camera: CropCamera) -> float:
    """Reference depth in metres from the angle that the box fills, for a hand of average extent."""
    return HAND_SIDE_M / camera.box_angle_rad


def _quantile(ordered: Array, share: float) -> float:
    """Quantile of sorted numbers, linear between neighbours (as numpy, in its order of operations)."""
    at = share * (len(ordered) - 1)
    below = int(at)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    t = at - below
    return float(high - (high - low) * (1 - t) if t >= 0.5 else low + (high - low) * t)


def _warp(piece: NDArray[Any], camera: CropCamera, window: Window, flags: int) -> NDArray[Any]:
    """Resample the pixels of a window into the crop."""
    height, width = camera.size
    homography = camera.crop_from_img.copy()
    homography[:, 2] += homography[:, 0] * window.x0 + homography[:, 1] * window.y0
    return cv2.warpPerspective(piece, homography, (width, height), flags=flags, borderValue=0)


def _roll(angle_rad: float) -> Array:
    """Rotation about z, x towards y."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
