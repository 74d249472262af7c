"""Batches for tests: rendered stand-in hands with labels that agree with their pictures to the last digit."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from src.config import ModelConfig
from src.geometry.camera import project
from src.geometry.rotation import rotation_from_aa
from src.hand.mano import ManoLayer
from src.models.utnet import UTNet
from src.models.vit import PRESETS
from src.render.rasterizer import rasterize
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, HandBatch
from tests.hand_file import hand_file


@functools.cache
def hand_model() -> ManoLayer:
    """The stand-in hand."""
    return ManoLayer.from_file(hand_file())


def patch_stem(*, recompute: bool = False) -> Any:
    """While it lasts, preset tiny reads the picture as larger ones do; with `recompute` it trains as huge."""
    return mock.patch.dict(
        PRESETS, tiny=dataclasses.replace(PRESETS["tiny"], stem_channels=None, recompute=recompute)
    )


def build(config: ModelConfig, seed: int = 0, *, patches: bool = False) -> UTNet:
    """A network with the stand-in hand and the initial weights of `seed`."""
    torch.manual_seed(seed)
    if not patches:
        return UTNet(config, hand_model())
    with patch_stem():
        return UTNet(config, hand_model())


def make_batch(
    size: int, height: int = 128, width: int = 128, *, seed: int = 0, noise: bool = False
) -> HandBatch:
    """`size` hands in random poses, depth shown, in the crop camera.

    Args:
        size: B.
        height: H pixels.
        width: W pixels.
        seed: of everything random here.
        noise: fill picture and depth with noise instead of drawing the hand (quick).
    """
    rng = torch.Generator().manual_seed(seed)
    mano = hand_model()
    orient = rotation_from_aa(torch.randn(size, 3, generator=rng) * 1.5)
    bend = mano.hands_mean.reshape(15, 3) + 0.25 * torch.randn(size, 15, 3, generator=rng)
    pose, betas = rotation_from_aa(bend), 0.7 * torch.randn(size, 10, generator=rng)
    out = mano(orient, pose, betas, torch.zeros(size, 3))
    joints_root = out.joints_m - out.joints_m[:, :1]
    around = torch.tensor([0.015, 0.015, 0.03]) * torch.randn(size, 3, generator=rng)
    away = around + torch.tensor([0.0, 0.0, 0.6])
    root = away - joints_root.mean(dim=1)
    joints = joints_root + root[:, None]
    focal = 0.6 / 0.3 * min(height, width)
    k = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    k = k.repeat(size, 1, 1)
    pixels = project(joints, k)
    z_ref = joints.mean(dim=1)[:, 2] + 0.02 * torch.randn(size, generator=rng)
    if noise:
        rgb = torch.randn(size, 3, height, width, generator=rng)
        z = 0.6 + 0.1 * torch.randn(size, height, width, generator=rng)
    else:
        rgb, z = _paint(out.vertices_m - out.joints_m[:, :1] + root[:, None], mano.faces, k, height, width)
    valid = (z > 0).float()
    depth = ((z - z_ref[:, None, None]) / DEPTH_RANGE_M).clamp(-DEPTH_CLIP, DEPTH_CLIP) * valid
    eye = torch.eye(3).expand(size, 3, 3)
    yes = torch.ones(size, dtype=torch.bool)
    return HandBatch(
        sample_index=torch.arange(size),
        rgb=rgb,
        depth=depth[:, None],
        depth_valid=valid[:, None],
        depth_present=yes,
        z_ref_m=z_ref,
        intrinsics_img_px=k,
        intrinsics_crop_px=k,
        crop_from_img=eye,
        rot_crop_from_img=eye,
        joints_cam_m=joints,
        joints_root_m=joints_root,
        joints_crop_px=pixels,
        joints_unit=pixels / torch.tensor([width, height]) - 0.5,
        joints_conf=torch.ones(size, 21),
        root_cam_m=root,
        translation_m=root - out.joints_m[:, 0],
        global_orient=orient,
        hand_pose=pose,
        betas=betas,
        mano_valid=yes,
    )


def _paint(vertices_m: Tensor, faces: Tensor, k: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) picture shaded by the surface's direction, and (B, H, W) depth, 0 off the hand."""
    rgb, depth = [], []
    for points, camera in zip(vertices_m.double().numpy(), k.double().numpy(), strict=True):
        seen = rasterize(points, faces.numpy(), camera, width, height)
        corners = points[faces.numpy()[seen.triangle]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        picture, z = np.full((height * width, 3), -1.0), np.zeros(height * width)
        picture[seen.pixel] = 0.4 + normal @ np.array([[0.3, 0.3, 0.2], [0.5, 0.4, 0.3], [-0.8, -0.7, -0.6]])
        z[seen.pixel] = seen.depth_m
        rgb.append(torch.tensor(picture.reshape(height, width, 3).transpose(2, 0, 1)).float())
        depth.append(torch.tensor(z.reshape(height, width)).float())
    return torch.stack(rgb), torch.stack(depth)


def with_presence(batch: HandBatch, shown: list[bool]) -> HandBatch:
    """The batch with depth hidden where a sample is not `shown`."""
    present = torch.tensor(shown)
    mask = present[:, None, None, None].float()
    return dataclasses.replace(
        batch, depth=batch.depth * mask, depth_valid=batch.depth_valid * mask, depth_present=present
    )
