"""Loss terms against numbers worked out by hand, and against faults that keep a network from learning."""

import dataclasses

import pytest
import torch

from src.config import LossConfig, ModelConfig
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.schema import HandBatch, HandEstimate, Prediction
from tests.models.scene import hand_model, make_batch

ONLY = LossConfig(**{field.name: 0.0 for field in dataclasses.fields(LossConfig)})


def only(**weights: float) -> HandLoss:
    return HandLoss(dataclasses.replace(ONLY, **weights), hand_model())


def truth(batch: HandBatch) -> Prediction:
    """The prediction of a perfect network."""
    out = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, torch.zeros_like(batch.root_cam_m))
    wrist = out.joints_m[:, :1]
    hand = HandEstimate(
        batch.global_orient,
        batch.hand_pose,
        batch.betas,
        batch.root_cam_m,
        out.joints_m - wrist,
        out.vertices_m - wrist,
    )
    return Prediction(hand, hand, batch.joints_root_m, batch.joints_unit, true_votes(batch))


def true_votes(batch: HandBatch) -> torch.Tensor:
    """(B, J, H / 4, W / 4) votes that fall off as a Gaussian of 4 pixels around each joint's pixel."""
    height, width = batch.rgb.shape[-2:]
    x, y = (4 * torch.arange(side // 4) + 1.5 for side in (width, height))
    away = [(cells - batch.joints_crop_px[..., i, None]) / 4 for i, cells in ((0, x), (1, y))]
    return -0.5 * (away[0][:, :, None, :].square() + away[1][:, :, :, None].square())


def change(prediction: Prediction, **fields: torch.Tensor) -> Prediction:
    return dataclasses.replace(prediction, hand=dataclasses.replace(prediction.hand, **fields))


def doubled(record):
    """Every row twice."""
    if isinstance(record, torch.Tensor):
        return torch.cat([record, record])
    return type(record)(**{f.name: doubled(getattr(record, f.name)) for f in dataclasses.fields(record)})


def test_truth_costs_nothing():
    """Lesson 5: dividing the projection twice by the crop's size made a loss that truth could not satisfy."""
    batch = make_batch(4, 96, 64, noise=True)
    values = HandLoss(dataclasses.replace(LossConfig(), prior=0.0), hand_model())(truth(batch), batch).values
    assert set(values) == {
        p + n
        for p in ("", "coarse_")
        for n in (
            "joints_3d",
            "joints_canonical",
            "vertices",
            "joints_2d",
            "rotations",
            "betas",
            "root",
        )
    } | {"votes_3d", "votes_2d", "heatmap"}
    for name, value in values.items():
        assert value < 1e-4, name


def test_votes_are_judged_cell_by_cell_inside_the_crop():
    """Half a cell of bias in the map, or joints outside that pull at the border, and no finger is found."""
    batch = make_batch(2, 64, 96, noise=True)
    loss = only(heatmap=1.0)
    true = truth(batch)
    even = dataclasses.replace(true, vote_logits=torch.zeros_like(true.vote_logits))
    assert 0.3 < float(loss(even, batch).values["heatmap"]) < 1.0
    moved = dataclasses.replace(true, vote_logits=true.vote_logits.roll(1, dims=-1))
    assert float(loss(moved, batch).values["heatmap"]) > 0.05
    outside = dataclasses.replace(batch, joints_unit=batch.joints_unit + 2.0)
    assert float(loss(even, outside).values["heatmap"]) == 0.0
    unknown = dataclasses.replace(batch, joints_conf=torch.zeros_like(batch.joints_conf))
    assert float(loss(even, unknown).values["heatmap"]) == 0.0


def test_2d_term_counts_pixels_of_a_crop_that_is_not_square():
    """Lessons 5 and 8: a tenth of the crop in x costs 1 on x, on 64 x 96 as on any other crop."""
    batch = make_batch(2, 64, 96, noise=True)
    votes = batch.joints_unit + torch.tensor([0.1, 0.0])
    values = only(votes_2d=1.0)(dataclasses.replace(truth(batch), vote_joints_unit=votes), batch).values
    assert float(values["votes_2d"]) == pytest.approx(0.5, abs=1e-4)
    # A shift of the root by dx metres at depth z moves a joint at depth z_j by f dx / z_j pixels.
    shifted = change(truth(batch), root_cam_m=batch.root_cam_m + torch.tensor([0.01, 0.0, 0.0]))
    focal = batch.intrinsics_crop_px[:, :1, 0]
    wanted = (0.01 * focal / batch.joints_cam_m[..., 2] / 96 / 0.1 / 2).mean()
    assert float(only(joints_2d=1.0)(shifted, batch).values["joints_2d"]) == pytest.approx(
        float(wanted), rel=1e-3
    )


def test_3d_term_by_hand():
    """Smooth L1 in units of 0.1 m, quadratic below 1 cm: one joint of 21, one axis of 3."""
    batch = make_batch(2, noise=True)
    for error, wanted in ((0.05, 0.5 - 0.05), (0.005, 0.5 * 0.05**2 / 0.1)):
        joints = batch.joints_root_m.clone()
        joints[0, 5, 1] += error
        value = only(joints_3d=1.0)(change(truth(batch), joints_root_m=joints), batch).values["joints_3d"]
        assert float(value) == pytest.approx(wanted / 63 / 2, rel=1e-3)


def test_canonical_joints_judge_fingers_whatever_the_wrist():
    """Wrist errors are the greater part of the joints' error: in the same term the fingers are not heard."""
    batch = make_batch(2, noise=True)
    loss, name = only(joints_canonical=1.0), "joints_canonical"
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = change(
        truth(batch),
        global_orient=turn @ batch.global_orient,
        joints_root_m=batch.joints_root_m @ turn.T,
    )
    assert float(loss(turned, batch).values[name]) < 1e-5
    # 5 cm along the middle finger's own axis, in the hand's frame: one joint of 21, one axis of 3.
    moved = batch.joints_root_m.clone()
    moved[0, 12] += 0.05 * batch.global_orient[0, :, 0]
    value = loss(change(truth(batch), joints_root_m=moved), batch).values[name]
    assert float(value) == pytest.approx((0.5 - 0.05) / 63 / 2, rel=1e-2)
    unknown = dataclasses.replace(batch, mano_valid=torch.tensor([False, False]))
    assert float(loss(turned, unknown).values[name]) == 0.0


def test_root_betas_rotations_and_prior_by_hand():
    """Units: depth relative to the wrist's, shape in standard deviations, elements of matrices."""
    batch = make_batch(1, noise=True)
    root = batch.root_cam_m * torch.tensor([1.0, 1.0, 1.2])
    assert float(only(root=1.0)(change(truth(batch), root_cam_m=root), batch).total) == pytest.approx(
        2.0, rel=1e-4
    )
    betas = batch.betas + 2.0
    assert float(only(betas=1.0)(change(truth(batch), betas=betas), batch).total) == pytest.approx(
        4.0, rel=1e-4
    )
    # Half a turn about z changes two diagonal elements of nine by up to 2: |R - R diag(-1, -1, 1)|^2 = 8.
    orient = batch.global_orient @ torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    value = only(rotations=1.0)(change(truth(batch), global_orient=orient), batch).total
    assert float(value) == pytest.approx(8 / 9, rel=1e-4)
    loss = only(prior=1.0)
    mean = change(truth(batch), betas=torch.full((1, 10), 3.0), hand_pose=loss.mean_pose[None])
    assert float(loss(mean, batch).total) == pytest.approx(9.0, rel=1e-5)


def test_duplicating_the_batch_changes_nothing():
    """Lesson 9: sums over millimetres made the loss grow with the batch, and every step was clipped."""
    torch.manual_seed(0)
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model()).eval()
    batch = make_batch(3, 64, 64, noise=True)
    conf = torch.rand(3, 21)
    conf[0, 4:] = 0
    batch = dataclasses.replace(batch, joints_conf=conf, mano_valid=torch.tensor([True, False, True]))
    loss = HandLoss(LossConfig(), hand_model())
    one, two = loss(net(batch), batch), loss(net(doubled(batch)), doubled(batch))
    for name, value in one.values.items():
        assert float(two.values[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name
    assert float(two.total.detach()) == pytest.approx(float(one.total.detach()), rel=1e-4)


def test_every_term_is_of_order_one_at_the_start():
    """Lesson 9: the 3D term outweighed the 2D term a thousandfold, so nothing else was learned."""
    torch.manual_seed(0)
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model())
    batch = make_batch(8, 64, 64, noise=True)
    terms = HandLoss(LossConfig(), hand_model())(net(batch), batch)
    for name, value in terms.values.items():
        # The prior starts at the mean hand, where it is 0 by definition; fingers with the wrist's rotation
        # undone start near it, at 0.10.
        if not name.endswith("prior"):
            assert 0.05 < float(value.detach()) < 10.0, name
    assert float(terms.total.detach()) == pytest.approx(
        sum(terms.weights[n] * float(v.detach()) for n, v in terms.values.items()), rel=1e-5
    )


def test_samples_without_labels_count_for_nothing():
    """A frame without MANO parameters, its labels nan, must neither poison nor thin out the mean."""
    batch = make_batch(3, noise=True)
    joints = batch.joints_root_m + 0.05
    wrong = change(truth(batch), joints_root_m=joints, betas=batch.betas + 1.0)
    betas, pose, conf = batch.betas.clone(), batch.hand_pose.clone(), batch.joints_conf.clone()
    betas[1], pose[1] = torch.nan, torch.nan
    conf[1], conf[0, 2:] = 0.0, 0.0
    label = batch.joints_root_m.clone()
    label[1] = torch.nan
    holes = dataclasses.replace(
        batch,
        betas=betas,
        hand_pose=pose,
        joints_conf=conf,
        joints_root_m=label,
        mano_valid=torch.tensor([True, False, True]),
    )
    loss = only(joints_3d=1.0, betas=1.0, vertices=1.0, rotations=1.0)
    full, part = loss(wrong, batch).values, loss(wrong, holes).values
    for name in ("joints_3d", "betas"):
        assert float(part[name]) == pytest.approx(float(full[name]), rel=1e-4), name
    assert torch.isfinite(loss(wrong, holes).total)
    none = dataclasses.replace(
        holes, joints_conf=torch.zeros_like(conf), mano_valid=torch.zeros(3, dtype=torch.bool)
    )
    assert float(loss(wrong, none).total) == 0.0


@pytest.mark.parametrize("labelled", [True, False])
def test_a_nan_prediction_is_a_nan_loss(labelled):
    """Lesson 10: the step that stops all ranks can only see a nan that is still there, labelled or not."""
    batch = make_batch(2, noise=True)
    if not labelled:
        batch = dataclasses.replace(
            batch, joints_conf=torch.zeros(2, 21), mano_valid=torch.zeros(2, dtype=torch.bool)
        )
    joints = batch.joints_root_m.clone()
    joints[1, 3, 2] = torch.nan
    prediction = change(truth(batch), joints_root_m=joints)
    loss = HandLoss(LossConfig(), hand_model())
    assert torch.isnan(loss(prediction, batch).total)
    assert torch.isnan(loss.per_sample(prediction, batch)).tolist() == [False, True]


def test_per_sample_adds_up_to_the_total():
    """Validation adds losses of samples over ranks: their mean must be the loss of the whole."""
    torch.manual_seed(0)
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model()).eval()
    batch = make_batch(4, 64, 64, noise=True)
    loss = HandLoss(LossConfig(), hand_model())
    prediction = net(batch)
    assert float(loss.per_sample(prediction, batch).mean()) == pytest.approx(
        float(loss(prediction, batch).total), rel=1e-5
    )
    for i in (0, 3):
        row = HandBatch(**{f.name: getattr(batch, f.name)[i : i + 1] for f in dataclasses.fields(batch)})
        alone = float(loss(net(row), row).total)
        assert float(loss.per_sample(prediction, batch)[i]) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    "name", ["votes_3d", "votes_2d", "heatmap", "coarse", "betas", "root", "joints_2d", "joints_canonical"]
)
def test_a_term_left_out_leaves_no_parameter_out(name):
    """With weight 0 a term is not computed, and distributed training must still find every gradient."""
    torch.manual_seed(0)
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model())
    batch = make_batch(2, 64, 64, noise=True)
    terms = HandLoss(dataclasses.replace(LossConfig(), **{name: 0.0}), hand_model())(net(batch), batch)
    assert not [key for key in terms.values if key.startswith(name)]
    terms.total.backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_loss_is_float32_under_autocast():
    """Products in bf16 put projected joints off by pixels."""
    batch = make_batch(2, noise=True)
    prediction = truth(batch)
    loss = HandLoss(LossConfig(), hand_model())
    plain = loss(prediction, batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(prediction, batch).total, plain)


def test_gradient_is_finite_where_errors_are_zero_and_behind_the_camera():
    """One joint behind the camera, or one perfect joint, must not end a run of days."""
    batch = make_batch(2, noise=True)
    perfect = truth(batch)
    root = batch.root_cam_m.clone()
    root[1, 2] = 0.01
    root.requires_grad_()
    joints = perfect.hand.joints_root_m.clone().requires_grad_()
    terms = HandLoss(LossConfig(), hand_model())(
        change(perfect, root_cam_m=root, joints_root_m=joints), batch
    )
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert torch.isfinite(root.grad).all()
    assert torch.isfinite(joints.grad).all()
