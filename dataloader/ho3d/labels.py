"""HO3D's labels -> ours. The only place where HO3D's conventions are changed, but for its official truth
(`ho3d_dataset.py`, with the constants of this file).

HO3D labels are OpenGL (y up, the hand at z < 0), its joints in `HO3D21` order. Here, once:
    X = F X_gl,  R = F R_gl,  F = diag(1, -1, -1);  wrist = F (J0(betas) + handTrans);
    joints to `OPENPOSE21` by name.
Legend: N rows, J 21 joints. Metres, radians, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.crop.augment import Augmentation
from dataloader.crop.camera import CropCamera
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.schema import LabelTable, RawSample

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

CV_FROM_GL = np.array([1.0, -1.0, -1.0], np.float32)
"""Diagonal of F: OpenGL camera axes -> OpenCV camera axes."""

TO_OPENPOSE = list(permutation(HO3D21, OPENPOSE21))
"""Row of a HO3D21 array for each joint of OPENPOSE21."""

_BETAS_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Labels(LabelTable):
    """Labels of some rows with what the crop is made by, in our conventions."""

    intrinsics_img_px: NDArray[np.float32]
    """(N, 3, 3)."""
    root_cam_m: NDArray[np.float32]
    """(N, 3) J0(betas) + translation; on the evaluation split, without MANO labels, its wrist."""
    box_px: NDArray[np.float64]
    """(N, 4) x0, y0, x1, y1 of the hand in the picture."""

    def row(self, k: int) -> Labels:
        """Row k alone, N = 1."""
        return Labels(**{name: value[k : k + 1] for name, value in self.__dict__.items()})


def convert(records: NDArray[np.void], rest_root_m: NDArray[np.float32]) -> Labels:
    """The door: records as HO3D has them -> labels as UTNet has them.

    The box is that of the projected joints wherever the release has no handBoundingBox (all of train), and
    handBoundingBox where it has (evaluation), whether or not ground truth is there: what is scored must not
    depend on the labels it is scored against.

    Args:
        records: (N,) of INDEX_DTYPE.
        rest_root_m: (N, 3) wrist J0(betas) of the hand at rest, MANO's frame.
    """
    joints = records["joints"][:, TO_OPENPOSE] * CV_FROM_GL
    wrist = joints[:, :1]
    known = np.asarray(np.isfinite(joints).all(axis=-1))
    valid = records["mano_valid"]
    # A joint without a label stands on the wrist with weight 0: finite, so that 0 times it stays 0.
    joints = np.where(known[..., None], joints, wrist)
    root = np.where(valid[:, None], (rest_root_m + records["trans"]) * CV_FROM_GL, wrist[:, 0])
    rotations = np.where(valid[:, None, None, None], records["rotations"], np.eye(3, dtype=np.float32))
    orient = np.where(valid[:, None, None], rotations[:, 0] * CV_FROM_GL[:, None], rotations[:, 0])
    return Labels(
        intrinsics_img_px=records["cam_mat"],
        joints_cam_m=joints,
        joints_conf=np.asarray(known, np.float32),
        root_cam_m=root,
        global_orient=orient,
        hand_pose=rotations[:, 1:],
        betas=records["betas"],
        mano_valid=valid,
        box_px=_boxes(records, joints),
    )


def hands_of(records: NDArray[np.void]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) records -> K (N, 3, 3) and `Labels.box_px` (N, 4) alone, pixels."""
    joints = records["joints"][:, TO_OPENPOSE] * CV_FROM_GL
    known = np.asarray(np.isfinite(joints).all(axis=-1))
    boxes = _boxes(records, np.where(known[..., None], joints, joints[:, :1]))
    return records["cam_mat"].astype(np.float64), boxes


def rest_roots(hand: ManoLayer, betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 10) shapes -> (N, 3) wrists J0(betas) of the hand at rest, metres, MANO's frame."""
    out = np.empty((len(betas), 3), np.float32)
    with torch.no_grad():
        for start in range(0, len(betas), _BETAS_CHUNK):
            part = slice(start, start + _BETAS_CHUNK)
            out[part] = hand.rest_root_m(torch.from_numpy(np.ascontiguousarray(betas[part]))).cpu().numpy()
    return out


def _boxes(records: NDArray[np.void], joints_cam_m: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 4) the release's box where there is one, else around the projected joints."""
    box = records["box"].astype(np.float64)
    projected = joint_boxes(joints_cam_m, records["cam_mat"])
    return np.where(np.isfinite(box).all(-1, keepdims=True), box, projected)


def joint_boxes(
    joints_cam_m: NDArray[np.floating], intrinsics_px: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(N, 4) box around the projections of (N, J, 3) joints."""
    homogeneous = joints_cam_m.astype(np.float64) @ intrinsics_px.astype(np.float64).transpose(0, 2, 1)
    pixels = homogeneous[..., :2] / homogeneous[..., 2:]
    return np.concatenate([pixels.min(1), pixels.max(1)], axis=1)


def assemble(
    index: int,
    camera: CropCamera,
    change: Augmentation,
    shown: bool,
    rgb: NDArray[np.uint8],
    depth: NDArray[np.uint16],
    z_ref: float,
    labels: Labels,
    rest_root_m: NDArray[np.float32],
) -> RawSample:
    """Turn the labels of one row into the crop camera, in float64, and round once."""
    turn = camera.rot_crop_from_img
    root = turn @ labels.root_cam_m[0].astype(np.float64)
    orient = turn @ labels.global_orient[0] if labels.mano_valid[0] else np.eye(3)
    return RawSample(
        sample_index=np.asarray(index, np.int64),
        rgb_u8=rgb,
        depth_u16=depth,
        depth_present=np.asarray(shown),
        z_ref_m=np.asarray(z_ref, np.float32),
        colour_affine=change.colour(),
        intrinsics_img_px=labels.intrinsics_img_px[0],
        intrinsics_crop_px=camera.intrinsics_px.astype(np.float32),
        crop_from_img=camera.crop_from_img.astype(np.float32),
        rot_crop_from_img=turn.astype(np.float32),
        joints_cam_m=(labels.joints_cam_m[0].astype(np.float64) @ turn.T).astype(np.float32),
        joints_conf=labels.joints_conf[0],
        root_cam_m=root.astype(np.float32),
        translation_m=(root - rest_root_m).astype(np.float32),
        global_orient=orient.astype(np.float32),
        hand_pose=labels.hand_pose[0],
        betas=labels.betas[0],
        mano_valid=labels.mano_valid[0],
    )
