"""The nearest training pose of each validation pose, against scoring every pair."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Row, report
from dataloader.synthetic.hand.standin import write_standin
from src.evaluation.metrics import pa_mpjpe_mm
from src.evaluation.nearest_pose import nearest_pose_mm
from src.geometry.rotation import rotation_from_aa
from src.hand.mano import ManoLayer

ROWS, TRAIN, PLAIN_ROWS = 1600, 10_000, 4
FULL_ROWS, FULL_TRAIN = 8332, 74_993
"""Sizes of HO3D_v3's split by frame."""


def _poses(layer: ManoLayer, count: int, seed: int) -> NDArray[np.float32]:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(count, 16, 3, generator=generator) * 0.4
    matrices = rotation_from_aa(pose)
    betas = torch.randn(count, 10, generator=generator) * 0.5
    with torch.no_grad():
        hands = [
            layer(m[:, 0], m[:, 1:], b, torch.zeros(len(m), 3)).joints_m
            for m, b in zip(matrices.split(500), betas.split(500), strict=True)
        ]
    return torch.cat(hands).numpy()


def main() -> None:
    """Time both, and say what HO3D_v3's split by frame would take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "MANO_RIGHT.pkl"
        write_standin(path)
        layer = ManoLayer.from_file(path)
    train, val = _poses(layer, TRAIN, 0), _poses(layer, ROWS, 1)
    began = time.perf_counter()
    best = nearest_pose_mm(train, val)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    plain = np.array(
        [pa_mpjpe_mm(train, np.repeat(row[None], TRAIN, axis=0)).min() for row in val[:PLAIN_ROWS]]
    )
    plain_s = (time.perf_counter() - began) / PLAIN_ROWS * ROWS
    assert np.allclose(best[:PLAIN_ROWS], plain, atol=1e-6), "the two must agree"
    full = seconds * (FULL_ROWS * FULL_TRAIN) / (ROWS * TRAIN)
    what = f"{ROWS} x {TRAIN}: {seconds:.1f}; {FULL_ROWS} x {FULL_TRAIN}: {full:.0f}"
    report(
        "nearest_pose", [Row(what, f"every pair, {ROWS} x {TRAIN}: {plain_s:.0f}", plain_s / seconds, "s")]
    )


if __name__ == "__main__":
    main()
