"""The hand model as an animator needs it: anatomical axes, points that touch things, and decoding.

Anatomical frame of the flat hand: `distal` from the wrist to the middle knuckle, `dorsal` out of the back of
the hand, `radial` towards the thumb. All are found from the joints, so MANO's own file and the stand-in both
fit.

Legend: N frames, V 778 vertices, 16 joints in MANO16 order, P contact points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dataloader.synthetic.common import Array, Index, flexion_axes, unit
from src.hand.joints import FINGERS, HO3D21, MANO16, OPENPOSE21, TIP_VERTICES, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset

_CONTACTS = 10
"""Most contact points on a phalanx."""


@dataclass(frozen=True)
class Anatomy:
    """Rest shape of one hand (one set of betas), its axes and the skin that can touch; metres, MANO's rest
    frame."""

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
    contacts_m: dict[str, list[Array]]
    """finger -> points (P, 3) that move with its joints 1, 2, 3."""
    radius_m: dict[str, list[float]]
    """finger -> median distance of the skin from each of its three bones."""


class Rig:
    """A hand model, its faces and which joint moves which vertex."""

    def __init__(self, asset: HandAsset) -> None:
        """Keep the decoder and the few arrays an animator looks at."""
        self._layer = ManoLayer.from_asset(asset).to(torch.float64)
        self.faces: Index = np.asarray(asset.faces, np.int64)
        self.owner: Index = np.asarray(asset.lbs_weights, np.float64).argmax(1)
        """(V,) joint with the largest skinning weight."""
        self.wrist_loop = _boundary(self.faces)
        """Vertices around the open end, in order."""

    def anatomy(self, betas: Array) -> Anatomy:
        """Rest shape and axes for `betas` (10,)."""
        vertices, joints = self.decode(np.eye(3)[None, None].repeat(15, 1), betas)
        v, j = vertices[0], joints[0, :16]
        joint = dict(zip(MANO16, j, strict=True))
        distal = unit(joint["middle_1"] - joint["wrist"])
        dorsal = unit(np.cross(joint["pinky_1"] - joint["index_1"], distal))
        radial = np.cross(distal, -dorsal)
        tips = {finger: v[TIP_VERTICES[f"{finger}_4"]] for finger in FINGERS}
        pad = unit(-0.62 * dorsal - 0.74 * radial + 0.25 * distal)
        axes = flexion_axes(j, tips, distal, dorsal, pad)
        contacts: dict[str, list[Array]] = {finger: [] for finger in FINGERS}
        radius: dict[str, list[float]] = {finger: [] for finger in FINGERS}
        for finger in FINGERS:
            first = MANO16.index(f"{finger}_1")
            chain = [*j[first : first + 3], tips[finger]]
            for k in range(3):
                owned = v[self.owner == first + k]
                spread = np.linspace(0, len(owned) - 1, min(_CONTACTS, len(owned))).astype(int)
                contacts[finger].append(owned[spread])
                radius[finger].append(float(np.median(segment_distance(owned, chain[k], chain[k + 1]))))
        return Anatomy(v, j, tips, distal, dorsal, radial, axes, pad, contacts, radius)

    def decode(self, hand_pose: Array, betas: Array) -> tuple[Array, Array]:
        """Mesh with the wrist's rotation and translation zero.

        Args:
            hand_pose: (N, 15, 3, 3) local rotations, MANO16 order.
            betas: (10,).

        Returns:
            vertices (N, V, 3) and joints (N, 21, 3) in HO3D21 order, metres, MANO's rest frame.
        """
        n = len(hand_pose)
        with torch.no_grad():
            out = self._layer(
                torch.eye(3, dtype=torch.float64).expand(n, 3, 3),
                torch.from_numpy(np.ascontiguousarray(hand_pose)),
                torch.from_numpy(np.asarray(betas, np.float64)).expand(n, 10),
                torch.zeros(n, 3, dtype=torch.float64),
            )
        return out.vertices_m.numpy(), out.joints_m.numpy()[:, list(permutation(OPENPOSE21, HO3D21))]


def segment_distance(points: Array, start: Array, end: Array) -> Array:
    """Distance (...,) of points (..., 3) from the segment between two points (..., 3)."""
    bone = end - start
    along = ((points - start) * bone).sum(-1) / (bone * bone).sum(-1)
    return np.asarray(np.linalg.norm(points - start - along.clip(0, 1)[..., None] * bone, axis=-1))


def _boundary(faces: Index) -> Index:
    """Vertices of the one boundary loop, in order, starting at the smallest number."""
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    directed = set(map(tuple, edges.tolist()))
    following = {a: b for a, b in directed if (b, a) not in directed}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    return np.array(loop)
