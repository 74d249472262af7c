"""A picture with depth, seen by a camera that went around the hand: augmentation by the scene's own geometry.

Roll, scale and shift keep the side from which a hand is seen, so each training pose stays tied to one view of
it. Measured depth allows a little more: every pixel is a point, the points turn about the hand, and the crop
camera looks at them again. Labels turn with them (`turn`), and the crop follows the turned hand's own box.
What the sensor did not see cannot appear: uncovered places take the colour and the depth behind them.

Legend: G g rows and columns of the grid on which the picture is read, H W crop. Metres, pixels; the turn is
a rigid motion in the image camera's frame.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.crop.camera import CENTRE_SHARE, HAND_REACH_M, CropCamera, Window, inverse, warp_depth
from dataloader.ho3d.labels import Labels, joint_boxes
from src.schema import DEPTH_UNIT_M

Array = NDArray[np.float64]

MIN_MEASURED = 0.5
"""Share of the crop's centre that must be measured: without depth there is nothing to turn."""

DENSITY = 1.1
"""Points per crop pixel in each direction: above one, or the turned hand would have cracks."""

_BORDER = cv2.BORDER_REPLICATE
_RIM_PX = 2
_SAME_M = 0.03
"""Depths that differ by more belong to two surfaces."""
_SHADOW_PX = 33
"""Neighbourhood in which a depth is looked for behind what the sensor did not measure."""
_SURROUNDINGS = 0.5
"""Share of the crop's shorter side: in a square so wide around a gap, what is farther goes on behind it."""


@dataclass(frozen=True, eq=False)
class View:
    """The rigid motion X -> rotation (X - pivot) + pivot of everything in front of the image camera."""

    rotation: Array
    """(3, 3)."""
    pivot_m: Array
    """(3,)."""

    def of_points(self, points_m: Array) -> Array:
        """(..., 3) points, turned."""
        return np.asarray((points_m - self.pivot_m) @ self.rotation.T + self.pivot_m)


def view_about(labels: Labels, rotation_vector_rad: tuple[float, float]) -> View:
    """The view that turns one hand about the mean of its joints.

    Args:
        labels: one row.
        rotation_vector_rad: axis times angle, x and y of the image camera; z would be a roll.
    """
    rotation, _ = cv2.Rodrigues(np.array([*rotation_vector_rad, 0.0]))
    return View(np.asarray(rotation, np.float64), labels.joints_cam_m[0].mean(0, dtype=np.float64))


def turn(labels: Labels, view: View) -> Labels:
    """Labels of one row after the motion; the box is that of the turned joints."""
    joints = view.of_points(labels.joints_cam_m.astype(np.float64)).astype(np.float32)
    orient = (view.rotation @ labels.global_orient).astype(np.float32)
    return dataclasses.replace(
        labels,
        joints_cam_m=joints,
        root_cam_m=view.of_points(labels.root_cam_m.astype(np.float64)).astype(np.float32),
        global_orient=np.where(labels.mano_valid[:, None, None], orient, labels.global_orient),
        box_px=joint_boxes(joints, labels.intrinsics_img_px),
    )


def turned_crop(
    rgb: NDArray[np.uint8],
    depth: NDArray[np.uint16],
    window: Window,
    source: CropCamera,
    camera: CropCamera,
    view: View,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]] | None:
    """Picture and depth of the turned scene in a crop camera.

    The points of the source crop are projected into a depth buffer, which then says where in the picture each
    crop pixel lies: colours are read there once, linearly, as in a crop that is not turned. What lies farther
    than HAND_REACH_M behind the pivot moves as if it lay there, or the background of a small turn would come
    from outside the source crop; places that still do show the source crop's mirror image, without depth.

    Args:
        rgb: (h, w, 3) the picture inside `window`.
        depth: (h, w) its depth, units of DEPTH_UNIT_M, 0 = not measured.
        window: footprint of `source` in the picture.
        source: the crop of the hand before the turn. Nothing outside it is read.
        camera: the crop of the turned hand.
        view: the turn.

    Returns:
        (H, W, 3) uint8 and (H, W) uint16, image camera's z of the turned scene; None where there is nothing
        to turn: the middle of `source` is not measured, or no point lies in the crop, because what was
        measured is not what is labelled.
    """
    height, width = camera.size
    # Where the turned crop is enlarged its points must lie closer.
    density = DENSITY * max(1.0, float(camera.intrinsics_px[0, 0] / source.intrinsics_px[0, 0]))
    grid = _grid_depth(depth, window, source, density)
    if not _is_measured(grid):
        return None
    far = float(view.pivot_m[2]) + HAND_REACH_M
    there = inverse(source.intrinsics_px @ source.rot_crop_from_img)  # source pixel -> ray
    here = camera.intrinsics_px @ camera.rot_crop_from_img
    motion = _Motion(
        ahead=here @ view.rotation @ there, offset=here @ (view.pivot_m - view.rotation @ view.pivot_m)
    )
    solid, rim = _solid(grid, far)
    grid[rim] = 0
    buffer = _splat(np.minimum(solid, far), density, there[2], motion, (height, width))
    if np.isinf(buffer).all():
        return None
    gaps, origin = _behind_gaps(buffer)
    z = buffer.copy()
    z.reshape(-1)[gaps] = buffer.reshape(-1)[origin]
    x, y = motion.source_pixel(z)
    outside = (x < 0) | (y < 0) | (x > source.size[1] - 1) | (y > source.size[0] - 1)
    # Where nothing was projected although the source crop shows something on that line of sight.
    covered = ~outside.reshape(-1)[gaps]
    uncovered, take = gaps[covered], _beside(gaps[covered], origin[covered], buffer)
    x.reshape(-1)[uncovered], y.reshape(-1)[uncovered] = x.reshape(-1)[take], y.reshape(-1)[take]
    found = _at(grid, density, x, y)
    image_z = z * _linear(camera.ray_z(), camera.size) + np.maximum(found - far, 0)
    image_z[outside | (found == 0)] = 0
    return (
        _colours(rgb, window, source, _mirror(x, source.size[1]), _mirror(y, source.size[0])),
        np.asarray(np.clip(np.rint(image_z / DEPTH_UNIT_M), 0, 65535), np.uint16),
    )


@dataclass(frozen=True, eq=False)
class _Motion:
    """From source pixels with their depth to crop pixels, and back."""

    ahead: Array
    """(3, 3): crop's (x z, y z, z) = ahead [i, j, 1] t + offset, t and z along the two cameras' axes."""
    offset: Array
    """(3,)."""

    def source_pixel(self, z: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(H, W) depth of every crop pixel -> x and y in the source crop, each (H, W)."""
        back = inverse(self.ahead)
        shift = back @ self.offset
        x, y, t = (_linear(back[k], z.shape) * z - np.float32(shift[k]) for k in range(3))
        return x / t, y / t


def _linear(row: Array, size: tuple[int, ...], density: float = 1.0) -> NDArray[np.float32]:
    """row . [x, y, 1] at every pixel of `size` (H, W); pixels are 1 / density apart."""
    height, width = size
    x = (row[0] * np.arange(width) / density).astype(np.float32)
    y = (row[1] * np.arange(height) / density + row[2]).astype(np.float32)
    return np.asarray(y[:, None] + x)


def _grid_depth(
    depth: NDArray[np.uint16], window: Window, source: CropCamera, density: float
) -> NDArray[np.float32]:
    """(G, g) image camera's z of the source crop, `density` to a pixel, metres, 0 = not measured."""
    finer = np.diag([density, density, 1.0])
    height, width = (math.ceil(density * (n - 1)) + 1 for n in source.size)
    dense = dataclasses.replace(source, size=(height, width), crop_from_img=finer @ source.crop_from_img)
    return warp_depth(depth, dense, window) * np.float32(DEPTH_UNIT_M)


def _is_measured(grid: NDArray[np.float32]) -> bool:
    """Whether the sensor saw enough around the middle."""
    height, width = grid.shape
    half = int(min(height, width) * CENTRE_SHARE / 2)
    centre = grid[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half]
    return bool(np.count_nonzero(centre) >= MIN_MEASURED * centre.size)


def _solid(grid: NDArray[np.float32], far: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A depth for every point, so that its colour moves with something.

    The sensor loses the rim of what is near, or gives it the depth of what is behind, and loses the shadow
    beside it: a rim of _RIM_PX takes the depth of the nearest, the rest the farthest nearby.

    Returns:
        (G, g) depths; (G, g) which points are such rims.
    """
    near = cv2.erode(
        np.where(grid == 0, np.float32(np.inf), grid), _square(2 * _RIM_PX + 1), borderType=_BORDER
    )
    rim = np.isfinite(near) & ((grid == 0) | (grid - near > _SAME_M))
    out = np.where(rim, near, grid)
    behind = cv2.dilate(out, _square(_SHADOW_PX), borderType=_BORDER)
    out = np.where(out == 0, behind, out)
    out[out == 0] = far
    return out, rim


def _splat(
    solid: NDArray[np.float32], density: float, ray_z: Array, motion: _Motion, size: tuple[int, int]
) -> NDArray[np.float32]:
    """(H, W) the nearest depth along the crop's axis that is projected into each pixel; inf where none is."""
    height, width = size
    t = solid / _linear(ray_z, solid.shape, density)
    x, y, z = (
        _linear(motion.ahead[k], solid.shape, density) * t + np.float32(motion.offset[k]) for k in range(3)
    )
    column, row = np.rint(x / z), np.rint(y / z)
    inside = (z > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    at = (row[inside] * np.float32(width) + column[inside]).astype(np.intp)
    buffer = np.full(height * width, np.inf, np.float32)
    np.minimum.at(buffer, at, z[inside])
    return _opened(buffer.reshape(size))


def _opened(buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) depths without cracks: gaps up to two pixels wide take the depth of what is nearest."""
    nearest = cv2.erode(buffer, _square(3), borderType=_BORDER)
    return np.asarray(cv2.dilate(nearest, _square(3), borderType=_BORDER), np.float32)


def _behind_gaps(depth: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the depth of a gap can be taken from: of what is around it the farther half goes on behind.

    Args:
        depth: (H, W), inf in gaps, not everywhere.

    Returns:
        (K,) flat indices of the gaps' pixels; (K,) that of the nearest pixel of what goes on behind each.
    """
    gap = np.isinf(depth)
    gaps = np.flatnonzero(gap)
    if not gaps.size:
        return gaps, gaps
    coarse = depth[::2, ::2]
    square = _square(int(_SURROUNDINGS * min(coarse.shape)) | 1)
    farthest = cv2.dilate(np.where(gap[::2, ::2], np.float32(0), coarse), square, borderType=_BORDER)
    nearest = cv2.erode(coarse, square, borderType=_BORDER)
    least = np.minimum((farthest + nearest) / 2, farthest - np.float32(_SAME_M))
    size = (depth.shape[1], depth.shape[0])
    behind = ~gap & (depth >= cv2.resize(least, size, interpolation=cv2.INTER_NEAREST))
    _, label = cv2.distanceTransformWithLabels(
        (~behind).view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    origin = np.empty(int(label.max()) + 1, np.intp)
    pixels = np.flatnonzero(behind)
    origin[label.reshape(-1)[pixels]] = pixels
    return gaps, origin[label.reshape(-1)[gaps]]


def _beside(
    uncovered: NDArray[np.intp], origin: NDArray[np.intp], buffer: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Which pixel's colour an uncovered one takes: its mirror image about `origin`, if as far as that."""
    height, width = buffer.shape
    row, column = (
        np.clip(2 * (origin // width) - uncovered // width, 0, height - 1),
        np.clip(2 * (origin % width) - uncovered % width, 0, width - 1),
    )
    mirrored, flat = row * width + column, buffer.reshape(-1)
    there = flat[mirrored]
    return np.where(np.isfinite(there) & (there > flat[origin] - _SAME_M), mirrored, origin)


@functools.cache
def _square(size: int) -> NDArray[np.uint8]:
    """Neighbourhood of size x size pixels."""
    return np.ones((size, size), np.uint8)


def _at(
    grid: NDArray[np.float32], density: float, x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values of the source grid at source pixels, nearest; the border's outside it."""
    column = np.clip(np.rint(x * np.float32(density)), 0, grid.shape[1] - 1).astype(np.intp)
    row = np.clip(np.rint(y * np.float32(density)), 0, grid.shape[0] - 1).astype(np.intp)
    return np.asarray(grid[row, column])


def _mirror(value: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Coordinates folded back into [0, count - 1]."""
    last = np.float32(count - 1)
    return np.clip(last - np.abs(last - np.abs(value)), 0, last)


def _colours(
    rgb: NDArray[np.uint8],
    window: Window,
    source: CropCamera,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """(H, W, 3) the picture at source pixels, linear; black outside the picture."""
    to_img = inverse(source.crop_from_img)
    u, v, w = (np.float32(row[0]) * x + np.float32(row[1]) * y + np.float32(row[2]) for row in to_img)
    u, v = u / w - np.float32(window.x0), v / w - np.float32(window.y0)
    wide = cv2.remap(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), u, v, cv2.INTER_LINEAR, borderValue=0)
    return np.asarray(cv2.cvtColor(wide, cv2.COLOR_RGBA2RGB), np.uint8)
