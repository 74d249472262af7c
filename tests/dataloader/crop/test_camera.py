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
WIDE = np.array([[200.0, 0, 320], [0, 200, 240], [0, 0, 1]])
BOX = np.array([410.0, 80.0, 560.0, 200.0])
PICTURE = (480, 640)


def random_camera(seed: int, k: np.ndarray = INTRINSICS, margin: float = 0.0) -> CropCamera:
    """A crop with every geometric augmentation, of a box in the picture or `margin` px beside it."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-margin, 560 + margin), rng.uniform(-margin, 420 + margin)
    box = np.array([x, y, x + rng.uniform(40, 250), y + rng.uniform(40, 250)])
    place = tuple(rng.uniform(-0.1, 0.1, 2).tolist())
    change = Augmentation(rng.uniform(-np.pi, np.pi), rng.uniform(0.85, 1.15), place)
    return crop_camera(k, box, (256, 192), 1.6, change)


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels through a homography, or (N, 3) points through a camera."""
    homogeneous = points if points.shape[1] == 3 else np.concatenate([points, np.ones((len(points), 1))], 1)
    out = homogeneous @ matrix.T
    return out[:, :2] / out[:, 2:]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_points_fall_where_their_pixels_go(seed: int) -> None:
    """Projecting turned joints equals warping the picture: else labels and pixels part (lessons 4 and 8).

    The sensor measures z of the picture's camera; taken as the crop's it is centimetres off.
    """
    camera, rng = random_camera(seed), np.random.default_rng(seed)
    points = rng.uniform([-0.3, -0.2, 0.3], [0.3, 0.2, 1.0], (50, 3))
    turned = points @ camera.rot_crop_from_img.T
    front = turned[:, 2] > 0.05
    by_picture = through(camera.crop_from_img, through(INTRINSICS, points))
    by_camera = through(camera.intrinsics_px, turned)
    np.testing.assert_allclose(by_camera[front], by_picture[front], atol=1e-6)
    w = camera.ray_z()
    np.testing.assert_allclose(
        points[front, 2] / (by_camera[front] @ w[:2] + w[2]), turned[front, 2], rtol=1e-9
    )
    rotation = camera.rot_crop_from_img
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_covered_share_is_that_of_the_crops_pixels(seed: int, wide: bool) -> None:
    """The first version returned zeros, and 200 of 200 crops were black (lesson 1).

    Of a camera that looks at one border of a wide picture the other one is behind: that is no empty crop.
    """
    camera = random_camera(seed, WIDE if wide else INTRINSICS, margin=400.0)
    y, x = np.mgrid[0 : camera.size[0] : 4, 0 : camera.size[1] : 4] + 1.5
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1) @ np.linalg.inv(camera.intrinsics_px).T
    seen = rays @ camera.rot_crop_from_img  # in the picture's camera
    pixel = through(WIDE if wide else INTRINSICS, seen)
    inside = (seen[:, 2] > 0) & (pixel > -0.5).all(1) & (pixel < (639.5, 479.5)).all(1)
    assert crop.covered_share(camera, PICTURE) == pytest.approx(inside.mean(), abs=0.02)


@pytest.mark.parametrize("size", [(256, 192), (192, 256), (128, 128)])
def test_the_whole_box_stays_inside_for_any_roll(size: tuple[int, int]) -> None:
    """A fingertip outside the crop cannot be seen, let alone learned."""
    corners = np.array([[BOX[i], BOX[j]] for i in (0, 2) for j in (1, 3)])
    for roll in np.linspace(-np.pi, np.pi, 49):
        camera = crop_camera(INTRINSICS, BOX, size, 1.6, Augmentation(roll_rad=roll))
        inside = through(camera.crop_from_img, corners)
        assert inside.min() >= 0
        assert (inside <= [size[1], size[0]]).all()


def test_the_crop_is_turned_and_zoomed_to_the_box() -> None:
    """Its centre is the axis, box_scale times its side fills the shorter side: no speck and no cut hand."""
    camera = crop_camera(INTRINSICS, BOX, (256, 192), 1.6)
    np.testing.assert_allclose(
        through(camera.crop_from_img, np.array([[485.0, 140.0]])), [[96, 128]], atol=1e-9
    )
    assert np.argmax(np.abs(camera.rot_crop_from_img), axis=1).tolist() == [0, 1, 2]  # no roll, no mirror
    middle = np.array([270.0, 190.0, 370.0, 290.0])
    for scale in (0.85, 1.0, 1.15):
        camera = crop_camera(INTRINSICS, middle, (256, 192), 1.6, Augmentation(scale=scale))
        left, right = through(camera.crop_from_img, np.array([[270.0, 240.0], [370.0, 240.0]]))[:, 0]
        assert right - left == pytest.approx(192 / 1.6 / scale, rel=0.02)  # the picture's own perspective


def test_warped_pixels_lie_where_the_homography_says() -> None:
    """A half-pixel or row-column slip between warp and labels shifts every joint.

    Between a hand and a wall there is nothing: an interpolated depth is a surface that no one sees.
    """
    camera = random_camera(5)
    target = through(np.linalg.inv(camera.crop_from_img), np.array([[70.0, 150.0]]))[0]
    picture = cv2.circle(np.zeros(PICTURE, np.uint8), tuple(round(v) for v in target.tolist()), 2, 255, -1)
    expected = through(camera.crop_from_img, np.rint(target)[None])[0]
    window = crop.footprint(camera, PICTURE)
    piece = picture[window.y0 : window.y1, window.x0 : window.x1]
    rgb = crop.warp_rgb(np.repeat(piece[..., None], 3, axis=2), camera, window)[..., 0]
    depth = crop.warp_depth(piece.astype(np.uint16), camera, window)
    for warped in (rgb, depth):
        y, x = np.nonzero(warped > 100)
        np.testing.assert_allclose([x.mean(), y.mean()], expected, atol=0.3)
    assert set(np.unique(depth)) == {0, 255}


def test_a_box_or_camera_that_cannot_be_is_named() -> None:
    """OpenCV inverts a singular camMat to zeros, and a crop of nothing would follow."""
    for box in ([np.nan, 0, 9, 9], [10.0, 10, 12, 12], [100.0, 100, 20, 20]):
        with pytest.raises(DataError, match="hand box"):
            crop_camera(INTRINSICS, np.array(box), (128, 128), 1.6)
    with pytest.raises(DataError, match="camMat"):
        crop_camera(np.diag([0.0, 611.0, 1.0]), BOX, (128, 128), 1.6)


def test_beside_the_picture_a_crop_is_black_and_unmeasured() -> None:
    """Smeared borders look like arms; a depth that was not measured is 0."""
    camera = crop_camera(INTRINSICS, np.array([-40.0, 100.0, 60.0, 200.0]), (128, 128), 1.6)
    window = crop.footprint(camera, PICTURE)
    piece = np.full((window.y1 - window.y0, window.x1 - window.x0), 200, np.uint8)
    rgb = crop.warp_rgb(np.repeat(piece[..., None], 3, axis=2), camera, window)
    depth = crop.warp_depth(piece.astype(np.uint16) * 20, camera, window)
    for picture, inside in ((rgb[..., 0], 200), (depth, 4000)):
        assert (int(picture[64, 5]), int(picture[64, 120])) == (0, inside)
        assert 0.3 < (picture == 0).mean() < 0.6, "share beside the picture"


def test_the_reference_depth_is_the_hands() -> None:
    """In front of a wall at 0.9 m, behind two stray pixels at 0.3 m: the middle of what lies within 15 cm of
    the front, here a hand from 0.58 to 0.62 m with a hole. Without depth: 0.122 m over the angle of the box.
    """
    camera = crop_camera(INTRINSICS, np.array([220.0, 180.0, 420.0, 300.0]), (128, 128), 1.6)
    depth = np.full((128, 128), round(0.9 / crop.DEPTH_UNIT_M), np.uint16)
    depth[32:96, 40:70] = np.rint(np.linspace(0.58, 0.62, 30) / crop.DEPTH_UNIT_M)
    depth[40:60, 40:70] = 0
    depth[64, 64], depth[66, 66] = round(0.3 / crop.DEPTH_UNIT_M), round(0.3 / crop.DEPTH_UNIT_M)
    assert crop.z_ref_from_depth(depth, camera) == pytest.approx(0.6, abs=0.012)
    assert crop.z_ref_from_depth(np.zeros((128, 128), np.uint16), camera) is None
    # Focal length 612.8 px, side 200 px, in the middle of the picture.
    assert crop.z_ref_from_box(camera) == pytest.approx(0.122 * 612.8 / 200, rel=1e-3)
