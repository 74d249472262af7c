"""HO3D's labels -> ours. The only place where HO3D's conventions are changed, but for its official truth
(`frames.py`, with the constants of this file).

HO3D labels are OpenGL (y up, the hand at z < 0), its joints in `HO3D21` order. Here, once:
    X = F X_gl,  R = F R_gl,  F = diag(1, -1, -1);  wrist = F (J0(betas) + handTrans);
    joints to `OPENPOSE21` by name.
Legend: N rows, J 21 joints. Metres, radians, pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.crop.camera import CropCamera
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.schema import HandLabels

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

CV_FROM_GL = np.array([1.0, -1.0, -1.0], np.float32)
"""Diagonal of F: OpenGL camera axes -> OpenCV camera axes."""

TO_OPENPOSE = list(permutation(HO3D21, OPENPOSE21))
"""Row of a HO3D21 array for each joint of OPENPOSE21."""

_BETAS_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Labels(HandLabels[NDArray[Any]]):
    """Labels of N rows in the **image camera** with what their crops are made by, in our conventions."""

    intrinsics_img_px: NDArray[np.float32]
    """(N, 3, 3)."""
    box_px: NDArray[np.float64]
    """(N, 4) x0, y0, x1, y1 of the hand in the picture."""


def convert(records: NDArray[np.void], rest_root_m: NDArray[np.float32]) -> Labels:
    """The door: records as HO3D has them -> labels as UTNet has them.

    The box is that of the projected joints wherever the release has no handBoundingBox (all of train), and
    handBoundingBox where it has (evaluation), whether or not ground truth is there: what is scored must not
    depend on the labels it is scored against. On the evaluation split, without MANO labels, the root is the
    labelled wrist.

    Args:
        records: (N,) of INDEX_DTYPE.
        rest_root_m: (N, 3) wrist J0(betas) of the hand at rest, MANO's frame.
    """
    joints, known = _joints(records)
    valid = records["mano_valid"]
    root = np.where(valid[:, None], (rest_root_m + records["trans"]) * CV_FROM_GL, joints[:, 0])
    rotations = np.where(valid[:, None, None, None], records["rotations"], np.eye(3, dtype=np.float32))
    orient = np.where(valid[:, None, None], rotations[:, 0] * CV_FROM_GL[:, None], rotations[:, 0])
    return Labels(
        joints_cam_m=joints,
        joints_conf=np.asarray(known, np.float32),
        root_cam_m=root,
        translation_m=root - rest_root_m,
        global_orient=orient,
        hand_pose=rotations[:, 1:],
        betas=records["betas"],
        mano_valid=valid,
        intrinsics_img_px=records["cam_mat"],
        box_px=_boxes(records, joints),
    )


def in_crop_camera(
    labels: Labels, rest_root_m: NDArray[np.float32], cameras: Sequence[CropCamera]
) -> dict[str, NDArray[Any]]:
    """The fields of `HandLabels` in the crop camera of each row, turned in float64 and rounded once.

    Args:
        labels: N rows.
        rest_root_m: as for `convert`.
        cameras: N.
    """
    turn = np.stack([camera.rot_crop_from_img for camera in cameras])
    valid = labels.mano_valid[:, None, None]
    root = (turn @ labels.root_cam_m.astype(np.float64)[..., None])[..., 0]
    joints = labels.joints_cam_m.astype(np.float64) @ turn.transpose(0, 2, 1)
    return {
        "joints_cam_m": joints.astype(np.float32),
        "joints_conf": labels.joints_conf,
        "root_cam_m": root.astype(np.float32),
        "translation_m": (root - rest_root_m).astype(np.float32),
        "global_orient": np.where(valid, turn @ labels.global_orient, np.eye(3)).astype(np.float32),
        "hand_pose": labels.hand_pose,
        "betas": labels.betas,
        "mano_valid": labels.mano_valid,
    }


def hands_of(records: NDArray[np.void]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) records -> K (N, 3, 3) and `Labels.box_px` (N, 4) alone, pixels."""
    return records["cam_mat"].astype(np.float64), _boxes(records, _joints(records)[0])


def rest_roots(hand: ManoLayer, betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 10) shapes -> (N, 3) wrists J0(betas) of the hand at rest, metres, MANO's frame."""
    out = np.empty((len(betas), 3), np.float32)
    with torch.no_grad():
        for start in range(0, len(betas), _BETAS_CHUNK):
            part = slice(start, start + _BETAS_CHUNK)
            out[part] = hand.rest_root_m(torch.from_numpy(np.ascontiguousarray(betas[part]))).cpu().numpy()
    return out


def joint_boxes(
    joints_cam_m: NDArray[np.floating], intrinsics_px: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(N, 4) box around the projections of (N, J, 3) joints."""
    homogeneous = joints_cam_m.astype(np.float64) @ intrinsics_px.astype(np.float64).transpose(0, 2, 1)
    pixels = homogeneous[..., :2] / homogeneous[..., 2:]
    return np.concatenate([pixels.min(1), pixels.max(1)], axis=1)


def _joints(records: NDArray[np.void]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(N, J, 3) in our order and axes, (N, J) which of them are labelled.

    A joint without a label stands on the wrist with weight 0: finite, so that 0 times it stays 0.
    """
    joints = records["joints"][:, TO_OPENPOSE] * CV_FROM_GL
    known = np.asarray(np.isfinite(joints).all(axis=-1))
    return np.where(known[..., None], joints, joints[:, :1]), known


def _boxes(records: NDArray[np.void], joints_cam_m: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 4) the release's box where there is one, else around the projected joints."""
    box = records["box"].astype(np.float64)
    projected = joint_boxes(joints_cam_m, records["cam_mat"])
    return np.where(np.isfinite(box).all(-1, keepdims=True), box, projected)
