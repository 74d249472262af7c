"""A picture is whole when its decoder says so: damage is refused by name, bytes behind the end are not."""

from __future__ import annotations

import contextlib
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataloader.pictures import decode
from dataloader.pictures.decode import combine_depth, read_depth_bytes, read_rgb
from src.errors import DataError
from tests.dataloader.pictures.files import SIZE, chunk, depth_picture, jpeg, picture, png, png_of

Reader = Callable[[Path], np.ndarray]
FULL, WIDE = (getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("444", "422"))
FORMS: list[dict[str, int]] = [
    {"QUALITY": 98},
    {"QUALITY": 60, "SAMPLING_FACTOR": WIDE},
    {"QUALITY": 30, "OPTIMIZE": 1, "SAMPLING_FACTOR": FULL},
    {"QUALITY": 95, "RST_INTERVAL": 8},
    {"QUALITY": 85, "PROGRESSIVE": 1},
]
"""How JPEGs are written; what is not said is as OpenCV does it."""
COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
PNGS: list[tuple[Reader, np.ndarray, int]] = [
    (read_rgb, picture(1), COLOUR),
    (read_rgb, picture(2)[..., 0], COLOUR),
    (read_depth_bytes, depth_picture(3), cv2.IMREAD_UNCHANGED),
]
"""Colour as HO3D v2 has it, and depth."""


def opencv(data: bytes, flags: int = COLOUR) -> np.ndarray:
    """What OpenCV decodes of a whole file."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert pixels is not None, "the test's own picture cannot be decoded"
    return pixels


def hole(data: bytes, start: int, end: int) -> bytes:
    """Bytes `start` to `end` lost, their place kept."""
    return data[:start] + bytes(end - start) + data[end:]


def flipped(data: bytes, bit: int) -> bytes:
    """One bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def losses(data: bytes, kept: int) -> dict[str, bytes]:
    """Losses of a copy; `kept` bytes at the end survive where the end does."""
    size, torn = len(data), len(data) * 3 // 4
    return {
        "middle third cut out": data[: size // 3] + data[2 * size // 3 :],
        "half zeroed before a kept end": hole(data, size // 2, size - kept),
        "torn, with the end of another": data[:torn] + data[-kept:],
        "a disk's block zeroed": hole(data, size // 2 & ~511, (size // 2 & ~511) + 512),
        "empty": b"",
    }


def silent(path: Path, read: Reader, data: bytes, whole: np.ndarray) -> str:
    """ "": refused with the file's name, or the pixels of the whole file; else what happened."""
    path.write_bytes(data)
    try:
        pixels = read(path)
    except DataError as error:
        return "" if str(path) in str(error) and "Re-extract" in str(error) else f"says {error}"
    return "" if np.array_equal(pixels, whole) else "decoded to other pixels"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_damaged_jpeg_is_refused_by_name(tmp_path: Path, form: dict[str, int]) -> None:
    """libjpeg fills holes with grey or with noise and goes on; the network would learn both (lesson 27).

    It counts blocks. Zeros are codes too: every second hole of 64 bytes comes out even there.
    """
    data = jpeg(picture(5), **form)
    whole, damaged = opencv(data), losses(data, kept=2)
    if "PROGRESSIVE" not in form:
        first = data.index(b"\xff\xda") + 14
        for size in (16, 40, 64):
            for at in np.linspace(first, len(data) - 80, 20).astype(int):
                damaged[f"{size} bytes at {at:,}"] = hole(data, at, at + size)
    found = {what: silent(tmp_path / "a.jpg", read_rgb, changed, whole) for what, changed in damaged.items()}
    assert {what: how for what, how in found.items() if how} == {}


@pytest.mark.parametrize(("read", "pixels", "flags"), PNGS)
def test_a_damaged_png_is_refused_by_name(
    tmp_path: Path, read: Reader, pixels: np.ndarray, flags: int
) -> None:
    """A single bit of depth is a wall of another distance."""
    data = png(pixels)
    bits = np.random.default_rng(0).integers(0, 8 * len(data), 10)
    damaged = losses(data, kept=12) | {f"bit {bit}": flipped(data, bit) for bit in bits.tolist()}
    whole = opencv(data, flags)
    found = {what: silent(tmp_path / "a.png", read, changed, whole) for what, changed in damaged.items()}
    assert {what: how for what, how in found.items() if how} == {}
    with pytest.raises(DataError, match=r"b\.png: picture cannot be read: No such file"):
        read(tmp_path / "b.png")


def test_bytes_behind_the_end_are_no_damage(tmp_path: Path) -> None:
    """Archives and cameras pad files, phones append a second picture: the first one is whole."""
    tails = [bytes(4096), b"\xff" * 512, b"\xff\xd9", jpeg(picture(9)), png(picture(9))[:3000]]
    files: list[tuple[Reader, bytes, int]] = [
        *((read_rgb, jpeg(picture(k), **FORMS[k]), COLOUR) for k in (0, 3, 4)),
        *((read, png(pixels), flags) for read, pixels, flags in PNGS),
    ]
    path = tmp_path / "a"
    for k, (read, data, flags) in enumerate(files):
        for tail in tails:
            path.write_bytes(data + tail)
            assert np.array_equal(read(path), opencv(data, flags)), f"file {k} with {tail[:20]!r} behind it"


def test_whole_pictures_are_accepted_with_opencvs_pixels(tmp_path: Path) -> None:
    """Another decoder may not move a result by one grey level, nor refuse a black picture for its zeros."""
    y, x = np.mgrid[:64, :96]
    pictures = [np.full((64, 96, 3), value, np.uint8) for value in (0, 128, 255)]  # long runs of equal bytes
    pictures += [np.repeat(((x // 8 + y // 8) % 2 * 255)[..., None], 3, axis=-1).astype(np.uint8)]
    pictures += [picture(4, size) for size in ((1, 1), (7, 17), (33, 15))]
    path = tmp_path / "a.jpg"
    for k, form in itertools.product(range(len(pictures)), FORMS):
        for shown in (pictures[k], pictures[k][..., 1]):
            path.write_bytes(jpeg(shown, **form))
            assert np.array_equal(read_rgb(path), opencv(path.read_bytes())), f"{k}, {form}"


def test_a_picture_is_not_turned_by_its_orientation_tag(tmp_path: Path) -> None:
    """The camera matrix belongs to the pixels as they are stored, in a JPEG as in a PNG."""
    data, plain = jpeg(picture(6)), png(picture(6))
    tag = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)  # turn by 90 degrees
    exif = b"Exif\0\0" + tag
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert opencv(turned, cv2.IMREAD_COLOR_RGB).shape == (SIZE[1], SIZE[0], 3)
    (tmp_path / "a.jpg").write_bytes(turned)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), opencv(data))
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk(b"eXIf", tag) + plain[33:])
    assert np.array_equal(read_rgb(tmp_path / "a.png"), opencv(plain))


def test_every_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    """In every field, that of a comment included, which OpenCV passes over without a look at its checksum."""
    data = png(picture(7, (3, 4)))
    data = data[:33] + chunk(b"tEXt", b"Comment\0a hand") + data[33:]
    whole, path = opencv(data), tmp_path / "a.png"
    assert not any(silent(path, read_rgb, flipped(data, bit), whole) for bit in range(0, 8 * len(data), 3))
    path.write_bytes(flipped(data, 8 * 46))  # in the comment
    with pytest.raises(DataError, match=r"a\.png.*checksum of its chunk b'tEXt' at byte 33"):
        read_rgb(path)


def test_a_flipped_length_never_reaches_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the memory that the length asks for before it looks for the bytes: a GiB by one bit."""
    path = tmp_path / "a.png"
    path.write_bytes(flipped(png(picture(7)), 8 * 33 + 6))
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("OpenCV was given a damaged file"))
    with pytest.raises(DataError, match=r"a\.png.*ends in the chunk at byte 33"):
        read_rgb(path)


@pytest.mark.parametrize("lost", ["", "rows", "zlib's checksum", "IDAT", "IEND"])
def test_a_png_of_right_checksums_without_all_its_rows_is_found(tmp_path: Path, lost: str) -> None:
    """A writer that died, or a chunk that was lost as a whole, leaves no wrong checksum behind."""
    pixels, path = depth_picture(1), tmp_path / "d.png"
    rows = np.concatenate([np.zeros((SIZE[0], 1), np.uint8), pixels[..., ::-1].reshape(SIZE[0], -1)], axis=1)
    parts = png_of(SIZE, 8, 2, rows[: SIZE[0] // (2 if lost == "rows" else 1)].tobytes())
    if lost == "zlib's checksum":
        packed = zlib.compress(rows.tobytes())
        parts["IDAT"] = chunk(b"IDAT", packed[:-1] + bytes([packed[-1] ^ 1]))
    parts.pop(lost, None)
    path.write_bytes(b"".join(parts.values()))
    with pytest.raises(DataError, match=r"d\.png.*Re-extract") if lost else contextlib.nullcontext():
        assert np.array_equal(read_depth_bytes(path), pixels)


def test_depth_bytes_are_combined_without_overflow(tmp_path: Path) -> None:
    """uint8 * 256 overflows: every depth beyond 32 mm would be wrong (lesson 18)."""
    packed = np.array([[(0, 0x12, 0x34), (0, 0, 0), (0, 0xFF, 0xFF)]], np.uint8)  # B, G, R
    (tmp_path / "d.png").write_bytes(png(packed))
    depth = combine_depth(read_depth_bytes(tmp_path / "d.png"))
    assert (depth.dtype, depth.tolist()) == (np.uint16, [[0x1234, 0, 0xFFFF]])


@pytest.mark.parametrize("write", [jpeg, png])
def test_red_is_the_first_channel(tmp_path: Path, write: Callable[[Any], bytes]) -> None:
    """RGB statistics on a BGR picture make skin blue for a pretrained backbone (lesson 17)."""
    (tmp_path / "red").write_bytes(write(np.full((16, 16, 3), (0, 0, 255), np.uint8)))
    rgb = read_rgb(tmp_path / "red")
    assert rgb[..., 0].min() > 250
    assert rgb[..., 1:].max() < 5
