"""The official HO3D scores with meshes: ours, and a plain loop over frames with all distances."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from benchmarks.common import Row, report
from src.evaluation.official import F_THRESHOLDS_M, official_ho3d, official_mesh_rows
from src.runtime.seed import stream

FRAMES, PLAIN_FRAMES, ALL = 2048, 24, 20137
VERTICES, JOINTS = 778, 21
Array = NDArray[np.float64]


def _hands(count: int) -> tuple[Array, Array]:
    """(prediction, truth): points on a bent sheet of a hand's size, predictions about 1 cm off."""
    random = stream(0, "benchmark", "official")
    side = random.uniform(-0.09, 0.09, (1, VERTICES, 2))
    bend = random.uniform(1.0, 8.0, (count, 1))
    sheet = np.broadcast_to(side, (count, VERTICES, 2))
    target = np.concatenate([sheet, (bend * np.square(sheet[..., 0]) + 0.6)[..., None]], axis=-1)
    place = random.normal(0.0, 0.008, (count, 1, 3))
    return target + place + random.normal(0.0, 0.003, target.shape), target


def _plain(pred: Array, target: Array) -> list[float]:
    """F-scores, raw and aligned, of one frame at a time with all 778 x 778 distances, twice per threshold."""
    scores = []
    for p, t in zip(pred, target, strict=True):
        a, b = t - t.mean(0), p - p.mean(0)
        a_size, b_size = np.linalg.norm(a), np.linalg.norm(b)
        turn, scale = orthogonal_procrustes(a / a_size, b / b_size)
        aligned = b / b_size @ turn.T * scale * a_size + t.mean(0)
        for points in (p, aligned):
            for limit in F_THRESHOLDS_M.values():
                forth = np.linalg.norm(t[:, None] - points[None], axis=-1).min(-1)
                back = np.linalg.norm(points[:, None] - t[None], axis=-1).min(-1)
                precision, recall = float((forth < limit).mean()), float((back < limit).mean())
                total = precision + recall
                scores.append(2.0 * precision * recall / total if total else 0.0)
    return scores


def main() -> None:
    """Time both, and say what all frames of HO3D v3's evaluation split would take."""
    pred, target = _hands(FRAMES)
    few = slice(0, PLAIN_FRAMES)
    rows = official_mesh_rows(pred[few], target[few])
    names = [f"{kind}_{name}" for kind in ("f_score", "f_al_score") for name in F_THRESHOLDS_M]
    began = time.perf_counter()
    plain = np.array(_plain(pred[few], target[few])).reshape(PLAIN_FRAMES, len(names))
    plain_s = (time.perf_counter() - began) / PLAIN_FRAMES * ALL
    assert np.array_equal(plain, np.stack([rows[name] for name in names], axis=1)), (
        "the two must agree exactly"
    )
    lines = []
    for workers in (1, 2):
        began = time.perf_counter()
        official_mesh_rows(pred, target, workers=workers)
        seconds = time.perf_counter() - began
        every = seconds / FRAMES * ALL
        what = f"meshes, {FRAMES} frames, {workers} thread(s): {seconds:.2f}; {ALL} frames: {every:.1f}"
        lines.append(
            Row(what, f"plain loop, {ALL} frames: {plain_s:.0f}", plain_s / (seconds / FRAMES * ALL), "s")
        )
    began = time.perf_counter()
    official_ho3d(pred[:, :JOINTS], target[:, :JOINTS], pred, target)
    seconds = (time.perf_counter() - began) / FRAMES * ALL
    lines.append(Row(f"joints and meshes, {ALL} frames: {seconds:.1f}", "allowed: 60", 60.0 / seconds, "s"))
    report("official", lines)


if __name__ == "__main__":
    main()
