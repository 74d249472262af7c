"""Pictures to arrays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dataloader.pictures.decode import combine_depth, read_depth_bytes, read_rgb
from src.errors import DataError


def test_depth_bytes_are_combined_without_overflow(tmp_path: Path) -> None:
    """uint8 * 256 overflows: every depth beyond 32 mm would be wrong (lesson 18)."""
    packed = np.zeros((2, 2, 3), np.uint8)
    packed[0, 0] = (0, 0x12, 0x34)  # B, G, R
    packed[1, 1] = (0, 0xFF, 0xFF)
    cv2.imwrite(str(tmp_path / "d.png"), packed)
    depth = combine_depth(read_depth_bytes(tmp_path / "d.png"))
    assert depth.dtype == np.uint16
    assert depth.tolist() == [[0x1234, 0], [0, 0xFFFF]]


@pytest.mark.parametrize("end", [".jpg", ".png"])
def test_red_is_the_first_channel(tmp_path: Path, end: str) -> None:
    """RGB statistics on a BGR picture make skin blue for a pretrained backbone (lesson 17)."""
    bgr = np.zeros((16, 16, 3), np.uint8)
    bgr[..., 2] = 255
    cv2.imwrite(str(tmp_path / f"red{end}"), bgr)
    rgb = read_rgb(tmp_path / f"red{end}")
    assert rgb[..., 0].min() > 250
    assert rgb[..., 1:].max() < 5


@pytest.mark.parametrize("end", [".jpg", ".png"])
def test_a_picture_cut_short_is_an_error(tmp_path: Path, end: str) -> None:
    """Decoders fill the missing part with grey and say nothing: the network would learn from it."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut{end}"
    cv2.imwrite(str(path), noise)
    data = path.read_bytes()
    for content in (data[: len(data) * 2 // 3], b"", b"not a picture"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"cut{end}"):
            read_rgb(path)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        read_rgb(path)


def test_depth_of_another_kind_is_an_error(tmp_path: Path) -> None:
    """A 16-bit PNG holds depth too, but not in HO3D's encoding."""
    cv2.imwrite(str(tmp_path / "d.png"), np.full((4, 4), 4000, np.uint16))
    with pytest.raises(DataError, match="three 8-bit channels"):
        read_depth_bytes(tmp_path / "d.png")
