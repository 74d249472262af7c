"""The pictures of a validation: whose colours, whose skeleton, on which side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from src.errors import ShapeError
from src.hand.joints import FINGERS, OPENPOSE21
from src.render.pictures import (
    captioned,
    draw_skeleton,
    grid,
    picture_from_network,
    write_picture,
)


def only(**places: tuple[float, float]) -> NDArray[np.float64]:
    """(21, 2) pixels x, y of some joints by name; the others are not known."""
    joints = np.full((21, 2), np.nan)
    for name, place in places.items():
        joints[OPENPOSE21.index(name)] = place
    return joints


def middle(mark: NDArray[np.bool_]) -> list[float]:
    """Mean x and y of marked pixels."""
    y, x = np.nonzero(mark)
    assert len(x), "nothing was drawn"
    return [float(x.mean()), float(y.mean())]


def test_the_network_input_is_shown_in_its_own_colours() -> None:
    """ImageNet's normalisation taken back, channel by channel."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 128, 250]], np.float32)
    normal = (colours / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    picture = picture_from_network(normal.T.reshape(3, 2, 2).astype(np.float32))
    assert picture.reshape(4, 3).tolist() == colours.tolist()


def test_red_is_written_as_red(tmp_path: Path) -> None:
    """OpenCV writes blue first: a hand of the wrong colour looks like a bug of the data."""
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    write_picture(tmp_path / "page.jpg", red)
    blue, green, again = cv2.imread(str(tmp_path / "page.jpg"))[8, 8].tolist()
    assert (blue < 10, green < 10, again > 240) == (True, True, True)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_joint_is_drawn_on_its_pixel(scale: int) -> None:
    """Pixel centres have whole numbers: enlarged, the middle of pixel (10, 25) moves by half a pixel too."""
    black = np.zeros((40, 30, 3), np.uint8)
    drawn = draw_skeleton(black, only(ring_3=(10, 25)), scale=scale)
    assert drawn.shape == (40 * scale, 30 * scale, 3)
    expected = [10.5 * scale - 0.5, 25.5 * scale - 0.5]
    assert middle(drawn[..., 0] > 60) == pytest.approx(expected, abs=0.51)
    assert not black.any(), "the crop itself is not painted"


def test_a_bone_keeps_its_direction_in_a_narrow_part_of_a_picture() -> None:
    """A hand at the picture's border: its joints are far outside of the strip that shows it."""
    joints = only(wrist=(-500, -500), thumb_1=(300, 300))
    drawn = draw_skeleton(np.zeros((200, 10, 3), np.uint8), joints, thickness=2)
    assert middle(drawn[..., 0] > 60) == pytest.approx([4.5, 4.5], abs=0.6)
    assert drawn[4, 4].any()
    assert not drawn[40:].any()
    low = draw_skeleton(np.zeros((200, 10, 3), np.uint8), only(wrist=(5, 190)))
    assert middle(low[..., 0] > 60) == pytest.approx([5, 190], abs=0.51)


def test_each_finger_has_its_colour() -> None:
    """Red thumb, orange index, green middle, blue ring, violet pinky: exchanged fingers show at a glance."""
    shades = ((230, 60, 60), (235, 160, 30), (60, 190, 70), (50, 140, 240), (190, 80, 220))
    for finger, shade in zip(FINGERS, shades, strict=True):
        for pair in (("wrist", f"{finger}_1"), (f"{finger}_3", f"{finger}_4")):
            joints = only(**{pair[0]: (4, 20), pair[1]: (36, 20)})
            drawn = draw_skeleton(np.zeros((40, 40, 3), np.uint8), joints)
            # The line is one pixel wide and smoothed.
            assert drawn[20, 20].tolist() == pytest.approx(shade, abs=25), f"bone {pair}"


def test_a_caption_stands_above_its_picture() -> None:
    """Letters over the hand would hide it; a name in another script is no reason for no picture."""
    tile = captioned(np.full((40, 90, 3), 50, np.uint8), ["train/A", "手"])
    assert tile.shape == (50 + 40, 90, 3)
    assert (tile[50:] == 50).all()
    assert tile[:24].max() > 200 < tile[28:50].max()


def test_tiles_run_along_rows() -> None:
    """Tile k stands in row k // columns; the last row is filled with grey; two sizes are named."""
    tiles = [np.full((2, 3, 3), 10 * k, np.uint8) for k in range(1, 6)]
    page = grid(tiles, columns=3)
    assert page[::2, ::3, 0].tolist() == [[10, 20, 30], [40, 50, 64]]
    with pytest.raises(ShapeError, match=r"\(2, 3, 3\).*\(2, 4, 3\)"):
        grid([tiles[0], np.zeros((2, 4, 3), np.uint8)], columns=2)
    with pytest.raises(ShapeError):
        draw_skeleton(tiles[0], np.zeros((16, 2)))
