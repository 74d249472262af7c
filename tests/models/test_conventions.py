"""What the network is told and what its parts say, in which unit and frame: by hand, on crops not square."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from src.config import ModelConfig
from src.geometry.rotation import rotation_from_aa, sixd_from_rotation
from src.hand.joints import MANO16, OPENPOSE21
from src.models.tokens import sincos_positions
from src.models.utnet import UTNet
from src.models.vertex_sampling import Sampled, sample_points
from src.schema import HandBatch
from tests.models.scene import build, make_batch

NET = ModelConfig(preset="tiny", image_size=(64, 96))


def network(config: ModelConfig = NET, *, patches: bool = False) -> UTNet:
    return build(config, patches=patches).eval()


def wide_batch(size: int = 2) -> HandBatch:
    """Hands on crops of 64 x 96."""
    return make_batch(size, 64, 96, seed=3, noise=True)


def test_the_camera_is_told_in_fractions_of_the_crop() -> None:
    """Focal lengths over width and height, centre from the middle, logarithm of the reference depth: the
    query that lets one network serve two cameras.
    """
    net, told = network(), []
    net.embed.intrinsics.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    k = torch.tensor([[120.0, 0, 60.0], [0, 96.0, 16.0], [0, 0, 1]]).expand(2, 3, 3)
    net(dataclasses.replace(wide_batch(), intrinsics_crop_px=k, z_ref_m=torch.tensor([0.5, 1.0])))
    shared = [1.25, 1.5, 0.125, -0.25]
    torch.testing.assert_close(told[0], torch.tensor([[*shared, math.log(0.5)], [*shared, 0.0]]))


def test_positions_are_rows_then_columns() -> None:
    """A half of the channels tells the row, the other the column."""
    table = sincos_positions((3, 5), 16)
    assert torch.equal(table[:, :1, :8].expand(3, 5, 8), table[..., :8]), "one row, one code"
    assert torch.equal(table[:1, :, 8:].expand(3, 5, 8), table[..., 8:]), "one column, one code"


def test_a_point_beside_the_crop_is_told_as_outside() -> None:
    """Beyond one border is outside, whatever the other axis says."""
    batch = wide_batch(1)
    k = torch.tensor([[100.0, 0, 48.0], [0, 100.0, 32.0], [0, 0, 1]])[None]
    batch = dataclasses.replace(batch, intrinsics_crop_px=k)
    points = torch.tensor([[[0.0, 0.0, 1.0], [0.45, 0.3, 1.0], [0.5, 0.0, 1.0], [0.0, -0.35, 1.0]]])
    place = sample_points((torch.zeros(1, 1, 4, 6),), points, batch).place[0]
    assert place[:, 2].tolist() == [1, 1, 0, 0]
    # Half a pixel: pixel centres have whole numbers, the crop begins at -0.5.
    assert place[1, :2].tolist() == pytest.approx([93.5 / 96 - 0.5, 62.5 / 64 - 0.5], abs=1e-5)


def refine(net: UTNet, batch: HandBatch, shift: torch.Tensor | None = None) -> tuple[object, object]:
    """(state before, state after) one refinement whose points see noise, `shift` added to the features."""
    assert net.refiner is not None
    taken: list[tuple[object, ...]] = []

    def look(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        taken.append((inputs[0], output))

    def noisy(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        state, estimate, sampled, summary = inputs
        assert isinstance(sampled, Sampled)
        rng = torch.Generator().manual_seed(7)
        features = [torch.randn(f.shape, generator=rng) for f in sampled.features]
        if shift is not None:
            features[0] = features[0] + shift
        return state, estimate, dataclasses.replace(sampled, features=tuple(features)), summary

    handles = [net.refiner.register_forward_pre_hook(noisy), net.refiner.register_forward_hook(look)]
    with torch.no_grad():
        net(batch)
    for handle in handles:
        handle.remove()
    return taken[0][0], taken[0][1]


def test_a_residual_turns_in_the_joints_own_frame() -> None:
    """Refined = coarse x residual: the wrist's residual turns about the hand's own axes, a finger's about its
    own bone's. On the other side the same numbers turn another way.
    """
    net, turn = network(), rotation_from_aa(torch.tensor([0.3, -0.2, 0.5]))
    assert net.refiner is not None
    with torch.no_grad():
        net.coarse.pose_summary.bias.normal_(0.0, 0.5)
        for j in range(16):
            net.refiner.whole_out.bias[6 * j : 6 * j + 6] = sixd_from_rotation(turn) - net.refiner.identity
    before, after = refine(net, wide_batch())
    for field in ("global_orient", "hand_pose"):
        old, new = getattr(before, field), getattr(after, field)
        assert float((old - torch.eye(3)).abs().max()) > 0.1, "the test wants rotations that are not 1"
        torch.testing.assert_close(new, old @ turn, atol=1e-5, rtol=0)


@pytest.mark.parametrize("joint", ["wrist", "index_2", "ring_3", "thumb_1", "pinky_1"])
def test_what_a_joint_sees_turns_that_joint(joint: str) -> None:
    """Features under the 21 joints come in our order, rotations go out in MANO's: one taken for another bends
    a neighbour.
    """
    net = network()
    assert net.refiner is not None
    nn.init.normal_(net.refiner.joint_rotation.weight)
    batch = wide_batch(1)
    width = net.refiner.enter.out_features
    shift = torch.zeros(1, net.refiner.num_vertices + 21, width)
    shift[0, net.refiner.num_vertices + OPENPOSE21.index(joint)] = 3.0
    (_, plain), (_, seen) = refine(net, batch), refine(net, batch, shift)
    turned = {"wrist": (plain.global_orient - seen.global_orient).abs().max()}  # type: ignore[attr-defined]
    turned |= {
        name: (plain.hand_pose - seen.hand_pose)[:, k].abs().max()  # type: ignore[attr-defined]
        for k, name in enumerate(MANO16[1:])
    }
    assert [name for name, change in turned.items() if float(change) > 1e-6] == [joint]


def test_every_norm_of_the_backbone_has_the_eps_of_pretrained_vits() -> None:
    """timm's and torchvision's ViTs have 1e-6, torch's default is ten times that (lesson 13)."""
    net = network(patches=True)
    found = {n: m.eps for n, m in net.vit.named_modules() if isinstance(m, nn.LayerNorm)}
    assert len(found) == 2 * 3 + 1
    assert set(found.values()) == {1e-6}, found
