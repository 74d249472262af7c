"""The stand-in hand: the same everywhere, and like a hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dataloader.synthetic.common import flexion_axes
from dataloader.synthetic.hand.standin import DIRECTIONS, build_standin, write_standin
from src.errors import AssetError
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import FINGERS, MANO16, TIP_VERTICES
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset

FINGERPRINT = "9c6340c7fb3c2444"
"""Changes when the stand-in's numbers change: raise `standin.VERSION` then; old checkpoints no longer fit."""


def test_numbers_are_the_recorded_ones(asset: HandAsset) -> None:
    """Two users who build the stand-in compare the same hand."""
    assert asset.fingerprint == FINGERPRINT
    assert build_standin().fingerprint == FINGERPRINT


def test_file_is_the_same_for_any_number_of_threads(standin_path: Path, tmp_path: Path) -> None:
    """Machines with other core counts write the same bytes."""
    out = tmp_path / "again.pkl"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "dataloader.synthetic.hand", "--out", str(out)]
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(standin_path.read_bytes()).digest()


def test_existing_file_is_reused_and_another_is_an_error(asset: HandAsset, tmp_path: Path) -> None:
    """Nobody's file is overwritten."""
    path = write_standin(tmp_path / "a" / "S_RIGHT.pkl")
    before = path.stat().st_mtime_ns
    assert write_standin(path).stat().st_mtime_ns == before
    path.write_bytes(b"mine")
    with pytest.raises(AssetError):
        write_standin(path)
    assert path.read_bytes() == b"mine"


def test_measures_of_an_adult_hand(asset: HandAsset) -> None:
    """The doctor's unit check (wrist to middle knuckle 70-110 mm) passes, also for unusual shapes."""
    for k in range(10):
        for sign in (-2.0, 0.0, 2.0):
            vertices = asset.v_template + sign * asset.shapedirs[:, :, k]
            joints = asset.joint_regressor @ vertices
            length = np.linalg.norm(joints[MANO16.index("middle_1")] - joints[0]) * 1000
            assert 70 < length < 110, (k, sign)
    span = np.ptp(asset.v_template, axis=0) * 1000
    assert 170 < span[0] < 220
    assert span[1] < 80
    assert np.linalg.norm(asset.joint_regressor[0] @ asset.v_template) > 0.05


def test_every_shape_number_moves_the_surface(asset: HandAsset) -> None:
    """No shape number is dead: each moves the skin by at least half a millimetre (rms) per unit."""
    moved = np.sqrt((asset.shapedirs**2).sum(1).mean(0)) * 1000
    assert moved.min() > 0.5
    assert moved.max() < 10


def _edges(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def test_surface_is_closed_except_for_the_wrist(asset: HandAsset) -> None:
    """A renderer that culls back faces shows no holes: one loop of 16 open edges, wound outwards."""
    edges = _edges(asset.faces)
    directed = {(int(a), int(b)) for a, b in edges}
    assert len(directed) == len(edges)
    open_edges = {(a, b) for a, b in directed if (b, a) not in directed}
    assert len(open_edges) == 16
    following = dict(open_edges)
    start = next(iter(following))
    loop = [start]
    while following[loop[-1]] != start:
        loop.append(following[loop[-1]])
    assert len(loop) == 16
    assert len(np.unique(asset.faces)) == 778
    p, q, r = (asset.v_template[asset.faces[:, k]] - asset.v_template.mean(0) for k in range(3))
    volume_cm3 = float((p * np.cross(q, r)).sum()) / 6 * 1e6
    assert 250 < volume_cm3 < 500


def _crossings(points: NDArray[np.float64], faces: NDArray[np.int64]) -> int:
    """Pairs (edge, triangle) that cross without sharing a vertex."""
    edges = np.unique(np.sort(_edges(faces), axis=1), axis=0)
    low_e, high_e = points[edges].min(1), points[edges].max(1)
    low_f, high_f = points[faces].min(1), points[faces].max(1)
    near = ((low_e[:, None] <= high_f[None]) & (high_e[:, None] >= low_f[None])).all(-1)
    near &= (edges[:, None, :, None] != faces[None, :, None, :]).all((2, 3))
    e, f = np.nonzero(near)
    a, b = points[edges[e, 0]], points[edges[e, 1]]
    p, q, r = (points[faces[f, k]] for k in range(3))

    def side(w: NDArray, x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.bool_]:
        return (np.cross(x - w, y - w) * (z - w)).sum(1) > 0

    across = side(p, q, r, a) != side(p, q, r, b)
    first, second, third = side(a, b, p, q), side(a, b, q, r), side(a, b, r, p)
    return int((across & (first == second) & (second == third)).sum())


def test_rest_surface_does_not_cross_itself(asset: HandAsset) -> None:
    """Rendered depth is that of a real surface; also two standard deviations away in every shape number."""
    assert _crossings(asset.v_template, asset.faces) == 0
    for k in range(10):
        for sign in (-2.0, 2.0):
            assert _crossings(asset.v_template + sign * asset.shapedirs[:, :, k], asset.faces) == 0, (k, sign)


def test_crossings_are_found(asset: HandAsset) -> None:
    """The check above can fail: a tip pushed through the palm crosses it."""
    points = asset.v_template.copy()
    points[TIP_VERTICES["middle_4"]] = points.mean(0) + np.array([0, 0.05, 0])
    assert _crossings(points, asset.faces) > 0


def test_weights_and_regressor(asset: HandAsset) -> None:
    """Skin follows its own finger only, and joints stay inside the hand."""
    assert asset.lbs_weights.min() >= 0
    np.testing.assert_allclose(asset.lbs_weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(asset.joint_regressor.sum(1), 1, atol=1e-5)
    for finger in FINGERS:
        tip = asset.lbs_weights[TIP_VERTICES[f"{finger}_4"]]
        assert tip[MANO16.index(f"{finger}_3")] > 0.95, finger


def _posed(layer: ManoLayer, aa: NDArray[np.float64]) -> NDArray[np.float64]:
    rotations = rotation_from_aa(torch.from_numpy(aa)[None])
    zeros = torch.zeros(1, 10, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    return layer(rotations[:, 0], rotations[:, 1:], *zeros).vertices_m[0].numpy()


def test_correctives_keep_the_girth_of_a_bent_finger(layer: ManoLayer, asset: HandAsset) -> None:
    """A finger bent by 70 degrees about its own axis does not collapse like a straw, on any axis."""
    joints = asset.joint_regressor @ asset.v_template
    tips = {finger: asset.v_template[TIP_VERTICES[f"{finger}_4"]] for finger in FINGERS}
    axes = flexion_axes(joints, tips, *DIRECTIONS)
    plain = ManoLayer.from_asset(asset)
    plain.directions[10:] = 0

    def girth(model: ManoLayer, j: int, axis: NDArray[np.float64]) -> float:
        """Posed over rest distance from the joint, of the skin at the fold; across the axis only."""
        aa = np.zeros((16, 3))
        aa[j] = np.radians(70) * axis
        moved = asset.lbs_weights[:, [j, j + 1]].sum(1)
        middle = np.abs(moved - 0.5) < 0.4
        middle &= np.linalg.norm(asset.v_template - joints[j], axis=1) < 0.02
        assert middle.sum() >= 4
        rest = asset.v_template[middle] - joints[j]
        posed = _posed(model, aa)[middle] - joints[j]
        across = np.eye(3) - np.outer(axis, axis)
        return float(
            np.linalg.norm(posed @ across, axis=1).mean() / np.linalg.norm(rest @ across, axis=1).mean()
        )

    for name in ("index_2", "middle_2", "ring_2", "pinky_2"):
        j = MANO16.index(name)
        skew = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
        for axis in (axes[j], skew):
            assert abs(girth(layer, j, axis) - 1) < abs(girth(plain, j, axis) - 1), name
        assert 0.9 < girth(layer, j, axes[j]) < 1.1, name


def test_positive_flexion_closes_the_hand(layer: ManoLayer, asset: HandAsset) -> None:
    """The natural poses of the synthetic data bend fingers towards the palm, not backwards."""
    joints = asset.joint_regressor @ asset.v_template
    tips = {finger: asset.v_template[TIP_VERTICES[f"{finger}_4"]] for finger in FINGERS}
    aa = np.radians(60) * flexion_axes(joints, tips, *DIRECTIONS)
    aa[0] = 0
    posed, palm = _posed(layer, aa), joints[[0, 1, 4, 7, 10]].mean(0)
    for finger in ("index", "middle", "ring", "pinky"):
        tip = TIP_VERTICES[f"{finger}_4"]
        assert np.linalg.norm(posed[tip] - palm) < 0.7 * np.linalg.norm(asset.v_template[tip] - palm)
        assert posed[tip][1] < palm[1]
