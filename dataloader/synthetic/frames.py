"""Labels of one camera's view and the files of its frames, in HO3D's formats: the way out of our conventions.

HO3D's axes are OpenGL's: x_gl = F x_cv with F = diag(1, -1, -1), rotations R_gl = F R_cv. Joints are in
HO3D21 order. handTrans is wrist - J0(betas). Depth is 16 bit in an 8-bit picture: red the low byte, green the
high one.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dataloader.synthetic.common import Array
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.motion.objects import LABELS
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, Camera
from src.errors import DataError
from src.schema import DEPTH_UNIT_M

Version = Literal["v2", "v3"]
Split = Literal["train", "evaluation"]

GL_FROM_CV = np.diag([1.0, -1.0, -1.0])
"""OpenGL camera from OpenCV camera; its own inverse."""

RGB_SUFFIX: dict[str, str] = {"v2": ".png", "v3": ".jpg"}
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ViewLabels:
    """Labels of N frames of one view, OpenGL camera axes, metres."""

    pose_aa: Array
    """(N, 48) axis-angle, MANO16."""
    betas: Array
    """(10,)."""
    translation: Array
    """(N, 3) handTrans."""
    joints: Array
    """(N, 21, 3) HO3D21."""
    box_px: NDArray[np.int64]
    """(N, 4) x0, y0, x1, y1 around the projected joints."""
    object_aa: Array
    """(N, 3)."""
    object_translation: Array
    """(N, 3)."""


def wrist_rotation_cam(motion: Motion, camera: Camera) -> Array:
    """(N, 3, 3) camera (OpenCV) from MANO's rest frame."""
    return camera.rotation @ motion.wrist_rotation


def place_in_camera(points_m: Array, wrist_rest_m: Array, motion: Motion, camera: Camera) -> Array:
    """Posed points of the hand in a camera.

    Args:
        points_m: (N, P, 3) from `Rig.decode`.
        wrist_rest_m: (3,) J0(betas).
        motion: where the wrist is.
        camera: who looks.

    Returns:
        (N, P, 3) OpenCV camera, metres.
    """
    turned = (points_m - wrist_rest_m) @ np.swapaxes(wrist_rotation_cam(motion, camera), 1, 2)
    return turned + camera.to_camera(motion.wrist_m)[:, None]


def view_labels(motion: Motion, camera: Camera, joints_rest_m: Array, wrist_rest_m: Array) -> ViewLabels:
    """Labels of all frames of a motion seen by one camera.

    Args:
        motion: N frames.
        camera: who looks.
        joints_rest_m: (N, 21, 3) from `Rig.decode`, HO3D21.
        wrist_rest_m: (3,) J0(betas).
    """
    joints_cv = place_in_camera(joints_rest_m, wrist_rest_m, motion, camera)
    wrist_gl = GL_FROM_CV @ wrist_rotation_cam(motion, camera)
    local = Rotation.from_matrix(motion.hand_pose.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 45)
    homogeneous = joints_cv @ camera.intrinsics_px.T
    pixels = homogeneous[..., :2] / homogeneous[..., 2:]
    box = np.concatenate([np.floor(pixels.min(1)), np.ceil(pixels.max(1))], 1)
    object_gl = GL_FROM_CV @ camera.rotation @ motion.object_rotation
    return ViewLabels(
        pose_aa=np.concatenate([Rotation.from_matrix(wrist_gl).as_rotvec(), local], 1),
        betas=motion.betas,
        translation=camera.to_camera(motion.wrist_m) @ GL_FROM_CV - wrist_rest_m,
        joints=joints_cv @ GL_FROM_CV,
        box_px=box.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.int64),
        object_aa=Rotation.from_matrix(object_gl).as_rotvec(),
        object_translation=camera.to_camera(motion.object_m) @ GL_FROM_CV,
    )


def meta(
    labels: ViewLabels, row: int, motion: Motion, camera: Camera, cameras: list[str], split: Split
) -> dict[str, Any]:
    """The annotation of one frame, with HO3D's keys and mixture of float types.

    Args:
        labels: of the view.
        row: frame, 0-based.
        motion: for the object.
        camera: for K.
        cameras: serial numbers of all cameras of the motion.
        split: `evaluation` holds back all but the wrist and a box.
    """
    corners = motion.held.corners_m
    turn = Rotation.from_rotvec(labels.object_aa[row])
    out: dict[str, Any] = {
        "camMat": camera.intrinsics_px.copy(),
        "objRot": labels.object_aa[row].reshape(3, 1).copy(),
        "objTrans": labels.object_translation[row].astype(np.float32),
        "objCorners3D": turn.apply(corners) + labels.object_translation[row],
        "objCorners3DRest": corners,
        "objName": f"synthetic_{motion.held.kind}",
        "objLabel": LABELS[motion.held.kind],
        "camIDList": list(cameras),
    }
    if split == "evaluation":
        out["handJoints3D"] = labels.joints[row, 0].astype(np.float32)
        out["handBoundingBox"] = [int(x) for x in labels.box_px[row]]
        return out
    out["handPose"] = labels.pose_aa[row].astype(np.float32)
    out["handBeta"] = labels.betas.astype(np.float32)
    out["handTrans"] = labels.translation[row].astype(np.float32)
    out["handJoints3D"] = labels.joints[row].copy()
    return out


def encode_depth(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) BGR bytes of depth (H, W) in metres: red the low byte, green the high byte, blue 0.

    Raises:
        DataError: a depth below 0 or beyond the 16 bits (8.19 m).
    """
    units = np.round(depth_m.astype(np.float64) / DEPTH_UNIT_M)
    if units.size and not (units.min() >= 0 and units.max() <= 0xFFFF):
        raise DataError(
            f"depth of {depth_m.min():.3f}..{depth_m.max():.3f} m does not fit HO3D's 16 bits (0..8.19 m)"
        )
    words = units.astype(np.uint16)
    out = np.zeros((*words.shape, 3), np.uint8)
    out[..., 2] = words & 0xFF
    out[..., 1] = words >> 8
    return out


def write_rgb(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write an RGB picture as jpg or png, whichever the name says."""
    flags = (
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        if path.suffix == ".jpg"
        else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    _write(path, rgb[..., ::-1], flags)


def write_depth(path: Path, depth_m: NDArray[np.float32]) -> None:
    """Write depth (H, W) in metres as HO3D's PNG."""
    # OpenCV's own defaults are the fast ones: run lengths of differences.
    _write(path, encode_depth(depth_m), [])


def write_meta(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation as HO3D does: a protocol 2 pickle."""
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)


def _write(path: Path, picture: NDArray[np.uint8], flags: list[int]) -> None:
    """Encode and write, or say what failed."""
    done, data = cv2.imencode(path.suffix, picture, flags)
    if not done:
        raise DataError(f"a picture of shape {picture.shape} cannot be encoded as {path.suffix}")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
