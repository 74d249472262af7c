"""What a network that saw nothing would score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import DataError, ShapeError
from src.evaluation.baselines import constant_baselines, mean_poses
from src.evaluation.evaluator import EvaluationShard, evaluate, report_lines
from src.runtime.seed import stream


def turned_hands(count: int, seed: int, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One hand (plus `spread` m of articulation) in many wrist rotations: (count, 21, 3), (count, 3, 3)."""
    random = stream(seed, "turned")
    hand = stream(0, "the hand").normal(0.0, 0.05, (21, 3))
    hand[0] = 0.0
    turn = Rotation.random(count, rng=random).as_matrix()
    shaped = hand + random.normal(0.0, spread, (count, 21, 3)) * (spread > 0)
    return shaped @ turn.transpose(0, 2, 1) + random.normal(0.0, 0.2, (count, 1, 3)), turn


def test_an_all_zero_network_scores_exactly_the_zero_baseline():
    """102.152 / 48.320 mm was the score of a network of zeros; beside its baseline it shows at once."""
    joints, turn = turned_hands(12, 1, spread=0.01)
    target = torch.from_numpy(joints)
    baselines = constant_baselines(joints, turn, joints)
    shard = EvaluationShard(12, dtype=torch.float64)
    shard.add(
        sample_index=torch.arange(12),
        pred_joints_m=torch.zeros(12, 21, 3, dtype=torch.float64),
        target_joints_m=target,
        conf=torch.ones(12, 21),
        loss=torch.zeros(12),
    )
    result = evaluate(shard, num_samples=12, split_hash="x", baselines=baselines)
    assert result.mpjpe_mm == baselines["zero_mpjpe_mm"]
    assert result.pa_mpjpe_mm == baselines["zero_pa_mm"]
    line = report_lines(result, 1, "GPUs")[-1]
    assert f"zero pose MPJPE {result.mpjpe_mm:.3f} mm, PA-MPJPE {result.pa_mpjpe_mm:.3f} mm" in line


def test_mean_pose_takes_wrist_rotations_back_for_pa():
    """The mean of turned hands is a clot; its PA of 30 mm makes a mean hand's 12 mm look like learning."""
    train, turn = turned_hands(500, 1)
    val, _ = turned_hands(20, 2)
    scores = constant_baselines(train, turn, val)
    assert scores["mean_pose_pa_mm"] < 1e-6
    assert scores["mean_pose_mpjpe_mm"] > 50.0
    assert scores["mean_pose_mpjpe_mm"] <= scores["zero_mpjpe_mm"] * 1.02


def test_mean_pose_without_turning_is_the_mean():
    """For MPJPE the best constant is the mean of the wrist-relative joints."""
    train, _ = turned_hands(50, 1, spread=0.02)
    relative, canonical = mean_poses(train, np.broadcast_to(np.eye(3), (50, 3, 3)))
    np.testing.assert_allclose(relative, (train - train[:, :1]).mean(0), atol=1e-15)
    np.testing.assert_allclose(canonical, relative, atol=1e-15)


def test_baselines_are_those_of_the_scored_rows():
    """A baseline of other rows than the metric's is no baseline."""
    train, turn = turned_hands(50, 1, spread=0.02)
    val, _ = turned_hands(10, 2, spread=0.02)
    usable = np.arange(10) != 4
    expected = constant_baselines(train, turn, val[usable])
    val[4] = np.nan
    assert constant_baselines(train, turn, val, usable) == expected
    assert all(math.isnan(v) for v in constant_baselines(train, turn, val[:0]).values())


def test_bad_training_poses_are_refused():
    """A NaN among 75,000 poses would silently turn every baseline into nan."""
    train, turn = turned_hands(5, 1)
    with pytest.raises(ShapeError):
        constant_baselines(train, turn[:4], train)
    with pytest.raises(DataError, match="no pose"):
        constant_baselines(train[:0], turn[:0], train)
    train[2, 3, 1] = np.nan
    with pytest.raises(DataError, match="1 of 5 training poses are not finite \\(first: row 2\\)"):
        constant_baselines(train, turn, train)
