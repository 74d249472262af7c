"""Pictures show what the labels say, and depth errs like a sensor."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dataloader.synthetic.frames import place_in_camera
from dataloader.synthetic.motion.motion import make_motion
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, Camera, cameras_around
from dataloader.synthetic.scene.depth_sensor import BASELINE_M, DepthSensor, noise_sigma_m, shadow
from dataloader.synthetic.scene.stage import BACKGROUND, HAND, RenderedFrame, Stage

Shot = tuple[RenderedFrame, Camera, NDArray[np.float64], NDArray[np.float64]]


@pytest.fixture(scope="module")
def shots(rig: Rig) -> list[Shot]:
    """Frames of several motions with the camera, the vertices and the joints (camera frame, metres)."""
    out = []
    for number in range(8):
        motion = make_motion(rig, 11, number, 2, orientations="table", gaps=False)
        rest = rig.anatomy(motion.betas).joints_m[0]
        vertices, joints = rig.decode(motion.hand_pose, motion.betas)
        camera = cameras_around(11, number, 3, motion.target_m)[number % 3]
        placed = place_in_camera(vertices, rest, motion, camera)
        frame = Stage(rig, motion, camera, 11, number % 3).draw(1, placed[1])
        out.append((frame, camera, placed[1], place_in_camera(joints, rest, motion, camera)[1]))
    return out


def pixels_of(points: NDArray[np.float64], camera: Camera) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of projected points."""
    p = points @ camera.intrinsics_px.T
    p = np.round(p[:, :2] / p[:, 2:]).astype(np.int64)
    return p[:, 1].clip(0, 479), p[:, 0].clip(0, 639)


def test_depth_under_visible_vertices(shots: list[Shot]) -> None:
    """Where a vertex is seen, the clean depth is its z, and the measured one is within the sensor's noise."""
    errors, noise = [], []
    for frame, camera, vertices, _ in shots:
        row, column = pixels_of(vertices, camera)
        clean, measured = frame.clean_depth_m[row, column], frame.depth_m[row, column]
        facing = frame.cosine[row, column] > 0.35
        seen = facing & (np.abs(clean - vertices[:, 2]) < 0.004) & (frame.segmentation[row, column] == HAND)
        assert seen.sum() > 20
        errors.append(np.abs(clean - vertices[:, 2])[seen])
        got = seen & (measured > 0)
        sigma = np.hypot(noise_sigma_m(clean[got], frame.cosine[row, column][got]), 0.001 / np.sqrt(12))
        noise.append((measured - clean)[got] / sigma)
    assert np.median(np.concatenate(errors)) < 0.0006  # half a pixel on a tilted surface
    z = np.concatenate(noise)
    assert 0.7 < z.std() < 1.3
    assert np.abs(z).max() < 5


def test_share_of_missing_depth(shots: list[Shot]) -> None:
    """A few percent of the hand return nothing, not a third."""
    missing = [float((frame.depth_m[frame.segmentation == HAND] == 0).mean()) for frame, *_ in shots]
    assert 0.02 < np.mean(missing) < 0.08


def test_shadow_width_and_side() -> None:
    """A plate before a wall: the hole is f b (1/z_near - 1/z_far) wide, on its left, nowhere else."""
    depth = np.full((480, 640), 1.2, np.float32)
    depth[100:200, 300:400] = 0.6
    hole = shadow(depth, 600.0)
    width = 600.0 * BASELINE_M * (1 / 0.6 - 1 / 1.2)
    assert (hole.any(1) == ((np.arange(480) >= 100) & (np.arange(480) < 200))).all()
    columns = np.flatnonzero(hole[150])
    assert columns.max() == 299
    assert abs(len(columns) - width) <= 1.0


def test_the_sensor_is_right_in_the_mean_and_its_noise_grows_with_the_square_of_distance() -> None:
    """Whole millimetres, rounded: cut off, every depth would be half a millimetre too near."""
    rng = np.random.default_rng(0)
    sensor = DepthSensor.draw(rng, 600.0)
    spread = []
    for z in (0.8, 1.6):
        clean = np.linspace(z, z + 0.002, WIDTH, dtype=np.float32) * np.ones((HEIGHT, 1), np.float32)
        measured = sensor.measure(rng, clean, np.ones_like(clean))
        there = measured > 0
        assert there.mean() > 0.9
        error = (measured - clean)[there]
        assert abs(float(error.mean())) < 2e-4
        np.testing.assert_allclose(measured * 1000, np.rint(measured * 1000), atol=1e-3)
        spread.append(float(error.std()))
    assert spread[1] / spread[0] == pytest.approx(4.0, rel=0.15)


def test_hand_is_lit_and_solid(shots: list[Shot]) -> None:
    """The hand is one bright patch: no black or inside-out skin, no holes with the table showing through."""
    for frame, camera, vertices, _ in shots:
        skin = frame.rgb[frame.segmentation == HAND].astype(np.float64)
        assert skin.mean() > 18
        assert skin[:, 0].mean() > skin[:, 2].mean() * 0.9  # skin is not blue
        centre = vertices.mean(0)
        row, column = pixels_of(centre[None], camera)
        around = frame.segmentation[row[0] - 2 : row[0] + 3, column[0] - 2 : column[0] + 3]
        assert (around != BACKGROUND).any()
