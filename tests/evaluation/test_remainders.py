"""Work that is done in parts: what is left over behind the last whole part, and rows of several parts."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation.metrics import mesh_rows, mpjpe_mm, official_ho3d, pa_mpjpe_mm
from src.evaluation.nearest_pose import nearest_pose_mm
from src.evaluation.official import official_joint_rows, official_mesh_rows
from src.runtime.seed import stream
from tests.evaluation.test_nearest_pose import hands


@pytest.mark.parametrize("over", [0, 1, 2])
def test_samples_behind_the_last_whole_chunk_are_scored(over: int) -> None:
    """2048 samples at a time: the 4097th must have a number, and its own."""
    random = stream(over, "remainders")
    count = 2 * 2048 + over
    target = random.normal(0.0, 0.05, (count, 21, 3))
    pred = target + random.normal(0.0, 0.02, target.shape)
    picked = sorted({0, 2047, 2048, 4095, count - 1})
    for metric in (mpjpe_mm, pa_mpjpe_mm):
        rows = metric(pred, target)
        assert rows.shape == (count,)
        np.testing.assert_allclose(rows[picked], metric(pred[picked], target[picked]), rtol=1e-12)
    rows = official_joint_rows(pred, target)
    alone = official_joint_rows(pred[picked], target[picked])
    for name, values in rows.items():
        assert values.shape == (count,), name
        np.testing.assert_allclose(values[picked], alone[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(
        official_ho3d(pred, target)["xyz_mean3d"], rows["xyz_mean3d"].mean(), rtol=1e-12
    )


@pytest.mark.parametrize("over", [0, 1, 2])
def test_meshes_behind_the_last_whole_chunk_are_scored(over: int) -> None:
    """64 meshes at a time, each with the wrist of its own hand."""
    random = stream(over, "mesh remainders")
    count = 2 * 64 + over
    target = random.normal(0.0, 0.05, (count, 30, 3))
    pred = target + random.normal(0.0, 0.01, target.shape)
    wrists = random.normal(0.0, 0.1, (2, count, 3))
    picked = sorted({0, 63, 64, 127, count - 1})
    every, alone = (
        mesh_rows(pred[p], target[p], wrists[0][p], wrists[1][p]) | official_mesh_rows(pred[p], target[p])
        for p in (slice(None), picked)
    )
    for name, values in every.items():
        assert values.shape == (count,), name
        np.testing.assert_allclose(values[picked], alone[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(("rows", "poses"), [(32, 512), (33, 513), (65, 1025), (31, 511)])
def test_the_nearest_pose_is_found_in_a_last_short_tile(rows: int, poses: int) -> None:
    """32 rows against 512 poses at a time: the pose that is the very hand stands first, last or between."""
    train, val = hands(poses, 1).astype(np.float64), hands(rows, 2).astype(np.float64)
    for row, pose in ((0, poses - 1), (rows - 1, 0), (rows // 2, poses // 2), (rows - 2, poses - 2)):
        train[pose] = 1.2 * val[row] + 0.1
    found = nearest_pose_mm(train, val)
    exact = sorted({0, rows - 1, rows // 2, rows - 2})
    assert found.shape == (rows,)
    assert found[exact].max() < 1e-3, f"mm of rows {exact}, whose own pose is in training"
    assert np.delete(found, exact).min() > 0.5
