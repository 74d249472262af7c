"""What a person sees on the pictures of a validation: which bones, where, on which side, in which colours."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from src.errors import ShapeError
from src.hand.joints import FINGERS, OPENPOSE21, OPENPOSE_BONES
from src.render.pictures import draw_skeleton, grid, truth_and_prediction, write_picture

RED = (255, 0, 0)


def _row_of_joints() -> np.ndarray:
    """(21, 2) pixels of a 240 x 40 picture, 11 apart."""
    return np.stack([np.arange(21) * 11.0 + 8, np.full(21, 20.0)], axis=1)


def test_every_finger_is_drawn_to_its_tip() -> None:
    """20 bones, each finger from the wrist through four joints; one that ends early looks mislabelled."""
    assert {(OPENPOSE21[parent], OPENPOSE21[child]) for parent, child in OPENPOSE_BONES} == {
        ("wrist" if k == 1 else f"{finger}_{k - 1}", f"{finger}_{k}")
        for finger in FINGERS
        for k in (1, 2, 3, 4)
    }
    joints = _row_of_joints()
    drawn = draw_skeleton(np.zeros((40, 240, 3), np.uint8), joints, colour=RED)
    for finger in FINGERS:  # half way between the last joint and the tip
        tip = OPENPOSE21.index(f"{finger}_4")
        x = round(float(joints[tip - 1 : tip + 1, 0].mean()))
        assert drawn[20, x, 0] > 200, f"no bone to the tip of the {finger} finger"


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_an_enlarged_joint_stands_in_the_middle_of_its_pixel(scale: int) -> None:
    """The circle of a joint is centred on what its crop pixel became, not on that pixel's corner."""
    joints = np.full((21, 2), np.nan)
    joints[0] = 6.0, 9.0
    drawn = draw_skeleton(np.zeros((16, 16, 3), np.uint8), joints, colour=RED, scale=scale)
    rows, columns = np.nonzero(drawn[..., 0] > 127)
    middle = (np.array([6.0, 9.0]) + 0.5) * scale - 0.5
    off = np.abs([columns.mean(), rows.mean()] - middle).max()
    assert off <= 0.5, f"drawn {off:.2f} px beside the middle of the pixel"  # half: whole pixels are drawn


def test_truth_stands_left_and_prediction_right() -> None:
    """README and pages say so: the other way round the network looks perfect and the labels wrong."""
    truth, prediction = np.full((21, 2), 4.0), np.full((21, 2), 25.0)
    tile = truth_and_prediction(np.zeros((30, 30, 3), np.uint8), truth, prediction, "")
    left, right = np.hsplit(tile[18:], 2)
    assert left[9, 9].max() > 200, "the truth is not on the left"
    assert left[51, 51].max() == 0, "the prediction is on the left"
    assert right[51, 51].max() > 200, "the prediction is not on the right"


def test_a_written_picture_has_its_colours(tmp_path: Path) -> None:
    """Red stays red in the file: readers of files want RGB, OpenCV's writer BGR."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:] = 200, 30, 10
    write_picture(tmp_path / "page.png", picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "page.png"), cv2.IMREAD_COLOR_RGB), picture)


def test_a_page_keeps_its_order_and_refuses_what_does_not_fit() -> None:
    """Tiles in rows, the last one filled up; tiles of two sizes are an error that names both."""
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    page = grid(tiles, columns=2)
    assert page.shape == (4, 6, 3)
    assert page[::2, ::3, 0].tolist() == [[10, 20], [30, 64]]
    with pytest.raises(ShapeError, match=r"\(2, 3, 3\).*\(2, 4, 3\)"):
        grid([tiles[0], np.zeros((2, 4, 3), np.uint8)], columns=2)
