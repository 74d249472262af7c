"""A picture is whole when its decoder says so: damage is refused by name, bytes behind the end are not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataloader.pictures import decode
from dataloader.pictures.decode import read_depth_bytes, read_rgb
from src.errors import DataError

Reader = Callable[[Path], np.ndarray]
SIZE = (240, 320)
HALF, FULL, WIDE = (getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("420", "444", "422"))
FORMS = [
    {"quality": 95},
    {"quality": 75},
    {"quality": 90, "sampling": FULL},
    {"quality": 98},
    {"quality": 60, "sampling": WIDE},
    {"quality": 90, "optimised": 1},
    {"quality": 85, "progressive": 1},
    {"quality": 95, "restart": 8},
    {"quality": 90, "grey": True},
    {"quality": 30, "optimised": 1, "sampling": FULL},
]
"""How JPEGs are written; what is not said is as OpenCV does it."""


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, 3) of blobs and sensor noise, with about the entropy of a photograph."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(rng.uniform(0, 256, (9, 12, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs + rng.normal(0, 4, blobs.shape), 0, 255).astype(np.uint8)


def jpeg(
    pixels: np.ndarray,
    quality: int = 95,
    sampling: int = HALF,
    optimised: int = 0,
    progressive: int = 0,
    restart: int = 0,
    grey: bool = False,
) -> bytes:
    """One JPEG."""
    options = {"QUALITY": quality, "SAMPLING_FACTOR": sampling, "OPTIMIZE": optimised}
    options |= {"PROGRESSIVE": progressive, "RST_INTERVAL": restart}
    flat = [
        number for name, value in options.items() for number in (getattr(cv2, f"IMWRITE_JPEG_{name}"), value)
    ]
    return cv2.imencode(".jpg", pixels[..., 1] if grey else pixels, flat)[1].tobytes()


def png(pixels: np.ndarray) -> bytes:
    """One PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def depth_picture(seed: int) -> np.ndarray:
    """(h, w, 3) of HO3D's depth: bytes B = 0, G, R."""
    depth = 4000 + 20 * picture(seed)[..., 0].astype(np.uint16)
    depth[: seed * 9] = 0
    return np.stack([np.zeros_like(depth), depth >> 8, depth & 255], axis=-1).astype(np.uint8)


def opencv(data: bytes, flags: int = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) -> np.ndarray:
    """What OpenCV decodes of a whole file."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert pixels is not None, "the test's own picture cannot be decoded"
    return pixels


def first_scan(data: bytes) -> int:
    """Where a JPEG's first pixels are."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def hole(data: bytes, start: int, end: int, fill: bytes = b"\0") -> bytes:
    """Bytes `start` to `end` lost, their place kept."""
    return data[:start] + fill * (end - start) + data[end:]


def losses(data: bytes, rng: np.random.Generator, kept: int) -> dict[str, bytes]:
    """Losses of a copy; `kept` bytes at the end survive where the end does."""
    size = len(data)
    torn = int(rng.integers(size // 2, size - 200))
    return {
        "middle zeroed": hole(data, size // 3, 2 * size // 3),
        "middle third cut out": data[: size // 3] + data[2 * size // 3 :],
        "half zeroed before a kept end": hole(data, size // 2, size - kept),
        "torn": data[:torn],
        "torn, with the end of another": data[:torn] + data[-kept:],
        "a disk's block zeroed": hole(data, size // 2 & ~511, (size // 2 & ~511) + 512),
    }


def flipped(data: bytes, bit: int) -> bytes:
    """One bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def silent(path: Path, read: Reader, data: bytes, whole: np.ndarray) -> str:
    """ "": refused with the file's name, or the pixels of the whole file; else what happened."""
    path.write_bytes(data)
    try:
        pixels = read(path)
    except DataError as error:
        return "" if str(path) in str(error) and "Re-extract" in str(error) else f"says {error}"
    return "" if np.array_equal(pixels, whole) else "decoded to other pixels"


def test_damaged_jpegs_are_refused_by_name(tmp_path: Path) -> None:
    """libjpeg fills holes with grey or with noise and goes on; the network would learn both."""
    rng = np.random.default_rng(0)
    found = {}
    for k, form in enumerate(FORMS):
        data = jpeg(picture(k), **form)
        whole = opencv(data)
        for name, damaged in losses(data, rng, kept=2).items():
            found[k, name] = silent(tmp_path / f"{k}.jpg", read_rgb, damaged, whole)
    assert len(found) >= 50
    assert {key: what for key, what in found.items() if what} == {}


def test_damaged_pngs_are_refused_by_name(tmp_path: Path) -> None:
    """Colour (HO3D v2) and depth; a single bit of depth is a wall of another distance."""
    rng = np.random.default_rng(0)
    found = {}
    kinds: list[tuple[Reader, np.ndarray, int]] = [
        (read_rgb, picture(1), cv2.IMREAD_COLOR_RGB),
        (read_rgb, picture(2)[..., 0], cv2.IMREAD_COLOR_RGB),
        (read_depth_bytes, depth_picture(3), cv2.IMREAD_UNCHANGED),
        (read_depth_bytes, depth_picture(4), cv2.IMREAD_UNCHANGED),
    ]
    for k, (read, pixels, flags) in enumerate(kinds):
        data = png(pixels)
        whole = opencv(data, flags)
        bits = {f"bit {bit}": flipped(data, bit) for bit in rng.integers(0, 8 * len(data), 10)}
        for name, damaged in (losses(data, rng, kept=12) | bits).items():
            found[k, name] = silent(tmp_path / f"{k}.png", read, damaged, whole)
    assert len(found) >= 50
    assert {key: what for key, what in found.items() if what} == {}


def test_bytes_behind_the_end_are_no_damage(tmp_path: Path) -> None:
    """Archives and cameras pad files, phones append a second picture: the first one is whole."""
    tails = {
        "zeros": bytes(4096),
        "ones": b"\xff" * 512,
        "text": b"camera 3, 2024-05-01\n" * 20,
        "an end again": b"\xff\xd9",
        "a torn picture": jpeg(picture(9))[:3000],
        "a second picture": jpeg(picture(9)),
        "a second PNG": png(picture(9)),
    }
    files: list[tuple[Reader, str, bytes, int]] = [
        *((read_rgb, "a.jpg", jpeg(picture(k), **FORMS[k]), cv2.IMREAD_COLOR_RGB) for k in (0, 6, 7)),
        (read_rgb, "a.png", png(picture(0)), cv2.IMREAD_COLOR_RGB),
        (read_depth_bytes, "d.png", png(depth_picture(0)), cv2.IMREAD_UNCHANGED),
    ]
    for read, name, data, flags in files:
        for what, tail in tails.items():
            path = tmp_path / name
            path.write_bytes(data + tail)
            assert np.array_equal(read(path), opencv(data, flags)), f"{name} with {what} behind it"


@pytest.mark.parametrize("form", [form for form in FORMS if "progressive" not in form], ids=str)
def test_small_holes_that_decode_to_as_many_blocks_are_found(tmp_path: Path, form: dict[str, Any]) -> None:
    """libjpeg counts blocks. Zeros are codes too: every second hole of 64 bytes comes out even there."""
    data = jpeg(picture(5), **form)
    whole, begin = opencv(data), first_scan(data)
    for size in (16, 40, 64):
        for at in np.linspace(begin, len(data) - 80, 20).astype(int):
            what = silent(tmp_path / "a.jpg", read_rgb, hole(data, at, at + size), whole)
            assert what == "", f"hole of {size} at {at:,} of {len(data):,}: {what}"


def test_ones_before_a_stuffed_zero_are_found(tmp_path: Path) -> None:
    """0xFF in a row are fill bytes to libjpeg: before a zero it takes them all for one byte of pixels."""
    data = jpeg(picture(5), 98)
    whole, begin = opencv(data), first_scan(data)
    stuffed = [at for at in range(begin + 16, len(data)) if data[at : at + 2] == b"\xff\x00"]
    for at in stuffed[:: len(stuffed) // 30]:
        what = silent(tmp_path / "a.jpg", read_rgb, hole(data, at - 16, at, b"\xff"), whole)
        assert what == "", f"ones before {at:,} of {len(data):,}: {what}"


def test_a_hole_in_the_tables_is_found(tmp_path: Path) -> None:
    """A table with zeros decodes: all coefficients of those waves are gone from the picture."""
    data = jpeg(picture(5))
    path = tmp_path / "a.jpg"
    for table in range(2):
        at = [k for k in range(first_scan(data)) if data[k : k + 2] == b"\xff\xdb"][table]
        path.write_bytes(hole(data, at + 30, at + 38))
        with pytest.raises(DataError, match=r"a\.jpg.*zeros in a table"):
            read_rgb(path)


def test_a_progressive_picture_without_its_last_scans_is_found(tmp_path: Path) -> None:
    """Cut between two scans it is a valid file: all of the picture is there, without its detail."""
    data = jpeg(picture(5), progressive=1)
    scans = [k for k in range(len(data)) if data[k : k + 2] == b"\xff\xda"]
    assert len(scans) > 4
    path = tmp_path / "a.jpg"
    for at in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, at)  # those of the scan stand right before it
        path.write_bytes(data[: tables if at - tables < 200 else at] + b"\xff\xd9")
        with pytest.raises(DataError, match=r"a\.jpg.*scans are missing"):
            read_rgb(path)


def plain_pictures() -> Iterator[tuple[str, np.ndarray]]:
    """Pictures whose JPEGs hold long runs of equal bytes, and ordinary ones of odd sizes."""
    y, x = np.mgrid[:64, :96]
    yield from ((f"all {value}", np.full((64, 96, 3), value, np.uint8)) for value in (0, 128, 255))
    yield "slope", np.repeat((2 * x)[..., None], 3, axis=-1).astype(np.uint8)
    yield "squares", np.repeat(((x // 8 + y // 8) % 2 * 255)[..., None], 3, axis=-1).astype(np.uint8)
    half = picture(3, (64, 96))
    half[:, 40:] = 0
    yield "half black", half
    for size in ((1, 1), (7, 17), (33, 15), (64, 96)):
        yield f"odd {size}", picture(4, size)


@pytest.mark.parametrize("quality", [20, 75, 100])
def test_whole_pictures_are_accepted_with_opencvs_pixels(tmp_path: Path, quality: int) -> None:
    """Another decoder may not move a result by one grey level, nor refuse a black picture for its zeros."""
    path = tmp_path / "a.jpg"
    forms = [{}, {"sampling": FULL}, {"sampling": WIDE}, {"optimised": 1}, {"progressive": 1}, {"restart": 3}]
    for name, pixels in plain_pictures():
        for form in (*forms, {"grey": True}, {"grey": True, "optimised": 1}):
            path.write_bytes(jpeg(pixels, quality, **form))
            assert np.array_equal(read_rgb(path), opencv(path.read_bytes())), f"{name}, {form}"


def test_a_picture_is_not_turned_by_its_orientation_tag(tmp_path: Path) -> None:
    """The camera matrix belongs to the pixels as they are stored, in a JPEG as in a PNG."""
    data = jpeg(picture(6))
    tag = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)  # turn by 90 degrees
    exif = b"Exif\0\0" + tag
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert opencv(turned, cv2.IMREAD_COLOR_RGB).shape == (SIZE[1], SIZE[0], 3)
    (tmp_path / "a.jpg").write_bytes(turned)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), opencv(data))
    plain = png(picture(6))
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk(b"eXIf", tag) + plain[33:])
    assert np.array_equal(read_rgb(tmp_path / "a.png"), opencv(plain))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_every_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    """In every field, that of a comment included, which OpenCV passes over without a look at its checksum."""
    data = png(picture(7, (3, 4)))
    data = data[:33] + chunk(b"tEXt", b"Comment\0a hand") + data[33:]
    whole = opencv(data)
    path = tmp_path / "a.png"
    found = [bit for bit in range(0, 8 * len(data), 3) if silent(path, read_rgb, flipped(data, bit), whole)]
    assert found == []
    path.write_bytes(flipped(data, 8 * 46))  # in the comment
    with pytest.raises(DataError, match=r"a\.png.*checksum of its chunk b'tEXt' at byte 33"):
        read_rgb(path)


def test_a_flipped_length_never_reaches_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the memory that the length asks for before it looks for the bytes: a GiB by one bit."""
    data = png(picture(7))
    path = tmp_path / "a.png"
    path.write_bytes(flipped(data, 8 * 33 + 6))
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("OpenCV was given a damaged file"))
    with pytest.raises(DataError, match=r"a\.png.*ends in the chunk at byte 33"):
        read_rgb(path)


@pytest.mark.parametrize("lost", ["rows", "zlib's checksum", "IDAT", "IEND"])
def test_a_png_of_right_checksums_without_all_its_rows_is_found(tmp_path: Path, lost: str) -> None:
    """A writer that died, or a chunk that was lost as a whole, leaves no wrong checksum behind."""
    pixels = depth_picture(1)
    rows = np.concatenate([np.zeros((SIZE[0], 1), np.uint8), pixels[..., ::-1].reshape(SIZE[0], -1)], axis=1)
    packed = zlib.compress(rows.tobytes())
    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, 2, 0, 0, 0)
    parts = {"start": b"\x89PNG\r\n\x1a\n", "IHDR": chunk(b"IHDR", head), "IDAT": chunk(b"IDAT", packed)}
    parts["IEND"] = chunk(b"IEND", b"")
    path = tmp_path / "d.png"
    path.write_bytes(b"".join(parts.values()))
    assert np.array_equal(read_depth_bytes(path), pixels)
    if lost == "rows":
        parts["IDAT"] = chunk(b"IDAT", zlib.compress(rows[: SIZE[0] // 2].tobytes()))
    elif lost == "zlib's checksum":
        parts["IDAT"] = chunk(b"IDAT", packed[:-1] + bytes([packed[-1] ^ 1]))
    else:
        del parts[lost]
    path.write_bytes(b"".join(parts.values()))
    with pytest.raises(DataError, match=r"d\.png: picture is not whole.*Re-extract"):
        read_depth_bytes(path)


def test_depth_that_was_saved_as_a_jpeg_is_refused(tmp_path: Path) -> None:
    """Its two digits are of one number: loss in the high one moves a wall by centimetres."""
    path = tmp_path / "d.png"
    path.write_bytes(jpeg(depth_picture(1)))
    with pytest.raises(DataError, match=r"d\.png.*no PNG"):
        read_depth_bytes(path)
