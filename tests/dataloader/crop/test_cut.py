"""What is cut out of a picture: its pixels, an occluder over both colour and depth, a reference depth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dataloader.crop.augment import Augmentation, Patch
from dataloader.crop.camera import Window, crop_camera, z_ref_from_box
from dataloader.crop.cut import cut_depth, cut_rgb, view_arrays
from src.schema import DEPTH_UNIT_M

K = np.array([[200.0, 0, 80], [0, 200, 60], [0, 0, 1]])
CAMERA = crop_camera(K, np.array([50.0, 40, 90, 80]), (32, 32), 1.5)
FAR = round(0.6 / DEPTH_UNIT_M)


class Wall:
    """A grey picture of a wall 0.6 m away."""

    size = (120, 160)

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        return np.full((window.y1 - window.y0, window.x1 - window.x0, 3), 90, np.uint8)

    def depth(self, window: Window) -> NDArray[np.uint16]:
        return np.full((window.y1 - window.y0, window.x1 - window.x0), FAR, np.uint16)


def test_an_occluder_covers_colour_and_depth_in_the_same_place() -> None:
    """Painted over one of the two alone, it would teach the network to trust the other."""
    corners = np.array([[-0.1, -0.1], [0.1, -0.1], [0.1, 0.1], [-0.1, 0.1]])
    change = Augmentation(occluders=(Patch(corners, (250.0, 10.0, 20.0), 0.05),))
    rgb = np.empty((32, 32, 3), np.uint8)
    cut_rgb(Wall(), CAMERA, rgb, change)
    depth, _ = cut_depth(Wall(), CAMERA, change)
    assert rgb[16, 16].tolist() == [250, 10, 20]
    assert rgb[4, 4].tolist() == [90] * 3
    assert (FAR - depth[16, 16]) * DEPTH_UNIT_M == pytest.approx(0.05, abs=2e-4)
    assert depth[4, 4] == FAR


def test_the_reference_depth_is_measured_or_else_that_of_the_box() -> None:
    """A crop without depth would else be placed at no distance."""
    _, z_ref = cut_depth(Wall(), CAMERA)
    arrays = view_arrays([CAMERA, CAMERA], [z_ref, None], [True, False])
    assert arrays["z_ref_m"] == pytest.approx([0.6, z_ref_from_box(CAMERA)], abs=0.01)
    assert arrays["depth_present"].tolist() == [True, False]
