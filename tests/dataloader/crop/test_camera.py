"""The crop camera: one geometry for pixels, points, rotations and depth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.crop import camera as crop
from dataloader.crop.augment import Augmentation
from dataloader.crop.camera import CropCamera, crop_camera
from src.errors import DataError

INTRINSICS = np.array([[614.6, 0.4, 320.3], [0, 611.0, 241.7], [0, 0, 1]])
BOX = np.array([410.0, 80.0, 560.0, 200.0])


def random_camera(seed: int, size: tuple[int, int] = (256, 192)) -> CropCamera:
    """A crop with every geometric augmentation."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 560), rng.uniform(0, 420)
    box = np.array([x, y, x + rng.uniform(40, 250), y + rng.uniform(40, 250)])
    change = Augmentation(
        roll_rad=rng.uniform(-np.pi, np.pi),
        scale=rng.uniform(0.85, 1.15),
        shift=tuple(rng.uniform(-0.1, 0.1, 2)),
    )
    return crop_camera(INTRINSICS, box, size, 1.6, change)


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels through a homography, or (N, 3) points through a camera."""
    homogeneous = points if points.shape[1] == 3 else np.concatenate([points, np.ones((len(points), 1))], 1)
    out = homogeneous @ matrix.T
    return out[:, :2] / out[:, 2:]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_points_fall_where_their_pixels_go(seed: int) -> None:
    """Projecting turned joints equals warping the picture: else labels and pixels part (lessons 4 and 8)."""
    camera = random_camera(seed)
    points = np.random.default_rng(seed).uniform([-0.3, -0.2, 0.3], [0.3, 0.2, 1.0], (50, 3))
    turned = points @ camera.rot_crop_from_img.T
    front = turned[:, 2] > 0.05
    by_picture = through(camera.crop_from_img, through(INTRINSICS, points))
    by_camera = through(camera.intrinsics_px, turned)
    np.testing.assert_allclose(by_camera[front], by_picture[front], atol=1e-6)
    rotation = camera.rot_crop_from_img
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_depth_follows_the_turned_camera(seed: int) -> None:
    """The sensor measures z of the picture's camera; taken as the crop's it is centimetres off."""
    camera = random_camera(seed)
    pixels = np.random.default_rng(seed).uniform([0, 0], [192, 256], (40, 2))
    rays = np.concatenate([pixels, np.ones((40, 1))], 1) @ np.linalg.inv(camera.intrinsics_px).T
    points = 0.7 * rays  # z along the crop camera's axis is 0.7 m
    z_img = (points @ camera.rot_crop_from_img)[:, 2]
    w = camera.ray_z()
    np.testing.assert_allclose(z_img / (pixels @ w[:2] + w[2]), 0.7, atol=1e-12)


def test_the_box_centre_is_the_axis() -> None:
    """The network's camera looks at the hand wherever it stands in the picture."""
    camera = crop_camera(INTRINSICS, BOX, (256, 192), 1.6)
    centre = through(camera.crop_from_img, np.array([[485.0, 140.0]]))
    np.testing.assert_allclose(centre, [[96, 128]], atol=1e-9)
    assert np.argmax(np.abs(camera.rot_crop_from_img), axis=1).tolist() == [0, 1, 2]  # no roll, no mirror


@pytest.mark.parametrize("size", [(256, 192), (192, 256), (128, 128)])
def test_the_whole_box_stays_inside_for_any_roll(size: tuple[int, int]) -> None:
    """A fingertip outside the crop cannot be seen, let alone learned."""
    corners = np.array([[BOX[i], BOX[j]] for i in (0, 2) for j in (1, 3)])
    for roll in np.linspace(-np.pi, np.pi, 49):
        camera = crop_camera(INTRINSICS, BOX, size, 1.6, Augmentation(roll_rad=roll))
        inside = through(camera.crop_from_img, corners)
        assert inside.min() >= 0
        assert (inside <= [size[1], size[0]]).all()


def test_the_crop_is_zoomed_to_the_box() -> None:
    """A square of box_scale times the box fills the shorter side: neither a speck nor a cut hand."""
    box = np.array([270.0, 190.0, 370.0, 290.0])
    for scale in (0.85, 1.0, 1.15):
        camera = crop_camera(INTRINSICS, box, (256, 192), 1.6, Augmentation(scale=scale))
        left, right = through(camera.crop_from_img, np.array([[270.0, 240.0], [370.0, 240.0]]))[:, 0]
        assert right - left == pytest.approx(192 / 1.6 / scale, rel=0.02)  # the picture's own perspective


def test_warped_pixels_lie_where_the_homography_says() -> None:
    """A half-pixel or row-column slip between warp and labels shifts every joint."""
    camera = random_camera(5)
    picture = np.zeros((480, 640, 3), np.uint8)
    back = np.linalg.inv(camera.crop_from_img)
    target = through(back, np.array([[70.0, 150.0]]))[0]
    cv2.circle(picture, tuple(round(v) for v in target.tolist()), 2, (255, 255, 255), -1)
    expected = through(camera.crop_from_img, np.rint(target)[None])[0]
    window = crop.footprint(camera, (480, 640))
    piece = picture[window.y0 : window.y1, window.x0 : window.x1]
    depth = np.ascontiguousarray(piece[..., 0]).astype(np.uint16)
    for warped in (crop.warp_rgb(piece, camera, window)[..., 0], crop.warp_depth(depth, camera, window)):
        y, x = np.nonzero(warped > 100)
        np.testing.assert_allclose([x.mean(), y.mean()], expected, atol=0.3)


def test_depths_are_never_mixed() -> None:
    """Between a hand and a wall there is nothing: an interpolated depth is a surface that no one sees."""
    camera = random_camera(1)
    picture = np.full((480, 640), 4000, np.uint16)
    picture[:, 1::2] = 8000
    window = crop.footprint(camera, (480, 640))
    piece = picture[window.y0 : window.y1, window.x0 : window.x1]
    assert {4000, 8000} <= set(np.unique(crop.warp_depth(piece, camera, window)).tolist()) <= {0, 4000, 8000}


def test_an_empty_crop_is_seen() -> None:
    """The first version returned zeros, and 200 of 200 crops were black (lesson 1)."""
    for box in ([-400.0, 100, -250, 220], [300, 700, 420, 800], [900, 900, 1000, 990]):
        camera = crop_camera(INTRINSICS, np.array(box), (128, 128), 1.6)
        assert crop.covered_share(camera, (480, 640)) == 0.0, box
    for box, share in (([-80.0, 100, 60, 220], 0.44), ([200.0, 100, 320, 220], 1.0)):
        camera = crop_camera(INTRINSICS, np.array(box), (128, 128), 1.6)
        # 224 px wide around x = -10: 102 of them show the picture; the camera's turn bends that a bit.
        assert crop.covered_share(camera, (480, 640)) == pytest.approx(share, abs=0.03), box
    for box in ([np.nan, 0, 9, 9], [10.0, 10, 12, 12], [100.0, 100, 20, 20]):
        with pytest.raises(DataError, match="hand box"):
            crop_camera(INTRINSICS, np.array(box), (128, 128), 1.6)


def test_a_wide_pictures_border_is_in_the_picture() -> None:
    """Of a camera that looks at one border of a wide picture the other one is behind: such hands ended a run
    as outside the picture, in whatever epoch the draw came. What is outside still is.
    """
    wide = np.array([[200.0, 0, 320], [0, 200, 240], [0, 0, 1]])
    for box in ([600.0, 150, 660, 250], [-20, 150, 40, 250], [590, 430, 680, 500], [0, 0, 640, 480]):
        camera = crop_camera(wide, np.array(box), (128, 128), 1.6)
        assert crop.covered_share(camera, (480, 640)) >= crop.MIN_OVERLAP, box
    for box in ([900.0, 150, 990, 250], [-500, 150, -400, 250], [900, 900, 990, 990]):
        camera = crop_camera(wide, np.array(box), (128, 128), 1.6)
        assert crop.covered_share(camera, (480, 640)) == 0.0, box


def test_a_camera_matrix_without_inverse_is_named() -> None:
    """OpenCV inverts it to zeros, and a crop of nothing would follow."""
    with pytest.raises(DataError, match="camMat"):
        crop_camera(np.diag([0.0, 611.0, 1.0]), BOX, (128, 128), 1.6)
    np.testing.assert_allclose(crop.inverse(INTRINSICS), np.linalg.inv(INTRINSICS), rtol=1e-13, atol=1e-16)


def test_reference_depth_from_measured_depth() -> None:
    """z_ref lies on the hand although the wall behind fills most of the crop."""
    camera = crop_camera(INTRINSICS, BOX, (128, 128), 1.6)
    depth = np.full((128, 128), round(1.5 / crop.DEPTH_UNIT_M), np.uint16)
    w = camera.ray_z()
    y, x = np.mgrid[36:92, 36:92]
    depth[36:92, 36:92] = np.rint(0.6 * (w[0] * x + w[1] * y + w[2]) / crop.DEPTH_UNIT_M)
    depth[40:60, 40:60] = 0
    z_ref = crop.z_ref_from_depth(depth, camera)
    assert z_ref == pytest.approx(0.6, abs=1e-3)
    assert crop.z_ref_from_depth(np.zeros((128, 128), np.uint16), camera) is None


def test_reference_depth_from_the_box() -> None:
    """Half the size in the picture is twice as far."""
    near = crop_camera(INTRINSICS, np.array([220.0, 180, 420, 300]), (128, 128), 1.6)
    far = crop_camera(INTRINSICS, np.array([270.0, 210, 370, 270]), (128, 128), 1.6)
    assert crop.z_ref_from_box(far) == pytest.approx(2 * crop.z_ref_from_box(near), rel=1e-9)
    assert 0.2 < crop.z_ref_from_box(near) < 0.8


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_crop_that_is_seen_at_once_to_lie_inside_is_covered(seed: int) -> None:
    """The short way past the overlap must never wave through a crop that shows what is no picture."""
    camera = random_camera(seed)
    if not crop._inside(camera, (480, 640)):
        return
    rows, columns = np.mgrid[-0.5 : camera.size[0] : 4, -0.5 : camera.size[1] : 4]
    seen = through(np.linalg.inv(camera.crop_from_img), np.stack([columns.ravel(), rows.ravel()], 1))
    assert seen.min() >= -0.5
    assert (seen <= (639.5, 479.5)).all()
