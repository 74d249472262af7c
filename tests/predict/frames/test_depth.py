"""Depth files to metres."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from src.errors import ConfigError, DataError
from src.predict.frames.depth import DepthUnit, read_depth
from src.schema import DEPTH_UNIT_M
from tests.predict.frames.scenes import scene, write

MM = DepthUnit(of_camera=0.001)


def test_every_form_gives_the_same_metres(tmp_path: Path) -> None:
    """A user may store depth in any of them."""
    depth = scene(0)[1]
    write(tmp_path / "a.png", depth)
    write(tmp_path / "a.tiff", depth)
    write(tmp_path / "float.tiff", depth.astype(np.float32) / 1000)
    np.save(tmp_path / "whole.npy", depth)
    np.save(tmp_path / "float.npy", depth[..., None] / 1000)
    for name in ("a.png", "a.tiff", "float.tiff", "whole.npy", "float.npy"):
        metres = read_depth(tmp_path / name, MM).metres
        assert metres.dtype == np.float32
        assert metres.shape == depth.shape
        assert np.allclose(metres, depth / 1000, atol=1e-6), name
    assert np.allclose(read_depth(tmp_path / "a.png", DepthUnit(0.5, 0.001)).metres, depth * 0.5)


def test_ho3d_s_form_is_known_by_itself(tmp_path: Path) -> None:
    """The camera's unit is for 16-bit files; another unit for this form is a mistake."""
    units = np.array([[0, 1, 256], [4800, 65535, 7]], np.uint16)
    write(tmp_path / "d.png", np.stack([units % 256, units // 256, 0 * units], -1).astype(np.uint8))
    read = read_depth(tmp_path / "d.png", MM)
    assert np.array_equal(np.rint(read.metres / DEPTH_UNIT_M), units)
    with pytest.raises(ConfigError, match="Leave it out"):
        read_depth(tmp_path / "d.png", DepthUnit(0.001))


def test_what_was_not_measured_is_zero(tmp_path: Path) -> None:
    """A nan would spread over the crop, and a negative distance lies behind the camera."""
    np.save(tmp_path / "d.npy", np.array([[np.nan, np.inf, -np.inf], [-1, 0, 0.5]]))
    assert read_depth(tmp_path / "d.npy", DepthUnit()).metres.tolist() == [[0, 0, 0], [0, 0, 0.5]]


def test_whole_numbers_need_a_unit(tmp_path: Path) -> None:
    """A guess would be wrong by four or eight."""
    write(tmp_path / "d.png", scene(0)[1])
    with pytest.raises(ConfigError, match=r"needs its unit: --depth-unit-m.*0\.001 \(RealSense.*0\.00025"):
        read_depth(tmp_path / "d.png", DepthUnit())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("grey.png", scene(0)[1].astype(np.uint8), "8 bits"),
        ("colours.png", scene(0)[0] | 1, "a picture of depth in colours"),
        ("deep.png", np.ones((4, 4, 3), np.uint16), "16 bits and colour type 2"),
        ("grey.tiff", scene(0)[1].astype(np.uint8), "8 bits are too few"),
        ("three.npy", np.ones((3, 4, 4)), "shape"),
        ("bytes.npy", np.ones((4, 4), np.uint8), "uint8"),
        ("complex.npy", np.ones((4, 4), complex), "complex128"),
        ("objects.npy", np.array([[None, "x"]]), "cannot be read"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "cannot be read: PNG without a size"),
        ("empty.npy", b"", "cannot be read"),
        ("empty.tiff", b"", "cannot be read"),
    ],
)
def test_what_holds_no_depth_is_one_line(tmp_path: Path, name: str, content: object, says: str) -> None:
    """Colours or bytes read as metres would be a hand somewhere."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)  # type: ignore[arg-type]
    else:
        assert cv2.imwrite(str(path), np.asarray(content))
    with pytest.raises(DataError, match=says) as error:
        read_depth(path, MM)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
