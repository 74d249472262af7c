"""Every sample of a written data set, under every augmentation: pictures, depth and labels agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.scene.depth_sensor import noise_sigma_m
from src.config import DatasetConfig, ManoConfig, ModelConfig, RunConfig
from src.geometry.camera import project
from src.hand.mano import ManoLayer
from src.render.rasterizer import rasterize
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, HandBatch
from tests.dataloader.posed import geometry_alone
from tests.end_to_end.conftest import Embedded

HEIGHT, WIDTH = 256, 192


def open_train(root: Path, hand_file: Path) -> tuple[HO3DDataset, ManoLayer]:
    """The training split without the augmentations that hide the hand on purpose."""
    hand = ManoLayer.from_file(hand_file)
    config = RunConfig(
        dataset=DatasetConfig(root_dir=root),
        model=ModelConfig(image_size=(HEIGHT, WIDTH)),
        mano=ManoConfig(model_path=hand_file),
    )
    return geometry_alone(build_dataset(config, "train", hand, show_progress=False)), hand


def depth_errors(sample: HandBatch, hand: ManoLayer) -> tuple[np.ndarray, np.ndarray]:
    """(measured depth - z, sensor's standard deviation) at visible vertices with a measurement, metres."""
    k = sample.intrinsics_crop_px[0].double().numpy()
    with torch.no_grad():
        mesh = hand(sample.global_orient, sample.hand_pose, sample.betas, sample.translation_m).vertices_m[0]
    vertices = mesh.double().numpy()
    faces = hand.faces.numpy()
    seen = rasterize(vertices, faces, k, WIDTH, HEIGHT)
    surface = np.full(HEIGHT * WIDTH, np.inf)
    surface[seen.pixel] = seen.depth_m
    edge1, edge2 = (vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))
    normal = np.cross(edge1, edge2)
    view = vertices[faces].mean(1)
    slant = np.abs((normal * view).sum(1)) / (np.linalg.norm(normal, axis=1) * np.linalg.norm(view, axis=1))
    cosine = np.ones(HEIGHT * WIDTH)
    cosine[seen.pixel] = slant[seen.triangle]
    column, row = np.rint((vertices @ k.T)[:, :2] / vertices[:, 2:]).astype(int).T
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    pixel, z = (row * WIDTH + column)[inside], vertices[inside, 2]
    depth, valid = sample.depth[0, 0].numpy().ravel(), sample.depth_valid[0, 0].numpy().ravel()
    # One pixel of a slanted surface spans more depth than the sensor's noise: face-on parts only.
    use = (np.abs(surface[pixel] - z) < 0.003) & (cosine[pixel] > 0.7) & (valid[pixel] > 0)
    use &= np.abs(depth[pixel]) < DEPTH_CLIP - 0.01
    measured = depth[pixel[use]] * DEPTH_RANGE_M + float(sample.z_ref_m[0])
    return measured - z[use], noise_sigma_m(z[use], cosine[pixel[use]])


def check(dataset: HO3DDataset, hand: ManoLayer, count: int) -> None:
    """Assert everything on `count` augmented samples."""
    joints_img = torch.from_numpy(dataset.frames.labels().joints_cam_m)
    errors, sigmas = [], []
    for n in range(count):
        index, epoch = n % len(dataset), n // len(dataset)
        sample = prepare(dataset.batch([SampleKey(index, epoch)]))
        in_picture = project(joints_img[index : index + 1], sample.intrinsics_img_px)
        moved = project(F.pad(in_picture, (0, 1), value=1.0), sample.crop_from_img)
        assert (moved - project(sample.joints_cam_m, sample.intrinsics_crop_px)).norm(dim=-1).max() < 0.5
        assert (moved - sample.joints_crop_px).norm(dim=-1).max() < 0.5
        with torch.no_grad():
            decoded = hand(sample.global_orient, sample.hand_pose, sample.betas, sample.translation_m)
        assert (decoded.joints_m - sample.joints_cam_m).norm(dim=-1).max() < 1e-5
        assert (sample.root_cam_m - sample.joints_cam_m[:, 0]).norm() < 1e-5
        assert sample.rgb.std() > 0.05
        assert (sample.joints_unit.abs() <= 0.5).all(-1).float().mean() > 0.9
        error, sigma = depth_errors(sample, hand)
        errors.append(error)
        sigmas.append(sigma)
    error, sigma = np.concatenate(errors), np.concatenate(sigmas)
    # An object in front of the hand is nearer by its thickness: those vertices are not the hand's surface.
    bare = error > -0.006
    assert bare.mean() > 0.6
    # Half a pixel of rounding plus 1 mm steps of the sensor, beside its noise.
    within = np.abs(error[bare]) < 3 * sigma[bare] + 0.002
    assert within.mean() > 0.97
    assert abs(np.median(error[bare])) < 0.001


def test_geometry_of_a_small_set(embedded: Embedded) -> None:
    """Labels beside the picture teach the network noise; here they lie on it, under every augmentation."""
    dataset, hand = open_train(embedded.root, embedded.hand)
    check(dataset, hand, 60)
