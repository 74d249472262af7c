"""Every frame's labels and picture sizes are looked at, once: is this a hand, in this picture, of this model?

`CHECKS` is the table of what is asked; the functions below it measure. Records are META_DTYPE as read: OpenGL
axes, HO3D21 order, metres. Statistics over frames have no place here: a median does not see a quarter of bad
frames. Legend: N frames, J 21 joints. Sizes are (H, W), in messages width x height.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.crop.camera import MIN_BOX_SIDE_PX, MIN_OVERLAP
from dataloader.ho3d.labels import CV_FROM_GL, TO_OPENPOSE, joint_boxes
from dataloader.ho3d.meta import ListName
from dataloader.ho3d.unusable import Fault, Reason, add_fault
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import OPENPOSE21, OPENPOSE_BONES

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

Array = NDArray[np.float64]
Measures = dict[str, NDArray[Any] | Sequence[Any]]
"""Quantity -> what it is of each of N frames: a number, some numbers, or a text for messages."""

MIN_IN_PICTURE = 0.1
"""Smallest share inside the picture of the square around the hand."""

_INSIDE = " is inside the picture of {size} (hand's box {box} px)"

CHECKS = {
    Reason.SIZE: (
        ("as_sequence", 1, 1, "picture is {rgb}, most of its sequence {size}"),
        ("as_picture", 1, 1, "depth is {depth}, its picture {rgb}"),
    ),
    Reason.CAMERA: (
        ("shaped", 1, 1, "camMat is {camera}, want [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
        # Fields of view of 136 to 6 degrees.
        ("focal_share", 0.2, 10, "focal lengths of {focal} px over the longer side of a picture of {size}"),
        # Cameras keep 0.05; camMat of half the resolution has 0.25.
        (
            "off_centre",
            0,
            0.2,
            "principal point {centre} of {size}, off the centre by {off_centre:.2f} sides",
        ),
        # Pixels are square but for a per cent.
        ("aspect", 0.8, 1.25, "ratio of focal lengths of {focal} px"),
        # Of the focal length: a sequence has one camera.
        ("camera_gap", 0, 0.001, "camMat is {camera}, in most frames of its sequence {usual}"),
    ),
    Reason.BEHIND: (
        # No depth camera measures nearer, and a nearer hand is larger than the picture.
        ("nearest_m", 0.1, inf, "{nearest} is {nearest_m:.3f} m in front of the camera"),
    ),
    Reason.HAND: (
        # 70-110 mm on adults, wider for children, large hands and other hand models.
        ("knuckle_mm", 50, 150, "wrist to middle knuckle is {knuckle_mm:.1f} mm"),
        ("reach_mm", 0, 300, "{farthest} is {reach_mm:.0f} mm from the wrist"),
        ("beta", 0, 10, "handBeta reaches {beta:.1f} standard deviations"),
        # Only skin moves on a bone: a few millimetres at tips.
        ("bone_gap_mm", 0, 10, "{bone} mm in the ground truth, in most frames of its sequence {usual:.0f}"),
        ("ordered", 1, 1, "handBoundingBox is {box}, want x0 < x1 and y0 < y1"),
        # From fingertips at the border to a spread hand.
        ("box_mm", 20, 400, "handBoundingBox is {box_mm:.0f} mm long at the wrist's depth"),
        ("wrist_mm", 0, 300, "wrist is {wrist_mm:.0f} mm from handBoundingBox"),
    ),
    Reason.OUTSIDE: (
        ("side_px", MIN_BOX_SIDE_PX, inf, "hand's box is {side_px:.1f} px long"),
        ("reaches_in", 1, 1, "no part of the hand" + _INSIDE),
        # With the default crop and augmentation, any draw then still shows MIN_OVERLAP.
        ("share", MIN_IN_PICTURE, inf, "{share:.3f} of the square around the hand" + _INSIDE),
        # Given boxes are not augmented.
        ("given_share", MIN_OVERLAP, inf, "{given_share:.3f} of the square around the hand" + _INSIDE),
    ),
    Reason.DECODE: (
        # MANO reproduces HO3D's joints to 0.0002 mm; another hand, unit, place or order is off by far more.
        ("decoded_mm", 0, 1, "{worst} is {decoded_mm:.1f} mm from what the hand model decodes"),
    ),
}
"""Reason -> quantity, its least and most, and what a frame outside of them has. Of a frame, the first that
fails is given; a check is made where its quantity was measured.
"""

_CHUNK = 1024
_NAMES = np.array(OPENPOSE21)


def find_faults(
    name: ListName,
    records: NDArray[np.void],
    met: Iterable[tuple[int, Fault]],
    hand: ManoLayer,
) -> dict[int, Fault]:
    """What is wrong with each frame of a list, the most basic fault of each.

    Args:
        name: train: 21 joints and parameters are labelled; evaluation: the wrist and handBoundingBox.
        records: (N,) of META_DTYPE.
        met: (row, fault) of annotations, pictures and depths that could not be read; the records of such
            rows may hold anything.
        hand: the hand model that decodes their parameters, on the CPU; not asked on the evaluation list.

    Returns:
        row -> fault; rows that are not in it are fit for use.
    """
    faults: dict[int, Fault] = {}
    for row, fault in met:
        add_fault(faults, row, fault)
    picture_hw = common_sizes(records["sequence"], records["rgb_hw"])
    for start in range(0, len(records), _CHUNK):
        part = slice(start, start + _CHUNK)
        with np.errstate(all="ignore"):  # what is not finite fails the comparisons: that is what they are for
            found = _labels(name, records[part], picture_hw[part], hand)
        _compare(found, faults, np.arange(start, start + len(records[part])))
    rest = np.array([row for row in range(len(records)) if row not in faults], np.int64)
    _compare(_other_cameras(records[rest]), faults, rest)
    return faults


def truth_faults(sequence: NDArray[np.integer], joints_gl_m: Array) -> dict[int, Fault]:
    """What is wrong with joints of the official ground truth, which come without parameters.

    Args:
        sequence: (N,) numbers; each has one hand.
        joints_gl_m: (N, 21, 3) HO3D21, OpenGL axes, metres.

    Returns:
        row -> fault.
    """
    faults: dict[int, Fault] = {}
    joints = joints_gl_m[:, TO_OPENPOSE] * CV_FROM_GL
    found = _front(joints) | _lengths(joints) | _bones(sequence, joints)
    _compare(found, faults, np.arange(len(joints)))
    return faults


def _compare(found: Measures, faults: dict[int, Fault], rows: NDArray[np.integer]) -> None:
    """Add what the table says of each of N frames, which are `rows` of the list."""
    for reason, checks in CHECKS.items():
        for quantity, least, most, words in checks:
            if quantity not in found:
                continue
            want = f"want at most {most:g}" if least == 0 else f"want {least:g} to {most:g}"
            want = f"want {least:g} or more" if most == inf else want
            numbers = np.asarray(found[quantity])
            fits = (numbers >= least) & (numbers <= most)
            for i in np.flatnonzero(~fits.all(tuple(range(1, fits.ndim)))).tolist():
                text = words.format_map({name: values[i] for name, values in found.items()})
                detail = text if least == most else f"{text}, {want}"
                add_fault(faults, int(rows[i]), Fault(reason, detail))


def common_sizes(sequence: NDArray[np.integer], rgb_hw: NDArray[np.int32]) -> NDArray[np.int32]:
    """(N, 2) most common (H, W) of each frame's sequence, of two equally common ones that of more frames.

    Args:
        sequence: (N,) numbers.
        rgb_hw: (N, 2); 0, 0 where unknown.

    Returns:
        0, 0 for a sequence of which no size is known.
    """
    out = np.zeros_like(rgb_hw)
    known = rgb_hw[:, 0] > 0
    sizes, size = np.unique(rgb_hw, axis=0, return_inverse=True)
    overall = np.bincount(size[known].ravel(), minlength=len(sizes))
    for number in np.unique(sequence[known]):
        own = np.bincount(size[known & (sequence == number)].ravel(), minlength=len(sizes))
        out[sequence == number] = sizes[np.lexsort((overall, own))[-1]]
    return out


def _medians(sequence: NDArray[np.integer], values: Array) -> Array:
    """(N, ...) medians over the sequence of each row; what is no number does not count."""
    out = np.zeros_like(values)
    for number in np.unique(sequence):
        out[sequence == number] = np.nanmedian(values[sequence == number], axis=0)
    return out


def _sizes(hw: NDArray[np.int32]) -> list[str]:
    """Width x height."""
    return [f"{width} x {height}" for height, width in hw.tolist()]


@torch.no_grad()
def _labels(
    name: ListName, records: NDArray[np.void], picture_hw: NDArray[np.int32], hand: ManoLayer
) -> Measures:
    """All that is measured of the labels of some frames."""
    joints, k, betas, trans, box = (
        records[field].astype(np.float64) for field in ("joints", "cam_mat", "betas", "trans", "box")
    )
    joints_gl, joints = joints[:, TO_OPENPOSE], joints[:, TO_OPENPOSE] * CV_FROM_GL + 0.0  # no -0
    rgb_hw, depth_hw = records["rgb_hw"], records["depth_hw"]
    found = _cameras(k, picture_hw)
    found |= {"rgb": _sizes(rgb_hw), "depth": _sizes(depth_hw), "size": _sizes(picture_hw)}
    found |= {"as_sequence": rgb_hw == picture_hw, "as_picture": depth_hw == rgb_hw}
    if name == "evaluation":
        found |= _front(joints[:, :1]) | _given_boxes(box, k, joints[:, 0])
        place = _places(box, picture_hw)
        return found | place | {"given_share": place.pop("share")}
    rotations = rotation_from_aa(torch.from_numpy(records["pose_aa"].astype(np.float64)))
    parts = (rotations[:, 0], rotations[:, 1:], torch.from_numpy(betas), torch.from_numpy(trans))
    gap_mm = np.linalg.norm(hand.joints_m(*parts).numpy() - joints_gl, axis=-1) * 1000
    found |= _front(joints) | _lengths(joints) | _places(joint_boxes(joints, k), picture_hw)
    return found | {
        "beta": np.abs(betas).max(1),
        "decoded_mm": gap_mm.max(1),
        "worst": _NAMES[gap_mm.argmax(1)],
    }


def _cameras(k: Array, picture_hw: NDArray[np.int32]) -> Measures:
    """camMat is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with numbers that suit the picture."""
    wide_high, focal = picture_hw[:, ::-1], k[:, [0, 1], [0, 1]]
    ones = np.abs(k[:, [1, 2, 2, 2], [0, 0, 1, 2]] - [0, 0, 0, 1]).max(1) < 1e-4
    return {
        "camera": np.round(k, 3).tolist(),
        "focal": np.round(focal, 1).tolist(),
        "centre": np.round(k[:, :2, 2], 1).tolist(),
        "shaped": ones & (np.abs(k[:, 0, 1]) <= 0.001 * np.abs(focal[:, 0])),  # cameras have no skew
        "focal_share": focal / wide_high.max(1, keepdims=True),
        "off_centre": np.abs(k[:, :2, 2] / wide_high - 0.5).max(1),
        "aspect": focal[:, 0] / focal[:, 1],
    }


def _other_cameras(records: NDArray[np.void]) -> Measures:
    """camMat is that of most frames of its sequence."""
    k = records["cam_mat"].astype(np.float64)
    usual = _medians(records["sequence"], k)
    return {
        "camera": np.round(k, 2).tolist(),
        "usual": np.round(usual, 2).tolist(),
        "camera_gap": np.abs(k - usual).max((1, 2)) / usual[:, 0, 0],
    }


def _front(joints: Array) -> Measures:
    """(N, j, 3) OpenCV: all joints stand in front of the camera."""
    z = joints[..., 2]
    return {"nearest_m": z.min(1), "nearest": _NAMES[z.argmin(1)]}  # a nan counts as the smallest


def _lengths(joints: Array) -> Measures:
    """The 21 joints lie as far apart as those of a hand."""
    reach_mm = np.linalg.norm(joints - joints[:, :1], axis=-1) * 1000
    return {
        "knuckle_mm": reach_mm[:, OPENPOSE21.index("middle_1")],
        "reach_mm": reach_mm.max(1),
        "farthest": _NAMES[reach_mm.argmax(1)],
    }


def _bones(sequence: NDArray[np.integer], joints: Array) -> Measures:
    """A bone is as long as in most frames of its sequence."""
    parents, children = np.array(OPENPOSE_BONES).T
    length_mm = np.linalg.norm(joints[:, children] - joints[:, parents], axis=-1) * 1000
    usual = _medians(sequence, length_mm)
    worst, rows = np.abs(length_mm - usual).argmax(1), np.arange(len(joints))
    ends = zip(_NAMES[parents[worst]], _NAMES[children[worst]], length_mm[rows, worst], strict=True)
    return {
        "bone": [f"{parent} to {child} is {length:.0f}" for parent, child, length in ends],
        "bone_gap_mm": np.abs(length_mm - usual),
        "usual": usual[rows, worst],
    }


def _places(box: Array, picture_hw: NDArray[np.int32]) -> Measures:
    """An (N, 4) box reaches into the picture, and enough of the square around it (its longer side) does."""
    low, high = box[:, :2], box[:, 2:]
    side = (high - low).max(1)
    centre, half = (low + high) / 2, side[:, None] / 2
    edge = picture_hw[:, ::-1] - 0.5  # a pixel's centre has whole numbers

    def inside(start: Array, end: Array) -> Array:
        return np.asarray((np.minimum(end, edge) - np.maximum(start, -0.5)).clip(0).prod(1))

    return {
        "box": np.round(box, 1).tolist(),
        "side_px": side,
        "reaches_in": inside(low, high) > 0,
        "share": inside(centre - half, centre + half) / side**2,
    }


def _given_boxes(box: Array, k: Array, wrist: Array) -> Measures:
    """handBoundingBox is a box of a hand's size around the hand at (N, 3) `wrist`."""
    millimetres = 1000 * wrist[:, 2] / np.sqrt(k[:, 0, 0] * k[:, 1, 1])  # per pixel
    pixel = wrist[:, :2] / wrist[:, 2:] * k[:, [0, 1], [0, 1]] + k[:, :2, 2]
    gap_px = np.linalg.norm(pixel - pixel.clip(box[:, :2], box[:, 2:]), axis=1)
    return {
        "ordered": np.isfinite(box).all(1) & (box[:, :2] < box[:, 2:]).all(1),
        "box_mm": (box[:, 2:] - box[:, :2]).max(1) * millimetres,
        "wrist_mm": gap_px * millimetres,
    }
