"""Rendered hands: labels lie on the surface that the sensor measured, whatever was done to the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from src.hand.mano import ManoLayer
from src.render.rasterizer import rasterize
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M
from tests.dataloader.posed import geometry_alone, write_rendered_hands
from tests.dataloader.tree import run_config


@pytest.fixture(scope="module")
def dataset(standin: ManoLayer, tmp_path_factory: pytest.TempPathFactory) -> HO3DDataset:
    """8 rendered hands before a wall, exact depth."""
    root = tmp_path_factory.mktemp("rendered")
    write_rendered_hands(root, standin, 9)
    config = run_config(root, image_size=(256, 192), split={"val_percent": 12})
    return geometry_alone(build_dataset(config, "train", standin, show_progress=False))


def test_depth_under_a_visible_vertex_is_its_z(standin: ManoLayer, dataset: HO3DDataset) -> None:
    """MANO(augmented parameters) stands on the measured surface (lessons 1, 4, 18).

    The decoded hand is drawn with the crop camera and compared with the measured depth. A pixel
    of the picture is about a millimetre on the hand and surfaces slant; silhouettes may differ by a pixel.
    """
    batch = prepare(dataset.batch([SampleKey(i, e) for i in range(len(dataset)) for e in range(4)]))
    with torch.no_grad():
        posed = standin(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    errors = []
    for b in range(batch.size):
        vertices, sample = posed.vertices_m[b].double().numpy(), batch.row(b)
        seen = rasterize(
            vertices, standin.faces.numpy(), sample.intrinsics_crop_px.double().numpy(), 192, 256
        )
        drawn = np.full((256, 192), np.nan)
        drawn.reshape(-1)[seen.pixel] = seen.depth_m
        measured = (sample.depth[0] * DEPTH_RANGE_M + sample.z_ref_m).double().numpy()
        inside = sample.depth[0].abs().numpy() < DEPTH_CLIP
        both = np.isfinite(drawn) & inside
        assert both.sum() > 400
        errors.append(np.abs(measured - drawn)[both])
        # The rendered silhouette in the crop is the painted one: skin is brighter than the wall.
        skin = sample.rgb[0].numpy() > 0
        assert (skin ^ np.isfinite(drawn)).sum() < 0.15 * skin.sum()
    error = np.concatenate(errors)
    assert np.median(error) < 5e-4
    assert np.percentile(error, 90) < 2e-3


def test_no_crop_is_empty(dataset: HO3DDataset) -> None:
    """200 of 200 crops of the first version were black (lesson 1)."""
    for i in range(len(dataset)):
        for epoch in range(6):
            raw = dataset.batch([SampleKey(i, epoch)])
            assert raw.rgb_u8.float().std() > 0.05 * 255
            hand = (raw.rgb_u8[..., 0] > 150).float().mean()
            assert 0.01 < hand < 0.7


def test_reference_depth_is_near_the_wrist(dataset: HO3DDataset) -> None:
    """Depth input saturates 225 mm from z_ref: a reference on the wall would leave a hand of ones."""
    for i in range(len(dataset)):
        raw = dataset.batch([SampleKey(i, 0)])
        assert abs(float(raw.z_ref_m) - float(raw.root_cam_m[0, 2])) < 0.15
