"""Every frame's labels and picture sizes are looked at, once: is this a hand, in this picture, of this model?

Records are META_DTYPE as read: OpenGL axes, HO3D21 order, metres. Statistics over frames have no place here:
a median does not see a quarter of bad frames. Legend: N frames, J 21 joints. Distances are camera z where not
said otherwise; sizes are (H, W), in messages width x height.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

TOLERANCE_MM = 1.0
"""MANO reproduces HO3D's joints to 0.0002 mm; another hand, unit, place or joint order is off by far more."""

MIN_Z_M = 0.1
"""No depth camera measures nearer, and a nearer hand is larger than the picture."""

KNUCKLE_M = (0.05, 0.15)
"""Wrist to middle knuckle: 70-110 mm on adults, wider for children, large hands and other hand models."""

REACH_M = 0.3
"""No point of a hand is farther from its wrist."""

MAX_BETA = 10.0
"""In standard deviations of the hand model's shape space."""

BOX_SIDE_M = (0.02, 0.4)
"""Longer side of a given box at the wrist's depth: from fingertips at the border to a spread hand."""

FOCAL_SHARES = (0.2, 10.0)
"""Focal length over the picture's longer side: fields of view of 136 to 6 degrees."""

CENTRE_SHARE = 0.2
"""Largest distance of the principal point from the picture's centre, over the side. Cameras keep 0.05;
camMat of half the resolution has 0.25.
"""

MIN_IN_PICTURE = 0.1
"""Smallest share inside the picture of the square around the hand: with the default crop and augmentation,
any draw then still shows MIN_OVERLAP. Given boxes, which are not augmented, need just MIN_OVERLAP.
"""

SKEW_SHARE = 0.001
"""Largest skew over the focal length; cameras have none."""

ASPECT = (0.8, 1.25)
"""fx over fy: pixels are square but for a per cent."""

CAMERA_SHARE = 0.001
"""By how much, of the focal length, entries of camMat differ within a sequence: it has one camera."""

BONE_M = 0.01
"""By how much a bone differs from its sequence's median. Only skin moves on it: a few millimetres at tips."""

_CHUNK = 1024
_NAMES = np.array(OPENPOSE21)


def find_faults(
    name: ListName,
    records: NDArray[np.void],
    rgb_hw: NDArray[np.int32],
    depth_hw: NDArray[np.int32],
    met: Iterable[tuple[int, Fault]],
    hand: ManoLayer,
) -> dict[int, Fault]:
    """What is wrong with each frame of a list, the most basic fault of each.

    Args:
        name: of the list.
        records: (N,) of META_DTYPE as `read_meta` gives them, with their sequence numbers.
        rgb_hw: (N, 2) as `picture_size` gives them; 0, 0 where it raised.
        depth_hw: (N, 2) likewise.
        met: (row, fault) of annotations, pictures and depths that could not be read; the records of such
            rows may hold anything.
        hand: the hand model that decodes their parameters, on the CPU; not asked on the evaluation list.

    Returns:
        row -> fault; rows that are not in it are fit for use.
    """
    faults: dict[int, Fault] = {}
    for row, fault in met:
        add_fault(faults, row, fault)
    picture_hw = common_sizes(records["sequence"], rgb_hw)
    _picture_faults(rgb_hw, depth_hw, picture_hw, faults)
    rest = np.setdiff1d(np.arange(len(records)), np.fromiter(faults, np.int64, len(faults)))
    for part in np.array_split(rest, range(_CHUNK, len(rest), _CHUNK)):
        found = label_faults(name, records[part], picture_hw[part], hand)
        faults.update((int(part[k]), fault) for k, fault in found.items())
    _other_camera_faults(records, faults)
    return faults


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
    _front_faults(joints, faults)
    _hand_faults(joints, faults)
    parents, children = np.array(OPENPOSE_BONES).T
    length = np.linalg.norm(joints[:, children] - joints[:, parents], axis=-1)
    usual = _medians(sequence, length)
    gap = np.abs(length - usual)
    worst, rows = gap.argmax(1), np.arange(len(gap))
    _note(
        faults,
        (gap <= BONE_M).all(1),
        Reason.HAND,
        "{} to {} is {:.0f} mm in the ground truth, in most frames of its sequence {:.0f}",
        _NAMES[parents][worst],
        _NAMES[children][worst],
        length[rows, worst] * 1000,
        usual[rows, worst] * 1000,
    )
    return faults


def _medians(sequence: NDArray[np.integer], values: Array) -> Array:
    """(N, ...) medians over the sequence of each row; what is no number does not count."""
    out = np.zeros_like(values)
    for number in np.unique(sequence):
        out[sequence == number] = np.nanmedian(values[sequence == number], axis=0)
    return out


def _other_camera_faults(records: NDArray[np.void], faults: dict[int, Fault]) -> None:
    """camMat is that of most frames of its sequence; of frames without other faults."""
    rest = np.setdiff1d(np.arange(len(records)), np.fromiter(faults, np.int64, len(faults)))
    sequence, k = records["sequence"][rest], records["cam_mat"][rest].astype(np.float64)
    usual = _medians(sequence, k)
    fits = np.abs(k - usual).max((1, 2)) <= CAMERA_SHARE * np.abs(usual[:, 0, 0])
    found: dict[int, Fault] = {}
    text = "camMat is {}, in most frames of its sequence {}"
    _note(found, fits, Reason.CAMERA, text, np.round(k, 2).tolist(), np.round(usual, 2).tolist())
    faults.update((int(rest[row]), fault) for row, fault in found.items())


def label_faults(
    name: ListName, records: NDArray[np.void], picture_hw: NDArray[np.int32], hand: ManoLayer
) -> dict[int, Fault]:
    """The most basic fault of the labels of some frames.

    Args:
        name: train: 21 joints and parameters; evaluation: the wrist and handBoundingBox.
        records: (N,) of META_DTYPE.
        picture_hw: (N, 2) sizes of their pictures.
        hand: as `find_faults`.

    Returns:
        row -> fault.
    """
    faults: dict[int, Fault] = {}
    with np.errstate(all="ignore"):  # what is not finite fails the comparisons, which is what they are for
        _camera_faults(records["cam_mat"].astype(np.float64), picture_hw, faults)
        joints = records["joints"].astype(np.float64)[:, TO_OPENPOSE] * CV_FROM_GL + 0.0  # no -0
        if name == "evaluation":
            _front_faults(joints[:, :1], faults)
            _given_box_faults(records, joints[:, 0], picture_hw, faults)
        else:
            _front_faults(joints, faults)
            _hand_faults(joints, faults)
            _shape_faults(records["betas"].astype(np.float64), faults)
            _place_faults(joint_boxes(joints, records["cam_mat"]), picture_hw, MIN_IN_PICTURE, faults)
            _decode_faults(records, hand, faults)
    return faults


def _note(
    faults: dict[int, Fault],
    fits: NDArray[np.bool_] | np.bool_,
    reason: Reason,
    text: str,
    *columns: Sequence[Any] | NDArray[Any],
) -> None:
    """A fault for each row that does not fit and has none yet: `text` with the row's values of `columns`."""
    for row in np.flatnonzero(~fits).tolist():
        if row not in faults:
            faults[row] = Fault(reason, text.format(*(column[row] for column in columns)))


def _picture_faults(
    rgb_hw: NDArray[np.int32],
    depth_hw: NDArray[np.int32],
    picture_hw: NDArray[np.int32],
    faults: dict[int, Fault],
) -> None:
    """Each picture has its sequence's size, each depth its picture's."""
    same, beside = (rgb_hw == picture_hw).all(1), (depth_hw == rgb_hw).all(1)
    rgb, depth, usual = (hw[:, ::-1].tolist() for hw in (rgb_hw, depth_hw, picture_hw))
    text = "picture is {0[0]} x {0[1]}, most of its sequence {1[0]} x {1[1]}"
    _note(faults, same, Reason.SIZE, text, rgb, usual)
    _note(faults, beside, Reason.SIZE, "depth is {0[0]} x {0[1]}, its picture {1[0]} x {1[1]}", depth, rgb)


def _camera_faults(k: Array, picture_hw: NDArray[np.int32], faults: dict[int, Fault]) -> None:
    """camMat is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with numbers that suit the picture."""
    wide_high = picture_hw[:, ::-1].astype(np.float64)
    longer = wide_high.max(1)
    focal, centre = k[:, [0, 1], [0, 1]], k[:, :2, 2]
    ones = np.abs(k[:, [1, 2, 2, 2], [0, 0, 1, 2]] - [0, 0, 0, 1]).max(1) < 1e-4
    shaped = ones & (np.abs(k[:, 0, 1]) <= SKEW_SHARE * np.abs(focal[:, 0]))
    share = focal / longer[:, None]
    long = ((share >= FOCAL_SHARES[0]) & (share <= FOCAL_SHARES[1])).all(1)
    square = (focal[:, 0] >= ASPECT[0] * focal[:, 1]) & (focal[:, 0] <= ASPECT[1] * focal[:, 1])
    middle = (np.abs(centre / wide_high - 0.5) <= CENTRE_SHARE).all(1)
    for fits, text, *columns in (
        (shaped, "camMat is {}, want [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]", np.round(k, 3).tolist()),
        (
            long,
            "focal lengths of {0[0]:.1f} and {0[1]:.1f} px of a picture of {1[0]:.0f} x {1[1]:.0f}, "
            "want {2:.0f} to {3:.0f}",
            focal,
            wide_high,
            FOCAL_SHARES[0] * longer,
            FOCAL_SHARES[1] * longer,
        ),
        (
            middle,
            "principal point ({0[0]:.1f}, {0[1]:.1f}) of a picture of {1[0]:.0f} x {1[1]:.0f}, "
            f"want it within {CENTRE_SHARE:.0%} of the sides from the centre",
            centre,
            wide_high,
        ),
        (
            square,
            "focal lengths of {0[0]:.1f} and {0[1]:.1f} px, want their ratio within "
            f"{ASPECT[0]:g} to {ASPECT[1]:g}",
            focal,
        ),
    ):
        _note(faults, fits, Reason.CAMERA, text, *columns)


def _front_faults(joints: Array, faults: dict[int, Fault]) -> None:
    """(N, j, 3) OpenCV: all joints stand in front of the camera."""
    z = joints[..., 2]
    nearest = z.argmin(1)  # a nan counts as the smallest
    text = f"{{}} is {{:.3f}} m in front of the camera, want {MIN_Z_M:g} or more"
    _note(faults, (z >= MIN_Z_M).all(1), Reason.BEHIND, text, _NAMES[nearest], z.min(1))


def _hand_faults(joints: Array, faults: dict[int, Fault]) -> None:
    """The 21 joints lie as far apart as those of a hand."""
    reach = np.linalg.norm(joints - joints[:, :1], axis=-1)
    knuckle = reach[:, OPENPOSE21.index("middle_1")]
    low, high = KNUCKLE_M
    text = f"wrist to middle knuckle is {{:.1f}} mm, want {low * 1000:.0f} to {high * 1000:.0f}"
    _note(faults, (knuckle >= low) & (knuckle <= high), Reason.HAND, text, knuckle * 1000)
    farthest = _NAMES[reach.argmax(1)]
    text = f"{{}} is {{:.0f}} mm from the wrist, want at most {REACH_M * 1000:.0f}"
    _note(faults, (reach <= REACH_M).all(1), Reason.HAND, text, farthest, reach.max(1) * 1000)


def _shape_faults(betas: Array, faults: dict[int, Fault]) -> None:
    """The (N, 10) shape is one of a hand."""
    largest = np.abs(betas).max(1)
    text = f"handBeta reaches {{:.1f}} standard deviations, want at most {MAX_BETA:g}"
    _note(faults, largest <= MAX_BETA, Reason.HAND, text, largest)


def _place_faults(box: Array, picture_hw: NDArray[np.int32], least: float, faults: dict[int, Fault]) -> None:
    """An (N, 4) box reaches into the picture, and enough of the square around it (its longer side) does."""
    low, high = box[:, :2], box[:, 2:]
    side = (high - low).max(1)
    centre, half = (low + high) / 2, side[:, None] / 2
    edge = picture_hw[:, ::-1] - 0.5  # a pixel's centre has whole numbers

    def inside(start: Array, end: Array) -> Array:
        return np.asarray((np.minimum(end, edge) - np.maximum(start, -0.5)).clip(0).prod(1))

    share = inside(centre - half, centre + half) / side**2
    numbers, size = np.round(box).astype(int).tolist(), picture_hw[:, ::-1].tolist()
    place = "(hand's box {} px, picture {[0]} x {[1]})"
    text = f"hand's box is {{:.1f}} px long, want {MIN_BOX_SIDE_PX:g} or more"
    _note(faults, side >= MIN_BOX_SIDE_PX, Reason.OUTSIDE, text, side)
    text = f"no part of the hand is inside the picture {place}"
    _note(faults, inside(low, high) > 0, Reason.OUTSIDE, text, numbers, size, size)
    text = f"{{:.1%}} of the square around the hand is inside the picture, want {least:.0%} or more {place}"
    _note(faults, share >= least, Reason.OUTSIDE, text, share, numbers, size, size)


def _given_box_faults(
    records: NDArray[np.void], wrist: Array, picture_hw: NDArray[np.int32], faults: dict[int, Fault]
) -> None:
    """handBoundingBox is a box of a hand's size around the hand at (N, 3) `wrist`, in the picture."""
    box, k = records["box"].astype(np.float64), records["cam_mat"].astype(np.float64)
    focal = np.sqrt(k[:, 0, 0] * k[:, 1, 1])
    metres = wrist[:, 2] / focal  # per pixel
    side = (box[:, 2:] - box[:, :2]).max(1) * metres
    pixel = wrist[:, :2] / wrist[:, 2:] * k[:, [0, 1], [0, 1]] + k[:, :2, 2]
    gap = np.linalg.norm(pixel - pixel.clip(box[:, :2], box[:, 2:]), axis=1) * metres
    low, high = BOX_SIDE_M
    ordered = np.isfinite(box).all(1) & (box[:, :2] < box[:, 2:]).all(1)
    text = "handBoundingBox is {}, want x0 < x1 and y0 < y1"
    _note(faults, ordered, Reason.HAND, text, np.round(box, 1).tolist())
    text = (
        "handBoundingBox is {:.0f} mm long at the wrist's depth, "
        f"want {low * 1000:.0f} to {high * 1000:.0f}"
    )
    _note(faults, (side >= low) & (side <= high), Reason.HAND, text, side * 1000)
    text = f"wrist is {{:.0f}} mm from handBoundingBox, want at most {REACH_M * 1000:.0f}"
    _note(faults, gap <= REACH_M, Reason.HAND, text, gap * 1000)
    _place_faults(box, picture_hw, MIN_OVERLAP, faults)


@torch.no_grad()
def _decode_faults(records: NDArray[np.void], hand: ManoLayer, faults: dict[int, Fault]) -> None:
    """The labelled joints are where the hand model puts them, in the camera: translation included."""
    rotations = rotation_from_aa(torch.from_numpy(records["pose_aa"].astype(np.float64)))
    betas, trans = (torch.from_numpy(records[field].astype(np.float64)) for field in ("betas", "trans"))
    decoded = hand.joints_m(rotations[:, 0], rotations[:, 1:], betas, trans).numpy()
    gap = np.linalg.norm(decoded - records["joints"][:, TO_OPENPOSE], axis=-1) * 1000
    text = (
        "joints are {:.1f} mm from what the hand model decodes ({} the farthest), "
        f"want at most {TOLERANCE_MM:g}"
    )
    fits = (gap <= TOLERANCE_MM).all(1)
    _note(faults, fits, Reason.DECODE, text, gap.max(1), _NAMES[gap.argmax(1)])
