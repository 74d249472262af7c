"""The stand-in hand: the same everywhere, and like a hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataloader.synthetic.hand import standin
from src.errors import AssetError
from src.hand.joints import FINGERS, MANO16, TIP_VERTICES
from src.hand.mano_assets import HandAsset, banner

FINGERPRINT = "9c6340c7fb3c2444"
"""Changes when the stand-in's numbers change: raise `standin.VERSION` then; old checkpoints no longer fit."""


def test_file_is_the_recorded_one_for_any_number_of_threads(
    asset: HandAsset, standin_path: Path, tmp_path: Path
) -> None:
    """Users who build the stand-in, also on machines with other core counts, compare the same hand, and
    nobody mistakes its number for a MANO number.
    """
    out = tmp_path / "again.pkl"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "dataloader.synthetic.hand", "--out", str(out)]
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    assert out.read_bytes() == standin_path.read_bytes()
    assert (asset.fingerprint, asset.is_standin) == (FINGERPRINT, True)
    assert "STAND-IN" in str(banner(asset))


def test_existing_file_is_reused_and_another_is_an_error(
    asset: HandAsset, standin_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's file is overwritten."""
    monkeypatch.setattr(standin, "build_standin", lambda: asset)
    monkeypatch.setattr(standin, "standin_bytes", standin_path.read_bytes)
    path = standin.write_standin(tmp_path / "a" / "S_RIGHT.pkl")
    before = path.stat().st_mtime_ns
    assert standin.write_standin(path).stat().st_mtime_ns == before
    path.write_bytes(b"mine")
    with pytest.raises(AssetError):
        standin.write_standin(path)
    assert path.read_bytes() == b"mine"


def test_measures_of_an_adult_hand(asset: HandAsset) -> None:
    """The doctor's unit check (wrist to middle knuckle 70-110 mm) passes, also for unusual shapes."""
    shapes = np.concatenate([np.zeros((1, 10)), 2 * np.eye(10), -2 * np.eye(10)])
    joints = asset.joint_regressor @ (asset.v_template + np.moveaxis(asset.shapedirs @ shapes.T, -1, 0))
    lengths = np.linalg.norm(joints[:, MANO16.index("middle_1")] - joints[:, 0], axis=1) * 1000
    assert 70 < lengths.min() < lengths.max() < 110
    span = np.ptp(asset.v_template, axis=0) * 1000
    assert 170 < span[0] < 220
    assert span[1] < 80
    assert np.linalg.norm(joints[0, 0]) > 0.05
    for finger in FINGERS:  # skin follows its own finger only
        assert asset.lbs_weights[TIP_VERTICES[f"{finger}_4"], MANO16.index(f"{finger}_3")] > 0.95, finger
    moved = np.sqrt((asset.shapedirs**2).sum(1).mean(0)) * 1000
    assert 0.5 < moved.min() < moved.max() < 10, "millimetres of skin, rms, per unit of a shape number"


def test_surface_is_closed_except_for_the_wrist(asset: HandAsset) -> None:
    """A renderer that culls back faces shows no holes: one loop of 16 open edges, wound outwards."""
    directed = {(int(f[i]), int(f[i - 1])) for f in asset.faces for i in range(3)}
    assert len(directed) == 3 * len(asset.faces)
    following = {a: b for a, b in directed if (b, a) not in directed}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    assert len(loop) == len(following) == 16
    assert len(np.unique(asset.faces)) == 778
    p, q, r = (asset.v_template[asset.faces[:, k]] - asset.v_template.mean(0) for k in range(3))
    assert 250 < float((p * np.cross(q, r)).sum()) / 6 * 1e6 < 500, "cubic centimetres"
