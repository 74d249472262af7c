"""The oracle of the training set, against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import DataError, ShapeError
from src.evaluation.baselines import nearest_pose
from src.evaluation.baselines.nearest_pose import alignment_gain, nearest_pose_mm
from src.evaluation.metrics import pa_mpjpe_mm
from src.hand.mano import ManoLayer
from src.runtime.seed import stream
from tests.hand_file import hand_file


def hands(count: int, seed: int, cameras: int = 1) -> np.ndarray:
    """(count * cameras, 21, 3) float32 m: articulated, shaped, turned and moved stand-in hands."""
    random = stream(seed, "hands")
    total = count * cameras
    curl = random.normal(0.0, 0.35, (count, 15, 3)).repeat(cameras, axis=0)
    betas = random.normal(0.0, 1.0, (count, 10)).repeat(cameras, axis=0)
    pose = Rotation.from_rotvec(curl.reshape(-1, 3)).as_matrix().reshape(total, 15, 3, 3)
    turn = Rotation.random(total, rng=random).as_matrix()
    place = random.normal((0.0, 0.0, 0.6), 0.2, (total, 3))
    layer = ManoLayer.from_file(hand_file())
    with torch.no_grad():
        posed = layer(*(torch.from_numpy(part).float() for part in (turn, pose, betas, place)))
    return posed.joints_m.numpy()


def all_pairs(train: np.ndarray, val: np.ndarray) -> np.ndarray:
    """(N,) the smallest of all PA errors, one metric call a row."""
    return np.array([pa_mpjpe_mm(train, np.tile(row, (len(train), 1, 1))).min() for row in val])


def test_it_is_the_minimum_over_all_pairs() -> None:
    """An oracle that overlooks a pose, in a last short tile too, flatters every network beside it."""
    train, val = hands(800, 1, cameras=3), hands(60, 2)
    np.testing.assert_allclose(nearest_pose_mm(train, val), all_pairs(train, val), atol=1e-9, rtol=0)


def test_the_best_mean_may_have_a_larger_root_mean_square() -> None:
    """A pose that errs on some fingers only has the smaller mean and the larger rms: both must be tried."""
    random = stream(3, "rivals")
    val = hands(1, 3).astype(np.float64)
    direction = random.normal(0.0, 1.0, (61, 21, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    everywhere = val + 0.006 * direction[:60]
    some_fingers = val.repeat(3, axis=0)
    some_fingers[:, 11:] += np.array([0.0094, 0.0097, 0.01])[:, None, None] * direction[-1, 11:]
    train = np.concatenate([everywhere, some_fingers])
    scores = pa_mpjpe_mm(train, np.tile(val, (len(train), 1, 1)))
    gain = alignment_gain(nearest_pose._planes(val)[0], nearest_pose._planes(train)[0])[0]
    assert scores.argmin() == 60
    assert int((gain > gain[60]).sum()) > nearest_pose.FIRST
    # Two others are tried after it: several candidates of one row have one smallest.
    assert int((gain < gain[60]).sum()) >= 2
    assert nearest_pose_mm(train, val)[0] == pytest.approx(scores[60], abs=1e-9)


def test_a_known_pose_is_found_wherever_it_stands() -> None:
    """Another camera, size or place of the same articulation is the same one; a mirror image is not."""
    train = hands(300, 1)
    turn = Rotation.random(300, rng=stream(4, "turns")).as_matrix()
    moved = 1.3 * train.astype(np.float64) @ turn.transpose(0, 2, 1) + 2.0
    assert nearest_pose_mm(train, moved).max() < 1e-3  # float32 poses 0.6 m away
    assert nearest_pose_mm(train, moved * [1.0, 1.0, -1.0]).min() > 3.0


def test_degenerate_poses_do_not_poison_the_others() -> None:
    """A collapsed or straight training pose divides 0 by 0 in a careless solver; nan would spread."""
    train, val = hands(50, 1), hands(6, 2)
    line = np.linspace(0.0, 0.2, 21)[:, None] * [1.0, 2.0, 3.0]
    odd = np.stack([np.zeros((21, 3)), np.full((21, 3), 0.7), line, -line]).astype(np.float32)
    val[2] = np.nan
    val[4] = line
    expected = all_pairs(np.concatenate([odd, train]), val[[0, 1, 3, 4, 5]])
    scores = nearest_pose_mm(np.concatenate([odd, train]), val)
    assert np.isnan(scores[2])
    np.testing.assert_allclose(scores[[0, 1, 3, 4, 5]], expected, atol=1e-6)
    assert nearest_pose_mm(odd, hands(2, 5)).min() > 10.0


def test_identical_training_poses_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A still hand filmed for an hour is one pose many times: all pairs in reach would fill the memory."""
    monkeypatch.setattr(nearest_pose, "MOST", 40)
    seen = []
    monkeypatch.setattr(nearest_pose, "pa_mpjpe_mm", lambda a, b: (seen.append(len(a)), pa_mpjpe_mm(a, b))[1])
    still = hands(1, 1).repeat(500, axis=0)
    assert nearest_pose_mm(still, still[:3]).max() < 1e-3
    assert max(seen) <= 3 * 40


def test_bad_input_is_refused() -> None:
    """A NaN pose in the training set, or no pose at all, gives no oracle."""
    train = hands(4, 1)
    with pytest.raises(ShapeError):
        nearest_pose_mm(train, train[:, :5])
    with pytest.raises(DataError, match="0 training poses"):
        nearest_pose_mm(train[:0], train)
    train[1, 2, 0] = np.inf
    with pytest.raises(DataError, match="all finite"):
        nearest_pose_mm(train, train[:1])
