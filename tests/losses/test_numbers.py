"""Weights, hands and millimetres of the loss, on predictions that are wrong by known amounts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from src.config import LossConfig
from src.geometry.rotation import rotation_about_z
from src.losses.loss import HandLoss
from src.schema import HandEstimate, Prediction
from tests.log_lines import log_lines
from tests.losses.test_loss import ONLY, change, only, truth
from tests.models.scene import hand_model, make_batch

MOVED_M = 0.05
"""One joint of 21 is off by this along one axis of 3; smooth L1 makes 0.5 - 0.05 of it."""
MOVED = (0.5 - 0.05) / 63


def moved(hand: HandEstimate, joint: int, sample: int = 0) -> HandEstimate:
    """The hand with one joint of one sample MOVED_M along x."""
    joints = hand.joints_root_m.clone()
    joints[sample, joint, 0] += MOVED_M
    return dataclasses.replace(hand, joints_root_m=joints)


def test_each_term_weighs_what_the_configuration_says() -> None:
    """Each weight is of its own term; loss.coarse is a factor on both hands' terms and on no votes, once.

    All values are 1/140 for joints, so a factor that is applied twice is seen in the total alone.
    """
    config = dataclasses.replace(
        ONLY, joints_3d=2.0, joints_canonical=3.0, betas=5.0, prior=7.0, votes_3d=11.0, votes_2d=13.0,
        heatmap=17.0, coarse=0.25,
    )  # fmt: skip
    batch = make_batch(1, 64, 64, noise=True)
    right = truth(batch)
    wrong = Prediction(
        hand=dataclasses.replace(moved(right.hand, 9), betas=batch.betas + 2.0),
        coarse=dataclasses.replace(moved(moved(right.hand, 9), 11), betas=batch.betas + 3.0),
        vote_joints_root_m=moved(right.hand, 4).joints_root_m,
        vote_joints_unit=batch.joints_unit + torch.tensor([0.1, 0.3]),
        vote_logits=torch.zeros_like(right.vote_logits),
    )
    loss = HandLoss(config, hand_model())
    terms = loss(wrong, batch)
    weights = {
        "joints_3d": 2.0, "joints_canonical": 3.0, "betas": 5.0, "prior": 7.0,
        "coarse_joints_3d": 0.5, "coarse_joints_canonical": 0.75, "coarse_betas": 1.25, "coarse_prior": 1.75,
        "votes_3d": 11.0, "votes_2d": 13.0, "heatmap": 17.0,
    }  # fmt: skip
    assert dict(terms.weights) == weights
    values = {name: float(value) for name, value in terms.values.items()}
    expected = {
        "joints_3d": MOVED, "coarse_joints_3d": 2 * MOVED, "votes_3d": MOVED, "betas": 4.0,
        "coarse_betas": 9.0, "votes_2d": (1.0 + 3.0) / 2,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == {
        name: pytest.approx(value, rel=1e-3) for name, value in expected.items()
    }
    assert values["coarse_joints_canonical"] > 1.5 * values["joints_canonical"] > 0, "of the hand before"
    total = sum(weights[name] * value for name, value in values.items())
    assert float(terms.total) == pytest.approx(total, rel=1e-5), "weights x values, each once"
    assert float(loss.per_sample(wrong, batch)[0]) == pytest.approx(total, rel=1e-5)


def test_the_prior_and_rotations_count_the_fingers() -> None:
    """15 fingers' rotations a tenth of a radian from the mean or the label: 2 (1 - cos) x 2 of 9 elements."""
    batch = make_batch(1, 64, 64, noise=True)
    turn = rotation_about_z(torch.tensor(0.1))
    wanted = 4 * (1 - math.cos(0.1)) / 9
    loss = only(prior=1.0)
    bent = change(truth(batch), hand_pose=(loss.mean_pose @ turn)[None], betas=torch.zeros(1, 10))
    assert float(loss(bent, batch).total) == pytest.approx(wanted, rel=1e-3), "prior"
    bent = change(truth(batch), hand_pose=batch.hand_pose @ turn)
    assert float(only(rotations=1.0)(bent, batch).total) == pytest.approx(wanted, rel=1e-3), "rotations"


def test_a_joints_weight_is_a_weight() -> None:
    """joints_conf of a quarter counts a quarter: (1 x 0 + 0.25 x e) over (20 + 0.25)."""
    batch = make_batch(1, 64, 64, noise=True)
    conf = torch.ones(1, 21)
    conf[0, 9] = 0.25
    batch = dataclasses.replace(batch, joints_conf=conf)
    wrong = dataclasses.replace(truth(batch), hand=moved(truth(batch).hand, 9))
    value = float(only(joints_3d=1.0)(wrong, batch).values["joints_3d"])
    assert value == pytest.approx(0.25 * (0.5 - 0.05) / 3 / 20.25, rel=1e-3)


def test_joints_a_hand_before_the_lens_are_projected_where_they_are() -> None:
    """Only what is nearer than 2 cm is clamped: at 10 cm a centimetre is f / 10 pixels."""
    batch = make_batch(1, 64, 64, noise=True)
    near = batch.joints_cam_m - batch.root_cam_m[:, None] + torch.tensor([0.0, 0.0, 0.15])
    near = near.clone()
    near[..., 2] = 0.1
    pixels = (
        near[..., :2] / 0.1 * batch.intrinsics_crop_px[:, 0, 0] + batch.intrinsics_crop_px[:, None, :2, 2]
    )
    shifted = near + torch.tensor([0.01, 0.0, 0.0])
    root = shifted[:, 0]
    batch = dataclasses.replace(batch, joints_unit=pixels / 64 - 0.5)
    hand = change(truth(batch), root_cam_m=root, joints_root_m=shifted - root[:, None])
    wanted = float(batch.intrinsics_crop_px[0, 0, 0]) * 0.01 / 0.1 / 64 / 0.1 / 2
    assert float(only(joints_2d=1.0)(hand, batch).total) == pytest.approx(wanted, rel=1e-3)


def test_trace_writes_millimetres_of_a_hand_that_is_off_by_known_ones() -> None:
    """Users read these lines to tell a unit error from a model that does not move; zero has no unit."""
    batch = make_batch(1, 64, 64, noise=True)
    one = torch.zeros(1, 21, 3)
    label = dataclasses.replace(
        batch, joints_root_m=one, joints_cam_m=one + torch.tensor([0.03, -0.06, 0.6]),
    )  # fmt: skip
    far = torch.zeros(1, 21, 3)
    far[0, :, 2] = torch.tensor([0.0] * 20 + [0.05])
    right = truth(batch)
    hand = dataclasses.replace(right.hand, joints_root_m=far, root_cam_m=torch.tensor([[0.0, 0.0, 0.9]]))
    loss = HandLoss(LossConfig(), hand_model())
    with log_lines("debug") as lines:
        loss(dataclasses.replace(right, hand=hand), label, trace=True)
    # Axis by axis: 0, 0, 900 but for one joint at 950; 30, -60, 600; one element of 63 is 50.
    assert lines == [
        "[Debug 3D Loss]",
        "  Before centering - Pred mean: 300.794, std: 425.431",
        "  Before centering - GT mean: 190.000, std: 292.233",
        "  After centering - Pred mean: 0.794, std: 6.249",
        "  After centering - GT mean: 0.000, std: 0.000",
        "  Per-element loss mean: 0.794, max: 50.000",
        "  Loss value: 0.007143",
    ]
