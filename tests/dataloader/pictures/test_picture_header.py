"""A picture's size from its header: what the decoder would say, for a hundredth of its time."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataloader.ho3d.unusable import FrameError, Reason
from dataloader.pictures.decode import read_depth_bytes
from dataloader.pictures.picture_header import PictureKind, picture_size


def encoded(suffix: str, shape: tuple[int, ...] = (48, 64, 3), *flags: int) -> bytes:
    """A picture of noise."""
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return cv2.imencode(suffix, picture, list(flags))[1].tobytes()


def jpeg_with(front: bytes) -> bytes:
    """A JPEG with bytes between its start and its first segment."""
    data = encoded(".jpg")
    return data[:2] + front + data[2:]


def segment(marker: int, size: int) -> bytes:
    """A segment of `size` bytes behind its marker; inside it stands what looks like a start of frame."""
    content = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    return bytes([0xFF, marker]) + size.to_bytes(2, "big") + (content * (size // 9 + 1))[: size - 2]


def png_of(bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of 4 x 2 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 4, 2, bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(12))) if colour == 3 else b""
    row = bytes(1 + 4 * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] // 8)
    data = chunk(b"IHDR", head) + palette + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data + extra


EDGES = range(4080, 4095, 2)
"""Sizes of a first segment behind which the next one lies across the end of the first read."""


@pytest.mark.parametrize(
    "data",
    [
        encoded(".jpg"),
        encoded(".jpg", (48, 64, 3), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(".jpg", (48, 64)),
        encoded(".jpg") + b"\0" * 5000,
        jpeg_with(segment(0xE1, 3000)),
        *(jpeg_with(segment(0xE1, size)) for size in EDGES),
        jpeg_with(segment(0xC4, 300)),
        jpeg_with(segment(0xE1, 65_535) * 3 + segment(0xFE, 700)),
        jpeg_with(b"\xff\xff\xff"),
    ],
    ids=[
        "plain",
        "progressive",
        "grey",
        "trailing",
        "EXIF",
        *map(str, EDGES),
        "table",
        "long EXIF",
        "filling",
    ],
)
def test_jpegs_of_all_kinds_have_their_size(tmp_path: Path, data: bytes) -> None:
    """A camera's EXIF thumbnail or colour profile must not hide the size, nor pass for it."""
    path = tmp_path / "0001.jpg"
    path.write_bytes(data)
    assert picture_size(path, "rgb") == (48, 64)


@pytest.mark.parametrize(("bits", "colour", "fits"), [
    (8, 2, True), (8, 3, True), (2, 3, True), (16, 2, False), (8, 0, False), (16, 0, False), (8, 6, False),
])  # fmt: skip
def test_depth_is_refused_where_the_decoder_refuses_it(
    tmp_path: Path, bits: int, colour: int, fits: bool
) -> None:
    """A sensor's 16-bit PNG in place of HO3D's three bytes; but an optimiser's palette holds the same."""
    path = tmp_path / "0001.png"
    path.write_bytes(png_of(bits, colour))
    assert picture_size(path, "rgb") == (2, 4)
    if fits:
        assert picture_size(path, "depth") == read_depth_bytes(path).shape[:2] == (2, 4)
    else:
        with pytest.raises(FrameError, match=rf"depth has {bits} bits and colour type {colour}, want") as got:
            picture_size(path, "depth")
        assert got.value.fault.reason is Reason.FORMAT


def _write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _beside(path: Path) -> None:
    path.with_suffix({".jpg": ".png", ".png": ".jpg"}[path.suffix]).write_bytes(b"x")


ZERO_HIGH = encoded(".jpg").replace(b"\x08\x00\x30\x00\x40", b"\x08\x00\x00\x00\x40")


@pytest.mark.parametrize(
    ("name", "kind", "make", "reason", "message"),
    [
        ("1.jpg", "rgb", lambda path: None, Reason.MISSING, r"1\.jpg is missing$"),
        ("1.png", "depth", _beside, Reason.MISSING, r"1\.png is missing$"),
        ("1.jpg", "rgb", _beside, Reason.RELEASE, r"1\.jpg is missing, but 1\.png stands there"),
        ("1.png", "rgb", _beside, Reason.RELEASE, r"1\.png is missing, but 1\.jpg stands there"),
        ("1.jpg", "rgb", _write(b""), Reason.EMPTY, r"1\.jpg: rgb is empty \(0 bytes\)"),
        ("1.png", "depth", _write(b""), Reason.EMPTY, r"1\.png: depth is empty \(0 bytes\)"),
        ("1.jpg", "rgb", _write(encoded(".png")), Reason.FORMAT, "no JPEG, it begins with 89 50 4e 47"),
        ("1.png", "rgb", _write(encoded(".jpg")), Reason.FORMAT, "no PNG, it begins with ff d8 ff"),
        ("1.png", "depth", _write(b"<html>404"), Reason.FORMAT, "no PNG"),
        ("1.jpg", "rgb", _write(bytes(5000)), Reason.FORMAT, "no JPEG, it begins with 00 00"),
        ("1.jpg", "rgb", _write(encoded(".jpg")[:150]), Reason.FORMAT, "JPEG without a size"),
        ("1.jpg", "rgb", _write(b"\xff\xd8\xff\xd9"), Reason.FORMAT, "JPEG without a size"),
        ("1.jpg", "rgb", _write(jpeg_with(b"\xff\xda\x00\x08")), Reason.FORMAT, "JPEG without a size"),
        ("1.jpg", "rgb", _write(ZERO_HIGH), Reason.FORMAT, "header says 64 x 0 pixels"),
        ("1.png", "depth", _write(encoded(".png")[:20]), Reason.FORMAT, "PNG without a size"),
        ("1.jpg", "rgb", Path.mkdir, Reason.FORMAT, r"cannot be read \(Is a directory\)"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_said(
    tmp_path: Path, name: str, kind: PictureKind, make: Callable[[Path], object], reason: Reason, message: str
) -> None:
    """Found when the index is built, each with its reason, not in the third hour of training."""
    make(tmp_path / name)
    with pytest.raises(FrameError, match=message) as got:
        picture_size(tmp_path / name, kind)
    assert got.value.fault.reason is reason


def test_a_large_picture_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """83,325 depth files of 426 KiB are 35 GB: the index must not read them."""
    got: list[int] = []
    original = os.pread

    def counted(file: int, size: int, at: int) -> bytes:
        data = original(file, size, at)
        got.append(len(data))
        return data

    monkeypatch.setattr("dataloader.pictures.picture_header.os.pread", counted)
    for suffix, kind in ((".jpg", "rgb"), (".png", "depth")):
        path = tmp_path / f"0001{suffix}"
        path.write_bytes(encoded(suffix, (480, 640, 3)))
        assert picture_size(path, kind) == (480, 640)  # type: ignore[arg-type]
    assert len(got) == 2
    assert sum(got) <= 8192
