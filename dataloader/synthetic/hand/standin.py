"""The stand-in hand: a procedural right hand written in MANO's own file format and counts.

MANO is licensed and never shipped. The stand-in lets every part of UTNet run without it, through the same
code path: 778 vertices, 1538 faces, 16 joints, 10 shape and 135 pose directions, fingertips at the same
vertex numbers. It is not anatomy, and numbers obtained with it say nothing about MANO. Everything is
computed from the constants of `shape.py`, rounded to 1e-7 m, so that the file is the same, bit for
bit, for any number of threads.

Frame of the file: fingers along -x, back of the hand +y, thumb +z, metres; the wrist is *not* at the origin
(as in MANO), so that taking the translation for the wrist shows.

    python -m dataloader.synthetic.hand --out data/standin/STANDIN_RIGHT.pkl
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from scipy import sparse

from dataloader.synthetic.common import Array, Index, flexion_axes
from dataloader.synthetic.hand.mesh import NUM_VERTICES, Mesh, build_mesh, relax, transport
from dataloader.synthetic.hand.shape import make_skeleton
from dataloader.synthetic.hand.skin import joint_regressor, pose_correctives, skinning_weights
from src.errors import AssetError
from src.hand.joints import MANO16, MANO_PARENTS, TIP_VERTICES
from src.hand.mano_assets import STANDIN_KEY, HandAsset, hand_from_bytes, load_hand_asset
from src.runtime.files import safe_pickle
from src.runtime.files.disk import atomic_write, require_place

DEFAULT_PATH = Path("data/standin/STANDIN_RIGHT.pkl")
ROOT_M = np.array([0.0957, 0.0064, 0.0062])
"""(3,) where the wrist stands in the template; 96 mm from the origin, like MANO's."""

VERSION = 1
"""Raised whenever a build gives other numbers."""

_DIRECTIONS = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.25, -0.62, -0.74]])
"""Along the hand, out of its back, and where the thumb's pad looks: to the palm and the little finger."""

_STEP = 0.5
_MEAN_FLEXION_DEG = {"1": 22.0, "2": 30.0, "3": 16.0}
_THUMB_FLEXION_DEG = {"1": 8.0, "2": 10.0, "3": 12.0}


@functools.cache
def build_standin() -> HandAsset:
    """Build the stand-in (about 3 CPU seconds, once per process).

    Returns:
        HandAsset, metres, float64, `is_standin` true.
    """
    return hand_from_bytes(standin_bytes(), "the procedural hand")


@functools.cache
def standin_bytes() -> bytes:
    """The file's content: a protocol-2 pickle with MANO's keys, readable by the library smplx."""
    rest = make_skeleton()
    mesh = _renumber(build_mesh(rest))
    joints = rest.joints_mm()
    weights = skinning_weights(mesh, rest)
    tips = {finger: mesh.points_mm[vertex] for finger, vertex in mesh.tips.items()}
    axes = flexion_axes(joints, tips, *_DIRECTIONS)
    parents = np.array(MANO_PARENTS)
    tree = np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(16)])
    content = {
        "v_template": _round_m(mesh.points_mm / 1000 + ROOT_M),
        "f": mesh.faces.astype(np.uint32),
        "shapedirs": _round_m(_shape_directions(mesh) / 1000),
        "posedirs": _round_m(pose_correctives(mesh, weights, joints, axes) / 1000),
        "weights": _round_weights(weights),
        "J_regressor": sparse.csc_matrix(_round_m(joint_regressor(mesh.points_mm, joints))),
        "J": _round_m(joints / 1000 + ROOT_M),
        "hands_mean": _mean_pose(axes),
        "hands_components": _round_m(_pose_components(axes)),
        "kintree_table": tree.astype(np.uint32),
        "hands_coeffs": np.zeros((1, 45)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        STANDIN_KEY: VERSION,
    }
    return safe_pickle.dumps(content)


def _round_m(values: Array) -> Array:
    """Rounded to 1e-7: the last bits depend on the linear algebra library and its threads."""
    return np.asarray(np.round(values, 7) + 0.0)


def _round_weights(weights: Array) -> Array:
    """Rounded weights whose rows still sum to exactly 1: the largest entry takes the difference."""
    rounded = np.round(weights, 7)
    rows, largest = np.arange(len(weights)), rounded.argmax(1)
    rounded[rows, largest] = 0
    rounded[rows, largest] = 1 - rounded.sum(1)
    return np.asarray(rounded)


def _renumber(mesh: Mesh) -> Mesh:
    """Move the fingertips to the vertex numbers that HO3D reads them from; all others keep their order."""
    tips = sorted((TIP_VERTICES[f"{finger}_4"], old) for finger, old in mesh.tips.items())
    old_of_new = [i for i in range(NUM_VERTICES) if i not in mesh.tips.values()]
    for new, old in tips:
        old_of_new.insert(new, old)
    new_of_old: Index = np.argsort(old_of_new)
    return dataclasses.replace(
        mesh,
        points_mm=mesh.points_mm[old_of_new],
        faces=new_of_old[mesh.faces],
        part=mesh.part[old_of_new],
        mobility=mesh.mobility[old_of_new],
        wrist_loop=new_of_old[mesh.wrist_loop],
        tips={finger: int(new_of_old[old]) for finger, old in mesh.tips.items()},
    )


def _shape_directions(mesh: Mesh) -> Array:
    """(V, 3, 10) mm per standard deviation: central differences of the generator itself."""
    rest = make_skeleton()
    directions = []
    for k in range(10):
        sides = []
        for sign in (1.0, -1.0):
            shape = np.zeros(10)
            shape[k] = sign * _STEP
            target = make_skeleton(shape)
            points = mesh.points_mm
            if k > 0:
                points = relax(mesh, transport(points, mesh.part, rest, target), target, steps=12)
            sides.append(points * target.size)
        directions.append((sides[0] - sides[1]) / (2 * _STEP))
    return np.stack(directions, axis=2)


def _mean_pose(axes: Array) -> Array:
    """(45,) axis-angle of a relaxed hand; used only where `flat_hand_mean` is false (never on HO3D)."""
    pose = np.zeros((15, 3))
    for i, name in enumerate(MANO16[1:], start=1):
        finger, k = name.split("_")
        degrees = (_THUMB_FLEXION_DEG if finger == "thumb" else _MEAN_FLEXION_DEG)[k]
        pose[i - 1] = np.radians(degrees) * axes[i]
    return np.asarray(np.round(pose.reshape(45), 7))


def _pose_components(axes: Array) -> Array:
    """(45, 45) orthonormal rows: whole-hand flexion first, then flexion finger by finger, then the rest."""
    flexion = np.zeros((16, 45))
    for j in range(1, 16):
        flexion[[0, j], 3 * (j - 1) : 3 * j] = axes[j]
    rows = list(flexion) + list(np.eye(45))
    basis: list[Array] = []
    for row in rows:
        for done in basis:
            row = row - (row @ done) * done
        length = float(np.sqrt((row * row).sum()))
        if length > 1e-6:
            basis.append(row / length)
    return np.stack(basis)


def write_standin(path: Path | str = DEFAULT_PATH) -> Path:
    """Write the stand-in's file, or reuse the one that is there.

    Args:
        path: where; its folder is made.

    Returns:
        the path.

    Raises:
        AssetError: another file is at `path`, or writing it failed.
        DataError: the folder cannot be written to; that is seen before the hand is built.
    """
    path = Path(path)
    if path.exists():
        if not path.is_file() or load_hand_asset(path).fingerprint != build_standin().fingerprint:
            raise AssetError(
                f"stand-in hand {path}: something else is there already. "
                "Name another --out, or remove it yourself."
            )
        return path
    require_place(path)
    try:
        with atomic_write(path) as file:
            file.write(standin_bytes())
    except OSError as reason:
        raise AssetError(f"stand-in hand {path}: cannot be written ({reason.strerror}).") from reason
    return path
