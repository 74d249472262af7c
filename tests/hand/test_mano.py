"""The hand layer: right numbers, right joints, useful gradients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from torch import Tensor

from src.errors import ShapeError
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import FINGERS, HO3D21, MANO16, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset


def _random(batch: int, dtype: torch.dtype = torch.float32, angle: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    axis_angle = angle * torch.randn(batch, 16, 3, generator=generator, dtype=dtype)
    rotations = rotation_from_aa(axis_angle)
    betas = torch.randn(batch, 10, generator=generator, dtype=dtype)
    translation = torch.randn(batch, 3, generator=generator, dtype=dtype)
    return rotations[:, 0], rotations[:, 1:], betas, translation


def test_agrees_with_smplx(layer: ManoLayer, standin_path: Path) -> None:
    """Another library's users get the same hand: 100 random poses, shapes, places, within 1e-3 mm."""
    reference = smplx.MANOLayer(
        str(standin_path), use_pca=False, flat_hand_mean=True, is_rhand=True, num_betas=10
    )
    orient, pose, betas, translation = _random(100)
    ours = layer(orient, pose, betas, translation)
    theirs = reference(global_orient=orient[:, None], hand_pose=pose, betas=betas, transl=translation)
    assert (ours.vertices_m - theirs.vertices).abs().max() * 1e3 < 1e-3
    mano16 = ours.joints_m[:, permutation(OPENPOSE21, MANO16)]
    assert (mano16 - theirs.joints[:, :16]).abs().max() * 1e3 < 1e-3


def test_joints_are_the_ones_named(layer: ManoLayer, asset: HandAsset) -> None:
    """Lesson 3: perfect parameters score 0, because each joint of the output is the joint of its name."""
    identity = torch.eye(3).expand(1, 16, 3, 3)
    out = layer(identity[:, 0], identity[:, 1:], torch.zeros(1, 10), torch.zeros(1, 3))
    joints = dict(zip(OPENPOSE21, out.joints_m[0].numpy(), strict=True))
    wanted = dict(zip(MANO16, asset.joint_regressor @ asset.v_template, strict=True))
    # HO3D's five, written out: those of other MANO code are up to 6 mm away.
    for finger, vertex in {"thumb": 744, "index": 333, "middle": 444, "ring": 555, "pinky": 672}.items():
        wanted[f"{finger}_4"] = asset.v_template[vertex]
    for name in OPENPOSE21:
        assert np.abs(joints[name] - wanted[name]).max() < 1e-6, name
    # Each chain runs outwards, and the rest hand's fingers stand in order across the palm.
    for finger in FINGERS:
        reach = [np.linalg.norm(joints[f"{finger}_{k}"] - joints["wrist"]) for k in range(1, 5)]
        assert reach == sorted(reach), finger
    across = [joints[f"{finger}_1"][2] for finger in ("index", "middle", "ring", "pinky")]
    assert across == sorted(across, reverse=True)


@pytest.mark.parametrize("precise", range(4))
def test_one_precise_input_makes_a_precise_hand(layer: ManoLayer, precise: int) -> None:
    """Labels are decoded with rotations in float64 and the rest in float32: none of it is rounded. They are
    judged by the joints alone, which are the mesh's to 0.001 mm, tips included.
    """
    inputs = [t.float() for t in _random(50, torch.float64, angle=2.0)]
    exact = [t.double() for t in inputs]
    inputs[precise] = exact[precise]
    mixed, alone = layer(*inputs), layer.joints_m(*inputs)
    assert mixed.vertices_m.dtype == alone.dtype == torch.float64
    assert torch.equal(mixed.vertices_m, layer(*exact).vertices_m)
    assert (alone - mixed.joints_m).abs().max() < 1e-6


def test_wrist_is_translation_plus_rest_root(layer: ManoLayer) -> None:
    """Taking the translation for the wrist is 96 mm off: the wrist is translation + J0(betas)."""
    orient, pose, betas, translation = _random(5)
    out = layer(orient, pose, betas, translation)
    torch.testing.assert_close(out.joints_m[:, 0], translation + layer.rest_root_m(betas), atol=1e-6, rtol=0)
    assert (out.joints_m[:, 0] - translation).norm(dim=-1).min() > 0.05
    assert (layer.rest_root_m(betas) - layer.rest_root_m(0 * betas)).norm(dim=-1).max() < 0.02


@pytest.mark.parametrize("order", [MANO16, HO3D21, OPENPOSE21])
def test_permutations_go_by_names(order: tuple[str, ...]) -> None:
    """A prediction exported and read back is the same prediction."""
    assert [OPENPOSE21[i] for i in permutation(OPENPOSE21, order)] == list(order)


@pytest.mark.parametrize("angle", [0.0, 1e-4, math.pi - 1e-4, math.pi])
def test_gradients_at_zero_and_near_pi(layer: ManoLayer, angle: float) -> None:
    """Lesson 15: training can leave the rest pose and half turns; gradients are right there."""
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    matrices = rotation_from_aa(angle * axis).expand(1, 16, 3, 3).clone().requires_grad_()
    betas = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    translation = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    pick = torch.tensor([0, 100, 333, 500, 744])

    def points(m: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(m[:, 0], m[:, 1:], b, t)
        return out.vertices_m[:, pick], out.joints_m

    assert torch.autograd.gradcheck(points, (matrices, betas, translation), eps=1e-6, atol=1e-7)


def test_float32_under_autocast(layer: ManoLayer) -> None:
    """bf16 skinning would be off by millimetres: autocast does not reach the layer."""
    inputs = _random(3)
    plain, alone, root = layer(*inputs), layer.joints_m(*inputs), layer.rest_root_m(inputs[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(*inputs).vertices_m, plain.vertices_m)
        assert torch.equal(layer.joints_m(*inputs), alone)
        assert torch.equal(layer.rest_root_m(inputs[2]), root)


def test_checkpoints_hold_no_hand_data(layer: ManoLayer) -> None:
    """MANO's licence: sharing a checkpoint must not share MANO."""
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == []
    assert len(layer.fingerprint) == 16


def test_wrong_shapes_are_named_and_no_hands_are_fine(layer: ManoLayer) -> None:
    """A user who passes axis-angle is told which argument is wrong; a rank may have no validation samples."""
    orient, pose, betas, translation = _random(2)
    with pytest.raises(ShapeError, match=r"hand_pose: got \(2, 45\), want \(2, 15, 3, 3\)"):
        layer(orient, torch.zeros(2, 45), betas, translation)
    with pytest.raises(ShapeError, match="translation_m"):
        layer.joints_m(orient, pose, betas, translation[:1])
    with pytest.raises(ShapeError, match="betas"):
        layer.rest_root_m(torch.zeros(10))
    out = layer(orient[:0], pose[:0], betas[:0], translation[:0])
    assert (out.vertices_m.shape, out.joints_m.shape) == ((0, 778, 3), (0, 21, 3))
