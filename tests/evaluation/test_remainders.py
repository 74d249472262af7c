"""Work that is done in parts: what is left over behind the last whole part, and rows of several parts."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation import statistics, submission
from src.evaluation.metrics import mesh_rows, mpjpe_mm, official_ho3d, pa_mpjpe_mm
from src.evaluation.nearest_pose import nearest_pose_mm
from src.evaluation.official import official_joint_rows, official_mesh_rows
from src.evaluation.report import summary_lines
from src.evaluation.statistics import bootstrap_mean
from src.runtime.seed import stream
from tests.evaluation.test_nearest_pose import hands
from tests.evaluation.test_report import scored
from tests.evaluation.test_submission import asset, predictions


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


def test_the_nearest_pose_of_each_row_is_found_among_many_rivals() -> None:
    """Five hands, each with 20 to 60 poses that are nearer by root mean square than the one that is nearest
    by mean: each row keeps the smallest of all its candidates, and as many of them as it needs.
    """
    random = stream(6, "rivals")
    val = hands(5, 8).astype(np.float64)
    train, best, last = [], [], 0
    for k, hand in enumerate(val):
        direction = random.normal(0.0, 1.0, (60, 21, 3))
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        rivals = hand + 0.006 * direction[: 20 + 10 * k]
        nearest = hand.copy()
        nearest[11:] += 0.0094 * direction[-1, 11:]
        train += [*rivals[:7], nearest, *rivals[7:]]
        scores = pa_mpjpe_mm(np.array([*rivals, nearest]), np.repeat(hand[None], len(rivals) + 1, 0))
        last += scores.argmin() == len(rivals)
        best.append(scores.min())
    assert last >= 3, f"the test wants hands that the odd pose is nearest to, got {last} of 5"
    np.testing.assert_allclose(nearest_pose_mm(np.array(train), val), best, atol=1e-9)


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


def test_an_interval_does_not_depend_on_how_its_replicates_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    """2000 replicates are 2000, also where the last part of them is a short one."""
    values, groups = stream(1, "parts").normal(20.0, 5.0, 90), np.arange(90) // 10
    whole = bootstrap_mean(values, groups, seed=3)
    for cells in (9 * 7, 9 * 1999, 1):
        monkeypatch.setattr(statistics, "_CELLS", cells)
        assert bootstrap_mean(values, groups, seed=3) == whole, f"{cells} counts at a time"


def test_the_worst_finger_is_told_with_its_wrist_relative_error() -> None:
    """The mean over its four joints, both wrists at the origin: 200 mm on a tip alone are 50."""

    def bend(pred: np.ndarray, target: np.ndarray, conf: np.ndarray) -> None:
        pred[:] = target
        pred[:, 12, 0] += 0.2  # the middle finger's tip

    result, frames = scored(spoil=bend)
    lines = summary_lines({"RGB-D": result}, frames)
    assert "  Worst finger (RGB-D): middle, 50.000 mm wrist-relative" in lines


def test_a_submissions_hands_are_checked_against_their_own_meshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hands of later chunks turned by half a turn: beside the meshes of the first ones they are disorder."""
    monkeypatch.setattr(submission, "_CHUNK", 2, raising=False)
    joints, vertices = predictions(7)
    wrist = joints[2:, :1]
    for points in (joints, vertices):
        points[2:] = (points[2:] - wrist) * np.float32([-1, -1, 1]) + wrist
    said = submission.submission_checks(joints, vertices, asset().joint_regressor, num_frames=7)
    assert sum(line.startswith("order: ") for line in said) == 2
