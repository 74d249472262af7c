"""Camera files, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.errors import ConfigError, DataError
from src.predict.frames.camera import EXAMPLE, read_camera
from tests.predict.frames.scenes import write_camera


def test_a_camera_file_gives_its_numbers(tmp_path: Path) -> None:
    """K is what the hand's distance is made from."""
    camera = read_camera(write_camera(tmp_path / "cam.yaml", depth_unit_m="2.5e-4", distortion=[0, 0.0]))
    assert camera.intrinsics_px.tolist() == [[150.5, 0, 79.5], [0, 151, 60], [0, 0, 1]]
    assert (camera.width, camera.height, camera.depth_unit_m) == (160, 120, 2.5e-4)
    (tmp_path / "example.yaml").write_text(EXAMPLE)
    assert read_camera(tmp_path / "example.yaml").width == 640


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"fx": None}, "fx missing. A camera file is"),
        ({"fx": "wide"}, "fx: got 'wide', want a number"),
        ({"fy": True}, "fy: got True"),
        ({"cx": ".nan"}, "cx: got nan"),
        ({"fx": -5}, "fx: got -5, want pixels"),
        ({"fx": 0.9}, "multiplied by 160"),
        ({"cx": 400}, "cx: got 400, want pixels inside the picture, 0 to width=160"),
        ({"cy": -1}, "cy: got -1"),
        ({"height": 120.5}, "height: got 120.5, want whole"),
        ({"depth_unit_m": 0}, "depth_unit_m: got 0"),
        ({"depth_unit_m": 1000}, "depth_unit_m: got 1000"),
        ({"heigth": 3}, "heigth: no key .*Is height meant"),
        ({"K": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, r"K: a matrix is not read. Write fx = K\[0\]\[0\]"),
        ({"distortion": [0.1, 0]}, "Undistort pictures and depth first"),
    ],
)
def test_a_camera_that_is_none_is_refused_by_its_key(tmp_path: Path, changed: dict, says: str) -> None:
    """Each of these would place the hand somewhere else without a word."""
    with pytest.raises(ConfigError, match=says) as error:
        read_camera(write_camera(tmp_path / "cam.yaml", **changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "fx: [", "\x00", "fx: 1\nfx: 2"])
def test_a_file_that_is_no_camera_is_one_line(tmp_path: Path, text: str) -> None:
    """Not a traceback of a YAML library."""
    (tmp_path / "cam.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"cam\.yaml"):
        read_camera(tmp_path / "cam.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_camera(tmp_path)


def test_a_camera_of_another_size_says_what_would_fit(tmp_path: Path) -> None:
    """The centre of pixel 0 is at 0: half a picture's K is not half of K."""
    camera = read_camera(write_camera(tmp_path / "cam.yaml"))
    camera.require_size("f", 120, 160)
    with pytest.raises(DataError, match=r"fx: 301, fy: 302, cx: 159.5, cy: 120.5, width: 320, height: 240"):
        camera.require_size("f", 240, 320)
    with pytest.raises(DataError, match="turned by 90 degrees"):
        camera.require_size("f", 160, 120)
    with pytest.raises(DataError, match=r"f: the picture is 200 x 120.* 160 x 120"):
        camera.require_size("f", 120, 200)
    assert np.all(camera.intrinsics_px[2] == [0, 0, 1])
