"""What is drawn, and by which rule: colours, occluders, noise, reference depths, modalities."""

from __future__ import annotations

import numpy as np
import pytest

from dataloader.batches.samplers import TrainSampler
from dataloader.crop import augment
from dataloader.crop import camera as crop
from dataloader.crop.augment import Augmentation, Patch, disturb_depth, draw, paint_rgb, show_depth
from dataloader.crop.camera import crop_camera
from src.config import AugmentationConfig

UNIT_M = 0.00012498664727900177
INTRINSICS = np.array([[614.6, 0.0, 320.3], [0, 611.0, 241.7], [0, 0, 1]])


class Draws:
    """A generator whose uniform numbers are chosen."""

    def __init__(self, *numbers: list[float]) -> None:
        self.numbers = list(numbers)

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        assert (low, high, count) == (-1, 1, 3)
        return np.array(self.numbers.pop(0))


BRIGHTER, MORE_CONTRAST, GREYER, SAME = [1, 0, 0], [0, 1, 0], [0, 0, -1], [0, 0, 0]


@pytest.mark.parametrize(
    ("drawn", "balance", "colour", "expected"),
    [
        (BRIGHTER, SAME, [0.2, 0.4, 0.6], [0.45, 0.65, 0.85]),  # by a quarter
        (MORE_CONTRAST, SAME, [0.5, 0.7, 0.3], [0.5, 0.8, 0.2]),  # half as much again, about mid-grey
        (GREYER, SAME, [1.0, 0.0, 0.0], [0.6495, 0.1495, 0.1495]),  # half way to the grey of red
        (GREYER, SAME, [0.0, 0.0, 1.0], [0.057, 0.057, 0.557]),  # blue is darker than red
        (SAME, [1, 0, -1], [0.4, 0.4, 0.4], [0.5, 0.4, 0.3]),  # white balance, channel by channel
    ],
)
def test_colours_change_as_their_names_say(
    drawn: list[float], balance: list[float], colour: list[float], expected: list[float]
) -> None:
    """At strength 0.5: R, G, B in this order, by Rec. 601's shares of grey."""
    matrix = augment._colour_matrix(0.5, Draws(drawn, balance))  # type: ignore[arg-type]
    assert (matrix @ [*colour, 1.0]).tolist() == pytest.approx(expected, abs=1e-4)


def test_an_occluder_stands_at_its_place_before_the_hand() -> None:
    """On a crop of 64 x 128: a quarter to the right, a quarter up; 5 cm before the median of the middle:
    before the hand, and neither the wall beside it nor a stray value.
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64) * 0.05 + [0.25, -0.25]
    patch = Patch(corners, colour=(10.0, 20.0, 30.0), nearer_m=0.05)
    rgb, depth = np.zeros((64, 128, 3), np.uint8), np.full((64, 128), round(1.5 / UNIT_M), np.uint16)
    depth[16:48, 32:90], depth[30, 64] = round(0.6 / UNIT_M), round(0.1 / UNIT_M)
    change = Augmentation(occluders=(patch,))
    paint_rgb(rgb, change)
    out = disturb_depth(depth, change)
    y, x = np.nonzero(out != depth)
    assert [x.mean(), y.mean()] == pytest.approx([96.0, 16.0], abs=0.6)
    assert out[16, 96] * UNIT_M == pytest.approx(0.55, abs=1e-3)
    assert rgb[16, 96].tolist() == [10, 20, 30]


def test_noise_is_another_in_each_sample() -> None:
    """One pattern for all samples is a texture that a network learns."""
    depth = np.full((40, 40), 5000, np.uint16)
    changes = (Augmentation(noise_seed=seed) for seed in (7, 77_777))
    first, second = (disturb_depth(depth, change).astype(float).ravel() for change in changes)
    # 1600 independent pairs: three standard errors of a correlation are 0.075.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08


def test_the_reference_depth_is_the_hands() -> None:
    """In front of a wall at 0.9 m, behind two stray pixels at 0.3 m: the middle of what lies within 15 cm of
    the front, here a hand from 0.58 to 0.62 m. Without depth: 0.122 m over the angle of the box.
    """
    camera = crop_camera(INTRINSICS, np.array([220.0, 180.0, 420.0, 300.0]), (128, 128), 1.6)
    depth = np.full((128, 128), round(0.9 / UNIT_M), np.uint16)
    depth[32:96, 40:70] = np.rint(np.linspace(0.58, 0.62, 30) / UNIT_M)
    depth[64, 64], depth[66, 66] = round(0.3 / UNIT_M), round(0.3 / UNIT_M)
    assert crop.z_ref_from_depth(depth, camera) == pytest.approx(0.6, abs=0.012)
    # Focal length 612.8 px, side 200 px, in the middle of the picture.
    assert crop.z_ref_from_box(camera) == pytest.approx(0.122 * 612.8 / 200, rel=1e-3)


def test_beside_the_picture_a_crop_is_black_and_unmeasured() -> None:
    """Smeared borders look like arms; a depth that was not measured is 0."""
    camera = crop_camera(INTRINSICS, np.array([-40.0, 100.0, 60.0, 200.0]), (128, 128), 1.6)
    window = crop.footprint(camera, (480, 640))
    piece = np.full((window.y1 - window.y0, window.x1 - window.x0), 200, np.uint8)
    rgb = crop.warp_rgb(np.repeat(piece[..., None], 3, axis=2), camera, window)
    depth = crop.warp_depth(piece.astype(np.uint16) * 20, camera, window)
    for picture, inside in ((rgb[..., 0], 200), (depth, 4000)):
        assert (int(picture[64, 5]), int(picture[64, 120])) == (0, inside)
        assert 0.3 < (picture == 0).mean() < 0.6, "share beside the picture"


def test_every_sample_has_its_turn() -> None:
    """What does not fill a last step is another part in each epoch: 67 samples in steps of 16."""
    sampler = TrainSampler(67, 4, 0, 1, seed=0, accumulation=4)
    seen: set[int] = set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        seen |= {key.index for micro in sampler for key in micro}
    # A sample is left out of an epoch with probability 3 / 67, of twelve with 1e-16.
    assert seen == set(range(67))


def test_whether_depth_is_shown_says_nothing_about_the_crop() -> None:
    """Drawn from one stream, samples without depth would all be rolled one way."""
    rolls = np.array([draw(AugmentationConfig(), 0, 2, i).roll_rad for i in range(1500)])
    shown = np.array([show_depth("train", 0.4, 0, 2, i) for i in range(1500)])
    # 750 draws a side: three standard errors are 0.054.
    assert shown[rolls < 0].mean() == pytest.approx(0.6, abs=0.06)
    assert shown[rolls > 0].mean() == pytest.approx(0.6, abs=0.06)
    assert abs(rolls[shown].mean()) < 0.25, "of 3.14 either way"
