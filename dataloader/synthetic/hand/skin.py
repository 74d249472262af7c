"""How the procedural hand moves: skinning weights, joint regressor and pose-dependent correctives.

Unit: millimetres, frame of `shape.py`; joints in MANO16 order. Legend: V vertices.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from dataloader.synthetic.common import LONG_FINGERS, Array, smooth_step, unit
from dataloader.synthetic.hand.mesh import Mesh, neighbour_mean
from dataloader.synthetic.hand.shape import PARTS, Finger, Skeleton
from src.hand.joints import MANO16

_BULGE = 1.4
"""Gain of the volume corrective; 1 is exact to second order in the angle, 1.4 is best near 70 degrees."""
_CREASE_MM, _PAD_MM, _KNUCKLE_MM = 1.4, 0.9, 1.0
"""Depth of the fold on the palm's side, swelling beside it, rise of the knuckle; at 90 degrees of flexion."""


def _chain_coordinates(points: Array, finger: Finger) -> tuple[Array, Array]:
    """(N,) arc length along the finger (negative behind the knuckle) and (N,) distance from its bones."""
    joints, arc = finger.joints_mm, finger.arc_mm
    nearest, along = np.full(len(points), np.inf), np.zeros(len(points))
    for i in range(3):
        bone = joints[i + 1] - joints[i]
        share = (points - joints[i]) @ bone / (bone @ bone)
        share = np.clip(share, None if i == 0 else 0, 1)
        distance = np.linalg.norm(points - joints[i] - share[:, None] * bone, axis=1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        along[closer] = arc[i] + share[closer] * (arc[i + 1] - arc[i])
    return along, nearest


def skinning_weights(mesh: Mesh, skeleton: Skeleton) -> Array:
    """(V, 16) weights, each row non-negative with sum 1, at most a few joints each.

    A finger hands over from one bone to the next within about one radius of the joint; the palm follows the
    nearest knuckle near it, and the ball of the thumb follows the thumb.
    """
    points, part = mesh.points_mm, mesh.part
    weights = np.zeros((len(points), 16))
    for name in (*LONG_FINGERS, "thumb"):
        finger, first = skeleton.fingers[name], MANO16.index(f"{name}_1")
        rows = np.flatnonzero(part == PARTS.index(name))
        along, _ = _chain_coordinates(points[rows], finger)
        arc, radii = finger.arc_mm, finger.radii_mm
        root = (along - 2) / 22 if name == "thumb" else (along + 0.9 * radii[0]) / (2 * radii[0])
        past = [smooth_step(root)]
        past += [smooth_step((along - arc[i] + 0.8 * radii[i]) / (1.6 * radii[i])) for i in (1, 2)]
        weights[rows, 0] = 1 - past[0]
        weights[rows, first] = past[0] * (1 - past[1])
        weights[rows, first + 1] = past[0] * past[1] * (1 - past[2])
        weights[rows, first + 2] = past[0] * past[1] * past[2]
    _palm_weights(weights, mesh, skeleton)
    weights[weights < 1e-3] = 0
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _palm_weights(weights: Array, mesh: Mesh, skeleton: Skeleton) -> None:
    """Fill the palm's rows, then blur them so that no seam shows when a finger bends."""
    rows = np.flatnonzero(mesh.part == 0)
    points = mesh.points_mm[rows]
    follow, distances = [], []
    for name in LONG_FINGERS:
        finger = skeleton.fingers[name]
        along, distance = _chain_coordinates(points, finger)
        radius = finger.radii_mm[0]
        follow.append(smooth_step((along + 0.9 * radius) / (2 * radius)))
        distances.append(distance)
    gap = np.stack(distances, axis=1)
    nearness = np.exp(-0.5 * ((gap - gap.min(1, keepdims=True)) / 5.0) ** 2)
    nearness /= nearness.sum(1, keepdims=True)
    for i, name in enumerate(LONG_FINGERS):
        weights[rows, MANO16.index(f"{name}_1")] = nearness[:, i] * follow[i]
    along, distance = _chain_coordinates(points, skeleton.fingers["thumb"])
    thumb = smooth_step(along / 26) * smooth_step((23 - distance) / 12)
    weights[rows, MANO16.index("thumb_1")] = thumb * (1 - weights[rows, 1:13].sum(1))
    weights[rows, 0] = 1 - weights[rows, 1:].sum(1)
    mean = neighbour_mean(mesh.faces, len(weights))
    for _ in range(6):
        weights[rows] = 0.5 * weights[rows] + 0.5 * (mean @ weights)[rows]


def joint_regressor(points: Array, joints: Array) -> Array:
    """(16, V) sparse rows of sum 1, hardly ever negative, with regressor @ points = joints exactly."""
    regressor = np.zeros((len(joints), len(points)))
    for row, joint in zip(regressor, joints, strict=True):
        near = np.argsort(np.linalg.norm(points - joint, axis=1), kind="stable")[:16]
        system = np.vstack([(points[near] - joint).T, 30 * np.ones(16), 1.5 * np.eye(16)])
        weights, _ = nnls(system, np.concatenate([[0, 0, 0, 30.0], np.zeros(16)]))
        exact = np.vstack([points[near].T, np.ones(16)])
        row[near] = weights + np.linalg.pinv(exact) @ (np.append(joint, 1.0) - exact @ weights)
    return regressor


def pose_correctives(mesh: Mesh, weights: Array, joints: Array, axes: Array) -> Array:
    """(V, 3, 135) offsets, linear in the entries of R - I of the 15 finger joints (row-major, as in MANO).

    Volume: where a vertex follows a joint with weight w, blending gives (1 - w) q + w R q for its offset q,
    which falls short of the arc R^w q by w (1 - w) / 2 theta^2 of q's part across the axis. The symmetric
    part of R - I is -(1 - cos theta) times that part of q **for any axis**, so -w (1 - w) sym(R - I) q
    restores it.

    Flexion: the antisymmetric part of R - I holds sin(theta) times the axis; its component along the joint's
    own flexion axis deepens the crease on the palm's side, swells the pads beside it and lifts the knuckle.

    Args:
        mesh: rest mesh.
        weights: (V, 16).
        joints: (16, 3) mm.
        axes: (16, 3) unit flexion axes.
    """
    points = mesh.points_mm
    out = np.zeros((len(points), 3, 135))
    for j in range(1, 16):
        moved = weights[:, j : j + 3 - (j - 1) % 3].sum(1)  # the joint and those further out
        offset = points - joints[j]
        bend = moved * (1 - moved) * np.exp(-(offset * offset).sum(1) / 24.0**2)
        features = out[:, :, 9 * (j - 1) : 9 * j].reshape(len(points), 3, 3, 3)
        for r in range(3):
            for c in range(3):
                # d sym(R)[r, c] / dR[r, c] and its mirror: half each.
                features[:, r, r, c] -= 0.5 * _BULGE * bend * offset[:, c]
                features[:, c, r, c] -= 0.5 * _BULGE * bend * offset[:, r]
        features += _flexion_shape(offset, 4 * bend, axes[j], joints, j)[:, :, None, None] * _sine(axes[j])
        out[:, :, 9 * (j - 1) : 9 * j] = features.reshape(len(points), 3, 9)
    return out


def _sine(axis: Array) -> Array:
    """(3, 3) S with sum(S * (R - I)) = sin(theta) for a rotation by theta about `axis`."""
    x, y, z = axis
    return 0.5 * np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def _flexion_shape(offset: Array, bend: Array, axis: Array, joints: Array, joint: int) -> Array:
    """(V, 3) mm of displacement per unit of sin(flexion); `bend` is 1 in the middle of the fold."""
    inner_joint = joint + 1 if MANO16[joint][-1] != "3" else joint
    bone = joints[inner_joint] - joints[inner_joint - 1]
    along = unit(bone - (bone @ axis) * axis)
    palmar = np.cross(axis, along)
    height = offset @ palmar
    side = height / (np.abs(height) + 4.0)
    spread = offset @ along
    fold, beside = np.exp(-((spread / 3.5) ** 2)), np.exp(-(((np.abs(spread) - 8) / 4.0) ** 2))
    front, back = np.clip(side, 0, 1), np.clip(-side, 0, 1)
    amount = front * (_PAD_MM * beside - _CREASE_MM * fold) - back * _KNUCKLE_MM * fold
    return (bend * amount)[:, None] * palmar
