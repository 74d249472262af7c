"""Loss terms against numbers worked out by hand, and against faults that keep a network from learning."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from src.config import LossConfig, ModelConfig
from src.geometry.rotation import rotation_about_z
from src.losses import loss as losses
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.debug import TERM_UNITS
from src.schema import HandBatch, HandEstimate, Prediction
from tests.log_lines import log_lines
from tests.models.scene import build, hand_model, make_batch

LOSS = HandLoss(LossConfig(), hand_model())
NOTHING = LossConfig(**{field.name: 0.0 for field in dataclasses.fields(LossConfig)})
TURN = rotation_about_z(torch.tensor(0.1))


def truth(batch: HandBatch) -> Prediction:
    """The prediction of a perfect network; its votes fall off as a Gaussian of 4 pixels around each joint."""
    out = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, torch.zeros_like(batch.root_cam_m))
    wrist = out.joints_m[:, :1]
    parameters = (batch.global_orient, batch.hand_pose, batch.betas, batch.root_cam_m)
    hand = HandEstimate(*parameters, out.joints_m - wrist, out.vertices_m - wrist)
    height, width = batch.rgb.shape[-2:]
    x, y = (4 * torch.arange(side // 4) + 1.5 for side in (width, height))
    away = [(cells - batch.joints_crop_px[..., i, None]) / 4 for i, cells in ((0, x), (1, y))]
    votes = -0.5 * (away[0][:, :, None, :].square() + away[1][:, :, :, None].square())
    return Prediction(hand, hand, batch.joints_root_m, batch.joints_unit, votes)


def change(prediction: Prediction, **fields: Tensor) -> Prediction:
    """Another refined hand."""
    return dataclasses.replace(prediction, hand=dataclasses.replace(prediction.hand, **fields))


def moved(joints: Tensor, by_m: float | Tensor = 0.05, joint: int = 9) -> Tensor:
    """(B, J, 3) with one joint of the first sample moved along x, or by (3,); 5 cm cost MOVED."""
    offset = torch.zeros_like(joints)
    offset[0, joint] = by_m if isinstance(by_m, Tensor) else torch.tensor([by_m, 0.0, 0.0])
    return joints + offset


MOVED = (0.5 - 0.05) / 63
"""Smooth L1 of 5 cm in units of 0.1 m, quadratic below 1 cm: one joint of 21, one axis of 3."""
BENT = 4 * (1 - math.cos(0.1)) / 9
"""A tenth of a radian: 2 (1 - cos) x 2 of 9 elements."""


def test_terms_by_hand() -> None:
    """A term in another unit than its weight is meant for drowns the others, or is not heard."""
    b = make_batch(1, 64, 96, noise=True)
    p, joints, mean = truth(b), b.joints_root_m, LOSS.mean_pose
    flat, half = torch.diag(torch.tensor([1.0, -1.0, -1.0])), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    aside = b.joints_unit + torch.tensor([0.1, 0.0])  # lessons 5 and 8: of the width, on 64 x 96 too
    for name, wrong, wanted in (
        ("joints_3d", change(p, joints_root_m=moved(joints)), MOVED),
        ("joints_3d", change(p, joints_root_m=moved(joints, 0.005)), 0.5 * 0.05**2 / 0.1 / 63),
        ("joints_canonical", change(p, joints_root_m=moved(joints, 0.05 * b.global_orient[0, :, 0])), MOVED),
        # Wrist errors are the greater part of the joints' error: here fingers are heard, whatever the wrist.
        (
            "joints_canonical",
            change(p, global_orient=flat @ b.global_orient, joints_root_m=joints @ flat.T),
            0.0,
        ),
        ("votes_3d", dataclasses.replace(p, vote_joints_root_m=moved(joints)), MOVED),
        ("votes_2d", dataclasses.replace(p, vote_joints_unit=aside), 0.5),
        ("root", change(p, root_cam_m=1.2 * b.root_cam_m), 2.0),
        ("betas", change(p, betas=b.betas + 2.0), 4.0),
        ("rotations", change(p, global_orient=b.global_orient @ half), 8 / 9),  # |R - R half|^2 = 8
        ("rotations", change(p, hand_pose=b.hand_pose @ TURN), BENT),
        ("prior", change(p, betas=torch.full((1, 10), 3.0), hand_pose=mean[None]), 9.0),
        ("prior", change(p, betas=torch.zeros(1, 10), hand_pose=(mean @ TURN)[None]), BENT),
    ):
        assert float(LOSS(wrong, b).values[name]) == pytest.approx(wanted, rel=2e-3, abs=1e-5), (name, wanted)


def test_truth_costs_nothing() -> None:
    """Lesson 5: dividing the projection twice by the crop's size made a loss that truth could not satisfy."""
    batch = make_batch(4, 96, 64, noise=True)
    values = LOSS(truth(batch), batch).values
    assert len(values) == 19
    for name, value in values.items():
        assert value < 1e-4 or name.endswith("prior"), name


def test_every_term_has_a_unit() -> None:
    """A number without a unit is how sums of millimetres met weights meant for metres."""
    unnamed = {name for name in LOSS.weights if name.removeprefix("coarse_") not in TERM_UNITS}
    assert not unnamed, f"say in src/runtime/debug.py (TERM_UNITS) what one unit of {unnamed} is"
    assert (losses.HAND_M, losses.CROP_SHARE, losses.DEPTH_SHARE) == (0.1, 0.1, 0.1)


def test_votes_are_judged_cell_by_cell_inside_the_crop() -> None:
    """Half a cell of bias in the map, or joints outside that pull at the border, and no finger is found."""
    batch = make_batch(2, 64, 96, noise=True)
    true = truth(batch)
    even = dataclasses.replace(true, vote_logits=torch.zeros_like(true.vote_logits))
    beside = dataclasses.replace(true, vote_logits=true.vote_logits.roll(1, dims=-1))
    outside = dataclasses.replace(batch, joints_unit=batch.joints_unit + 2.0)
    unknown = dataclasses.replace(batch, joints_conf=torch.zeros_like(batch.joints_conf))
    assert 0.3 < float(LOSS(even, batch).values["heatmap"]) < 1.0
    assert float(LOSS(beside, batch).values["heatmap"]) > 0.05
    assert [float(LOSS(even, labels).values["heatmap"]) for labels in (outside, unknown)] == [0.0, 0.0]


@pytest.mark.parametrize("z_m", [0.6, 0.1])
def test_joints_are_projected_where_they_are(z_m: float) -> None:
    """A centimetre at depth z is f / (100 z) pixels, 10 cm before the lens too."""
    batch = make_batch(1, 64, 96, noise=True)
    joints = torch.cat([batch.joints_root_m[..., :2], torch.full((1, 21, 1), z_m)], dim=-1)
    k = batch.intrinsics_crop_px
    pixels = joints[..., :2] / z_m * k[:, 0, 0] + k[:, None, :2, 2]
    batch = dataclasses.replace(batch, joints_unit=pixels / torch.tensor([96, 64]) - 0.5)
    root = joints[:, 0] + torch.tensor([0.01, 0.0, 0.0])
    shifted = change(truth(batch), root_cam_m=root, joints_root_m=joints - joints[:, :1])
    wanted = float(k[0, 0, 0]) * 0.01 / z_m / 96 / 0.1 / 2
    assert float(LOSS(shifted, batch).values["joints_2d"]) == pytest.approx(wanted, rel=1e-3)


def test_each_term_weighs_what_the_configuration_says() -> None:
    """Each weight is of its own term; the hand before refinement counts half, the votes as the joints."""
    config = dataclasses.replace(NOTHING, joints_3d=2.0, joints_canonical=3.0, heatmap=17.0)
    loss = HandLoss(config, hand_model())
    batch = make_batch(1, 64, 64, noise=True)
    right = truth(batch)
    wrong = Prediction(
        hand=dataclasses.replace(right.hand, joints_root_m=moved(batch.joints_root_m)),
        coarse=dataclasses.replace(right.hand, joints_root_m=moved(moved(batch.joints_root_m), joint=11)),
        vote_joints_root_m=moved(batch.joints_root_m, joint=4),
        vote_joints_unit=batch.joints_unit,
        vote_logits=torch.zeros_like(right.vote_logits),
    )
    terms = loss(wrong, batch)
    assert dict(terms.weights) == {
        "joints_3d": 2.0, "joints_canonical": 3.0, "betas": 0.02, "prior": 0.005, "root": 0.15,
        "coarse_joints_3d": 1.0, "coarse_joints_canonical": 1.5, "coarse_betas": 0.01, "coarse_prior": 0.0025,
        "coarse_root": 0.075,
        "votes_3d": 2.0, "heatmap": 17.0,
    }  # fmt: skip
    values = {name: float(value) for name, value in terms.values.items()}
    for name, wanted in (("joints_3d", MOVED), ("coarse_joints_3d", 2 * MOVED), ("votes_3d", MOVED)):
        assert values[name] == pytest.approx(wanted, rel=1e-3), name
    assert values["coarse_joints_canonical"] > 1.5 * values["joints_canonical"] > 0, "of the hand before"
    total = sum(terms.weights[name] * value for name, value in values.items())
    assert float(terms.total) == pytest.approx(total, rel=1e-5), "weights x values, each once"
    assert float(loss.per_sample(wrong, batch)[0]) == pytest.approx(total, rel=1e-5)


def test_a_joints_weight_is_a_weight() -> None:
    """joints_conf of a quarter counts a quarter: (1 x 0 + 0.25 x e) over (20 + 0.25)."""
    batch = make_batch(1, 64, 64, noise=True)
    batch.joints_conf[0, 9] = 0.25
    wrong = change(truth(batch), joints_root_m=moved(batch.joints_root_m))
    wanted = 0.25 * 21 * MOVED / 20.25
    assert float(LOSS(wrong, batch).values["joints_3d"]) == pytest.approx(wanted, rel=1e-3)


@pytest.fixture(scope="module")
def net() -> UTNet:
    return build(ModelConfig(preset="tiny", image_size=(64, 64))).eval()


def doubled(record: Any) -> Any:
    """Every row twice."""
    return type(record)(**{name: torch.cat([value, value]) for name, value in vars(record).items()})


@torch.no_grad()
def test_duplicating_the_batch_changes_nothing(net: UTNet) -> None:
    """Lesson 9: sums over millimetres made the loss grow with the batch, and every step was clipped."""
    batch = make_batch(3, 64, 64, noise=True)
    conf = torch.rand(3, 21)
    conf[0, 4:] = 0
    batch = dataclasses.replace(batch, joints_conf=conf, mano_valid=torch.tensor([True, False, True]))
    one, two = LOSS(net(batch), batch), LOSS(net(doubled(batch)), doubled(batch))
    for name, value in one.values.items():
        assert float(two.values[name]) == pytest.approx(float(value), rel=1e-4), name
    assert float(two.total) == pytest.approx(float(one.total), rel=1e-4)


@torch.no_grad()
def test_every_term_is_of_order_one_at_the_start(net: UTNet) -> None:
    """Lesson 9: the 3D term outweighed the 2D term a thousandfold, so nothing else was learned."""
    batch = make_batch(8, 64, 64, noise=True)
    for name, value in LOSS(net(batch), batch).values.items():
        # The prior starts at the mean hand, where it is 0 by definition; fingers with the wrist's rotation
        # undone start near it, at 0.10.
        assert name.endswith("prior") or 0.05 < float(value) < 10.0, name


@torch.no_grad()
def test_per_sample_adds_up_to_the_total(net: UTNet) -> None:
    """Validation adds losses of samples over ranks: their mean must be the loss of the whole."""
    batch = make_batch(4, 64, 64, noise=True)
    prediction = net(batch)
    each = LOSS.per_sample(prediction, batch)
    assert float(each.mean()) == pytest.approx(float(LOSS(prediction, batch).total), rel=1e-5)
    row = HandBatch(**{name: value[3:] for name, value in vars(batch).items()})
    assert float(each[3]) == pytest.approx(float(LOSS(net(row), row).total), rel=1e-4)


def test_terms_left_out_leave_no_parameter_out() -> None:
    """With weight 0 a term is left out, and distributed training must still find every gradient."""
    net = build(ModelConfig(preset="tiny", image_size=(64, 64)))
    batch = make_batch(2, 64, 64, noise=True)
    terms = HandLoss(NOTHING, hand_model())(net(batch), batch)
    assert {name.removeprefix("coarse_") for name in terms.values} == {"betas", "prior", "root"}
    terms.total.backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_samples_without_labels_count_for_nothing() -> None:
    """A frame without MANO parameters, its labels nan, must neither poison nor thin out the mean."""
    batch, holes = make_batch(3, noise=True), make_batch(3, noise=True)
    wrong = change(truth(batch), joints_root_m=batch.joints_root_m + 0.05, betas=batch.betas + 1.0)
    for label in (holes.betas, holes.hand_pose, holes.joints_root_m):
        label[1] = torch.nan
    holes.joints_conf[1], holes.joints_conf[0, 2:] = 0.0, 0.0
    holes = dataclasses.replace(holes, mano_valid=torch.tensor([True, False, True]))
    full, part = LOSS(wrong, batch).values, LOSS(wrong, holes)
    for name in ("joints_3d", "betas"):
        assert float(part.values[name]) == pytest.approx(float(full[name]), rel=1e-4), name
    assert torch.isfinite(part.total)
    none = torch.zeros(3, 21), torch.zeros(3, dtype=torch.bool)
    terms = LOSS(wrong, dataclasses.replace(holes, joints_conf=none[0], mano_valid=none[1]))
    assert {name for name, value in terms.values.items() if value > 0} == {"prior", "coarse_prior"}


@pytest.mark.parametrize("labelled", [True, False])
def test_a_nan_prediction_is_a_nan_loss(labelled: bool) -> None:
    """Lesson 10: the step that stops all ranks can only see a nan that is still there, labelled or not."""
    batch = make_batch(2, noise=True)
    joints = batch.joints_root_m.clone()
    joints[1, 3, 2] = torch.nan
    prediction = change(truth(batch), joints_root_m=joints)
    batch = dataclasses.replace(
        batch, joints_conf=batch.joints_conf * labelled, mano_valid=batch.mano_valid & labelled
    )
    assert torch.isnan(LOSS(prediction, batch).total)
    assert torch.isnan(LOSS.per_sample(prediction, batch)).tolist() == [False, True]


def test_loss_is_float32_under_autocast() -> None:
    """Products in bf16 put projected joints off by pixels."""
    batch = make_batch(2, noise=True)
    plain = LOSS(truth(batch), batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSS(truth(batch), batch).total, plain)


def test_gradient_is_finite_where_errors_are_zero_and_behind_the_camera() -> None:
    """One joint behind the camera, or one perfect joint, must not end a run of days."""
    batch = make_batch(2, noise=True)
    root, joints = batch.root_cam_m.clone(), batch.joints_root_m.clone().requires_grad_()
    root[1, 2] = 0.01
    root.requires_grad_()
    terms = LOSS(change(truth(batch), root_cam_m=root, joints_root_m=joints), batch)
    terms.total.backward()
    assert all(torch.isfinite(value).all() for value in (terms.total, root.grad, joints.grad))


def test_trace_writes_millimetres_of_a_hand_that_is_off_by_known_ones() -> None:
    """Users read these lines to tell a unit error from a model that does not move; zero has no unit."""
    zero = torch.zeros(1, 21, 3)
    label = dataclasses.replace(
        make_batch(1, 64, 64, noise=True),
        joints_root_m=zero,
        joints_cam_m=zero + torch.tensor([0.03, -0.06, 0.6]),
    )
    far = moved(zero, torch.tensor([0.0, 0.0, 0.05]), joint=20)
    hand = change(truth(label), joints_root_m=far, root_cam_m=torch.tensor([[0.0, 0.0, 0.9]]))
    with log_lines("debug") as lines:
        LOSS(hand, label, trace=True)
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
