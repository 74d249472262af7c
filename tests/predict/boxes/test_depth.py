"""Hands found in depth: a slab-shaped hand at the end of an arm, before walls, and with a thing in it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from src.errors import DataError
from src.predict.boxes.depth import DepthBoxes
from src.predict.boxes.finder import iou
from src.predict.frame import Frame, HandBox

H, W, F = 240, 320, 240.0
K = np.array([[F, 0, 160], [0, F, 120], [0, 0, 1]])


def slab(depth: np.ndarray, centre_m: tuple[float, float], size_m: tuple[float, float], z: float) -> None:
    """Put a rounded rectangle before what is there; metres from the axis, to the right and downwards."""
    y, x = np.mgrid[:H, :W]
    across, down = (x - K[0, 2]) * z / F, (y - K[1, 2]) * z / F
    on = (np.abs(across - centre_m[0]) <= size_m[0] / 2) & (np.abs(down - centre_m[1]) <= size_m[1] / 2)
    round_z = z + 0.02 * ((across - centre_m[0]) / size_m[0] * 2) ** 2
    depth[on & (depth > round_z)] = round_z[on & (depth > round_z)]


def hand_box(z: float) -> tuple[float, float, float, float]:
    """Joints of the hand of `scene`: 9 x 13 cm, without the skin beside and before them."""
    half = 0.045 * F / z
    return (160 - half, 120 - 0.09 * F / z, 160 + half, 120 + 0.04 * F / z)


def scene(z: float = 0.5, wall: float = 1.2) -> Frame:
    """A hand whose arm comes from below, before a wall."""
    depth = np.full((H, W), wall)
    slab(depth, (0.0, -0.03), (0.10, 0.14), z)  # hand: from 10 cm above the axis to 4 cm below it
    slab(depth, (0.0, 0.06), (0.055, 0.06), z)  # wrist
    slab(depth, (0.0, 0.40), (0.08, 0.62), z)  # sleeve
    return frame(depth)


def frame(depth: np.ndarray) -> Frame:
    return Frame("a", np.zeros((H, W, 3), np.uint8), depth.astype(np.float32), K)


def changed(before: Frame, depth: np.ndarray) -> Frame:
    return dataclasses.replace(before, depth_m=depth.astype(np.float32))


def share(seen: Frame, z: float = 0.5) -> float:
    """Overlap of what is found with the hand that is there."""
    (found,) = DepthBoxes().find(seen)
    return iou(found.box_px, hand_box(z))


@pytest.mark.parametrize("z", [0.3, 0.5, 0.9])
def test_the_hand_is_cut_off_its_arm_at_any_distance(z: float) -> None:
    """A box around the whole arm would show the network a hand of a few pixels."""
    assert share(scene(z), z) > 0.6


def test_missing_and_noisy_depth_keeps_the_hand() -> None:
    """Sensors leave holes, nan and noise; the noise must not make the way along the arm longer."""
    draw = np.random.default_rng(0)
    seen = scene()
    depth = np.asarray(seen.depth_m) + draw.normal(0, 0.007, (H, W))
    holes = draw.random((H, W))
    depth[holes < 0.1] = 0.0
    depth[holes < 0.05] = np.nan
    depth[holes < 0.01] = np.inf
    (found,) = DepthBoxes().find(changed(seen, depth))
    assert iou(found.box_px, hand_box(0.5)) > 0.6
    wanted = hand_box(0.5)[3] - hand_box(0.5)[1]
    assert abs(found.box_px[3] - found.box_px[1] - wanted) < 0.12 * wanted


def test_a_wall_close_behind_is_parted_from_the_hand() -> None:
    """A hand that hangs together with what it touches is still found before it."""
    assert share(scene(wall=0.53)) > 0.5


def test_a_stick_in_the_hand_is_not_the_hand() -> None:
    """What is thinner than a wrist is no far end of an arm."""
    seen = scene()
    depth = np.array(seen.depth_m)
    slab(depth, (0.0, -0.15), (0.02, 0.14), 0.5)
    assert share(changed(seen, depth)) > 0.5


def test_of_two_hands_the_nearest_is_taken() -> None:
    """It is the one that a user shows to the camera."""
    seen = scene(0.5)
    depth = np.array(seen.depth_m)
    slab(depth, (0.35, -0.03), (0.10, 0.14), 0.9)
    assert share(changed(seen, depth)) > 0.6


def test_no_surface_of_a_hand_s_size_is_no_hand() -> None:
    """Frames without a hand are listed, not invented: walls, a crumb, a board, nothing measured, too far."""
    board = np.full((H, W), 1.2)
    board[80:150, 100:160] = 0.5
    crumb = np.full((H, W), 1.2)
    slab(crumb, (0.0, 0.0), (0.03, 0.03), 0.5)
    for depth in (
        np.full((H, W), 0.8),
        crumb,
        board,
        np.zeros((H, W)),
        np.full((H, W), np.nan),
        np.full((H, W), 4.0),
    ):
        assert DepthBoxes().find(frame(depth)) == []


def test_without_depth_there_is_nothing_to_look_at() -> None:
    """An empty list would say that the picture shows no hand."""
    with pytest.raises(DataError, match="a: there is no depth"):
        DepthBoxes().find(dataclasses.replace(scene(), depth_m=None))


def test_the_same_frame_gives_the_same_box() -> None:
    """Planes are tried with drawn points: a second run must draw the same ones."""
    seen = scene(wall=0.53)
    first: list[HandBox] = DepthBoxes().find(seen)
    assert first == DepthBoxes().find(seen)
