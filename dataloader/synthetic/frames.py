"""Labels of one camera's view and the files of its frames, in HO3D's formats: the way out of our conventions.

HO3D's axes are OpenGL's: x_gl = F x_cv with F = diag(1, -1, -1), rotations R_gl = F R_cv. Joints are in
HO3D21 order. handTrans is wrist - J0(betas). Depth is 16 bit in an 8-bit picture: red the low byte, green the
high one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dataloader.synthetic.common import Array, Image
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.motion.objects import KINDS
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, Camera
from src.errors import DataError
from src.schema import DEPTH_UNIT_M

Split = Literal["train", "evaluation"]

GL_FROM_CV = np.diag([1.0, -1.0, -1.0])
"""OpenGL camera from OpenCV camera; its own inverse."""

JPEG_QUALITY = 92
"""Of pictures like HO3D's."""


def place_in_camera(points_m: Array, motion: Motion, camera: Camera) -> Array:
    """Posed points of the hand in a camera.

    Args:
        points_m: (N, P, 3) from `Rig.decode`.
        motion: where the wrist is.
        camera: who looks.

    Returns:
        (N, P, 3) OpenCV camera, metres.
    """
    turn = camera.rotation @ motion.wrist_rotation
    placed = (points_m - motion.anatomy.joints_m[0]) @ np.swapaxes(turn, 1, 2)
    return np.asarray(placed + camera.to_camera(motion.wrist_m)[:, None])


def annotate(
    motion: Motion, camera: Camera, serials: list[str], joints_cam_m: Array, split: Split
) -> list[dict[str, Any]]:
    """The annotations of all frames of a view, with HO3D's keys, axes and mixture of float types.

    Args:
        motion: N frames of the hand and the object.
        camera: who looks.
        serials: serial numbers of all cameras of the motion.
        joints_cam_m: (N, 21, 3) from `place_in_camera`, HO3D21, OpenCV camera.
        split: `evaluation` holds back all but the wrist and a box.
    """
    wrist_gl = GL_FROM_CV @ (camera.rotation @ motion.wrist_rotation)
    local = Rotation.from_matrix(motion.hand_pose.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 45)
    pose_aa = np.concatenate([Rotation.from_matrix(wrist_gl).as_rotvec(), local], 1)
    translation = camera.to_camera(motion.wrist_m) @ GL_FROM_CV - motion.anatomy.joints_m[0]
    joints = joints_cam_m @ GL_FROM_CV
    pixels = joints_cam_m @ camera.intrinsics_px.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    box = np.concatenate([np.floor(pixels.min(1)), np.ceil(pixels.max(1))], 1)
    box = box.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.int64)
    object_aa = Rotation.from_matrix(GL_FROM_CV @ camera.rotation @ motion.object_rotation).as_rotvec()
    object_translation = camera.to_camera(motion.object_m) @ GL_FROM_CV
    corners = motion.held.corners_m
    metas = []
    for row in range(len(joints)):
        meta: dict[str, Any] = {
            "camMat": camera.intrinsics_px,
            "objRot": object_aa[row].reshape(3, 1),
            "objTrans": object_translation[row].astype(np.float32),
            "objCorners3D": Rotation.from_rotvec(object_aa[row]).apply(corners) + object_translation[row],
            "objCorners3DRest": corners,
            "objName": f"synthetic_{motion.held.kind}",
            "objLabel": list(KINDS).index(motion.held.kind) + 1,
            "camIDList": serials,
        }
        if split == "evaluation":
            meta["handJoints3D"] = joints[row, 0].astype(np.float32)
            meta["handBoundingBox"] = box[row].tolist()
        else:
            meta["handPose"] = pose_aa[row].astype(np.float32)
            meta["handBeta"] = motion.betas.astype(np.float32)
            meta["handTrans"] = translation[row].astype(np.float32)
            meta["handJoints3D"] = joints[row]
        metas.append(meta)
    return metas


def encode_depth(depth_m: Image) -> NDArray[np.uint8]:
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


def write_rgb(path: Path, rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> None:
    """Write an RGB picture (H, W, 3) as jpg."""
    _write(path, rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])


def write_depth(path: Path, depth_m: Image) -> None:
    """Write depth (H, W) in metres as HO3D's PNG."""
    # OpenCV's own defaults are the fast ones: run lengths of differences.
    _write(path, encode_depth(depth_m), [])


def _write(path: Path, picture: NDArray[np.uint8], flags: list[int]) -> None:
    """Encode and write, or say what failed."""
    done, data = cv2.imencode(path.suffix, picture, flags)
    if not done:
        raise DataError(f"a picture of shape {picture.shape} cannot be encoded as {path.suffix}")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
