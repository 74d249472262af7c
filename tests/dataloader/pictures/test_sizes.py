"""A picture's size from its header: what the decoder would say, for a hundredth of its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloader.ho3d.unusable import FrameError, Reason
from dataloader.pictures import decode
from dataloader.pictures.decode import PictureKind, picture_size, read_depth_bytes
from src.errors import DataError
from tests.dataloader.pictures.files import encoded, jpeg, png, png_of

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
JPEG, PNG = jpeg(NOISE), png(NOISE)


def with_front(front: bytes) -> bytes:
    """A JPEG with bytes between its start and its first segment."""
    return JPEG[:2] + front + JPEG[2:]


def segment(marker: int, size: int) -> bytes:
    """A segment of `size` bytes behind its marker; inside it stands what looks like a start of frame."""
    content = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    return bytes([0xFF, marker]) + size.to_bytes(2, "big") + (content * (size // 9 + 1))[: size - 2]


JPEGS = {
    "plain": JPEG,
    "progressive": jpeg(NOISE, PROGRESSIVE=1),
    "EXIF": with_front(segment(0xE1, 3000)),
    # behind which the next one lies across the end of the first read
    **{f"EXIF {size}": with_front(segment(0xE1, size)) for size in range(4080, 4095, 2)},
    "long EXIF": with_front(segment(0xE1, 65_535) * 3 + segment(0xFE, 700)),
    "filling": with_front(b"\xff\xff\xff"),
}


def test_jpegs_of_all_kinds_have_their_size(tmp_path: Path) -> None:
    """A camera's EXIF thumbnail or colour profile must not hide the size, nor pass for it."""
    for kind, data in JPEGS.items():
        (tmp_path / "1.jpg").write_bytes(data)
        assert picture_size(tmp_path / "1.jpg", "rgb") == (48, 64), kind


@pytest.mark.parametrize(("bits", "colour", "fits"), [
    (8, 2, True), (8, 3, True), (2, 3, True), (16, 2, False), (8, 0, False), (16, 0, False), (8, 6, False),
])  # fmt: skip
def test_depth_is_three_bytes_for_its_header_and_its_decoder(
    tmp_path: Path, bits: int, colour: int, fits: bool
) -> None:
    """A sensor's 16-bit PNG in place of HO3D's three bytes; but an optimiser's palette holds the same."""
    path = tmp_path / "1.png"
    row = bytes(1 + 4 * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] // 8)
    path.write_bytes(b"".join(png_of((2, 4), bits, colour, row * 2).values()))
    assert picture_size(path, "rgb") == (2, 4)
    if fits:
        assert (*picture_size(path, "depth"), 3) == read_depth_bytes(path).shape == (2, 4, 3)
        return
    text = rf"depth has {bits} bits and colour type {colour}, want a PNG of three 8-bit channels"
    with pytest.raises(FrameError, match=text) as got:
        picture_size(path, "depth")
    assert got.value.fault.reason is Reason.FORMAT
    with pytest.raises(DataError, match=rf"1\.png.*{text}"):
        read_depth_bytes(path)


BROKEN: list[tuple[str, PictureKind, dict[str, Any], Reason, str]] = [
    ("1.jpg", "rgb", {}, Reason.MISSING, r"1\.jpg is missing$"),
    ("1.jpg", "rgb", {"1.png": b"x"}, Reason.RELEASE, r"1\.jpg is missing, but 1\.png stands there"),
    ("1.jpg", "rgb", {"1.jpg": b""}, Reason.EMPTY, r"1\.jpg: rgb is empty \(0 bytes\)"),
    ("1.jpg", "rgb", {"1.jpg": PNG}, Reason.FORMAT, "no JPEG, it begins with 89 50 4e 47"),
    ("1.png", "depth", {"1.png": b"<html>404"}, Reason.FORMAT, "no PNG"),
    ("1.jpg", "rgb", {"1.jpg": JPEG[:150]}, Reason.FORMAT, "JPEG without a size"),
    ("1.png", "depth", {"1.png": PNG[:20]}, Reason.FORMAT, "PNG without a size"),
    ("1.jpg", "rgb", {"1.jpg": None}, Reason.FORMAT, r"cannot be read \(Is a directory\)"),
]


@pytest.mark.parametrize(("name", "kind", "files", "reason", "message"), BROKEN)
def test_what_is_no_picture_is_said(
    tmp_path: Path, name: str, kind: PictureKind, files: dict[str, Any], reason: Reason, message: str
) -> None:
    """Found when the index is built, each with its reason, not in the third hour of training."""
    for other, content in files.items():
        (tmp_path / other).mkdir() if content is None else (tmp_path / other).write_bytes(content)
    with pytest.raises(FrameError, match=message) as got:
        picture_size(tmp_path / name, kind)
    assert got.value.fault.reason is reason


@pytest.mark.parametrize(("end", "kind"), [(".jpg", "rgb"), (".png", "depth")])
def test_a_large_picture_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, kind: PictureKind
) -> None:
    """83,325 depth files of 426 KiB are 35 GB: the index must not read them."""
    path, given = tmp_path / f"1{end}", []
    path.write_bytes(encoded(end, np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)))
    name = {".jpg": "jpeg_size", ".png": "png_size"}[end]
    inner = getattr(decode, name)
    monkeypatch.setattr(decode, name, lambda data, **how: (given.append(len(data)), inner(data, **how))[1])
    assert picture_size(path, kind) == (480, 640)
    assert given == [4096]
