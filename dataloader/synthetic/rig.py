"""The hand model as an animator needs it: anatomical axes, points that touch things, and decoding.

Anatomical frame of the flat hand: `distal` from the wrist to the middle knuckle, `dorsal` out of the back of
the hand, `radial` towards the thumb. All are found from the joints, so MANO's own file and the stand-in both
fit.

Legend: N frames, V 778 vertices, 16 joints in MANO16 order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from src.hand.joints import FINGERS, HO3D21, MANO16, OPENPOSE21, TIP_VERTICES, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset

Array = NDArray[np.float64]

_DECODE_BATCH = 512
"""Frames decoded at once: about 10 MB of vertices."""


@dataclass(frozen=True)
class Anatomy:
    """Rest shape of one hand (one set of betas) and its axes, metres, MANO's rest frame."""

    vertices_m: Array
    """(V, 3) flat hand."""
    joints_m: Array
    """(16, 3)."""
    tips_m: dict[str, Array]
    """finger -> (3,)."""
    distal: Array
    """(3,) unit vector along the hand."""
    dorsal: Array
    """(3,) unit vector out of the back of the hand."""
    radial: Array
    """(3,) unit vector towards the thumb."""
    flexion_axes: Array
    """(16, 3) unit axis about which a positive angle bends a joint; row 0 (wrist) bends the palm down."""
    thumb_pad: Array
    """(3,) direction in which the thumb's pad looks; its nail looks the other way."""


class Rig:
    """A hand model, its faces and which joint moves which vertex."""

    def __init__(self, asset: HandAsset) -> None:
        """Keep the decoder and the few arrays an animator looks at."""
        self._layer = ManoLayer.from_asset(asset).to(torch.float64)
        self.faces: NDArray[np.int64] = np.asarray(asset.faces, np.int64)
        weights = np.asarray(asset.lbs_weights, np.float64)
        self.owner: NDArray[np.int64] = weights.argmax(1)
        """(V,) joint with the largest skinning weight."""
        self.wrist_loop: NDArray[np.int64] = _boundary(self.faces)
        """Vertices around the open end, in order."""

    def anatomy(self, betas: Array) -> Anatomy:
        """Rest shape and axes for `betas` (10,)."""
        vertices, joints = self.decode(np.eye(3)[None, None].repeat(15, 1), betas)
        v, j = vertices[0], joints[0, :16]
        joint = {name: j[i] for i, name in enumerate(MANO16)}
        distal = _unit(joint["middle_1"] - joint["wrist"])
        across = joint["index_1"] - joint["pinky_1"]
        dorsal = _unit(np.cross(-across, distal))
        radial = np.cross(distal, -dorsal)
        tips = {finger: v[TIP_VERTICES[f"{finger}_4"]] for finger in FINGERS}
        pad = _unit(-0.62 * dorsal - 0.74 * radial + 0.25 * distal)
        axes = np.empty((16, 3))
        axes[0] = np.cross(dorsal, distal)
        for finger in FINGERS:
            for k in (1, 2, 3):
                i = MANO16.index(f"{finger}_{k}")
                end = joint[f"{finger}_{k + 1}"] if k < 3 else tips[finger]
                bone = _unit(end - j[i])
                axes[i] = _unit(np.cross(bone, pad) if finger == "thumb" else np.cross(dorsal, bone))
        return Anatomy(v, j, tips, distal, dorsal, radial, axes, pad)

    def decode(self, hand_pose: Array, betas: Array) -> tuple[Array, Array]:
        """Mesh with the wrist's rotation and translation zero.

        Args:
            hand_pose: (N, 15, 3, 3) local rotations, MANO16 order.
            betas: (10,).

        Returns:
            vertices (N, V, 3) and joints (N, 21, 3) in HO3D21 order, metres, MANO's rest frame.
        """
        order = list(permutation(OPENPOSE21, HO3D21))
        vertices, joints = [], []
        for start in range(0, len(hand_pose), _DECODE_BATCH):
            pose = torch.from_numpy(np.ascontiguousarray(hand_pose[start : start + _DECODE_BATCH]))
            n = len(pose)
            with torch.no_grad():
                out = self._layer(
                    torch.eye(3, dtype=torch.float64).expand(n, 3, 3),
                    pose,
                    torch.from_numpy(np.asarray(betas, np.float64)).expand(n, 10),
                    torch.zeros(n, 3, dtype=torch.float64),
                )
            vertices.append(out.vertices_m.numpy())
            joints.append(out.joints_m.numpy()[:, order])
        return np.concatenate(vertices), np.concatenate(joints)


def rotation_about(axis: Array, angle_rad: Array) -> Array:
    """Rotations (..., 3, 3) about one unit axis (3,) by angles (...)."""
    x, y, z = axis
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    s, c = np.sin(angle_rad)[..., None, None], np.cos(angle_rad)[..., None, None]
    return np.asarray(np.eye(3) + s * skew + (1.0 - c) * (skew @ skew))


def _boundary(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Vertices of the one boundary loop, in order, starting at the smallest number."""
    directed = {(int(a), int(b)) for f in faces for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
    following = {a: b for a, b in directed if (b, a) not in directed}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    return np.array(loop)


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v)
