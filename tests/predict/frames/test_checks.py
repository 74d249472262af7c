"""Depth in another unit, and depth that does not lie on its picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from src.errors import DataError
from src.predict.frame import Frame
from src.predict.frames.checks import require_on_picture, require_range
from tests.predict.frames.scenes import scene


def frames(first: int, change: object = None) -> list[Frame]:
    """Eight scenes, the depth of each changed by an affine map."""
    made = []
    for number in range(first, first + 8):
        rgb, depth = scene(number)
        metres = depth.astype(np.float32) / 1000
        if change is not None:
            metres = cv2.warpAffine(metres, np.float32(change), (160, 120), flags=cv2.INTER_NEAREST)  # type: ignore[arg-type]
        made.append(Frame(str(number), rgb, metres, np.eye(3)))
    return made


@pytest.mark.parametrize("seed", range(0, 80, 8))
def test_depth_that_lies_on_its_picture_passes(seed: int) -> None:
    """A false alarm would keep an honest user out; a sensor's own pixel or two is honest."""
    require_on_picture(frames(seed))
    require_on_picture(frames(seed, [[1, 0, 2], [0, 1, -1]]))
    require_on_picture(frames(seed)[:1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ([[1, 0, 15], [0, 1, 0]], r"moved by about \(-15, 0\) px"),
        ([[1, 0, 0], [0, 1, -15]], r"moved by about \(0, 15\) px"),
        ([[-1, 0, 159], [0, 1, 0]], "mirrored"),
        ([[-1, 0, 159], [0, -1, 119]], "turned upside down"),
        ([[1.4, 0, -32], [0, 1.4, -24]], "another field of view"),
    ],
)
def test_depth_of_another_camera_is_refused(change: list, says: str) -> None:
    """The hand's colour would be shown with the wall's distance."""
    with pytest.raises(DataError, match=says) as error:
        require_on_picture(frames(0, change))
    assert "\n" not in str(error.value)


def test_pictures_without_edges_prove_nothing() -> None:
    """Grey pictures and flat depth are no evidence against anybody."""
    flat = np.full((120, 160), 0.5, np.float32)
    require_on_picture([Frame("a", np.full((120, 160, 3), 90, np.uint8), flat, np.eye(3))])
    require_on_picture([Frame("a", scene(0)[0], flat, np.eye(3))])
    require_on_picture(
        [Frame("a", np.zeros((120, 160, 3), np.uint8), scene(0)[1] / np.float32(1e3), np.eye(3))]
    )


@pytest.mark.parametrize(("unit", "fits"), [(1.0, "0.001"), (0.0001, "0.001"), (0.008, "0.001")])
def test_a_unit_without_room_for_a_hand_names_one_that_has(unit: float, fits: str) -> None:
    """Millimetres called metres put the wall at 900 m."""
    require_range([scene(0)[1] * np.float32(0.001)], 0.001)
    with pytest.raises(DataError, match=rf"a hand stands at 0.15 to 1.5 m.*With {fits} \(RealSense"):
        require_range([scene(0)[1] * np.float32(unit)], unit)


def test_a_frame_that_shows_no_hand_is_no_wrong_unit() -> None:
    """The hand may come into the picture later, before a far background."""
    far = np.full((120, 160), 3, np.float32)
    near = far.copy()
    near[50:60, 50:60] = 0.6
    require_range([far, np.zeros_like(far), near], 0.001)
