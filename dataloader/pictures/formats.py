"""What the bytes of a JPEG or PNG say of it, and damage that its decoder does not see.

`ValueError` says what is wrong. A PNG has a checksum in each chunk. A JPEG has none: its decoder counts
blocks, and knows when they end before their bytes do, or after. A hole that happens to decode to as many
blocks as were there passes; what no encoder writes gives most of those away. A flipped bit, or a few bytes of
another picture, may still look like pixels.

Sources: PNG specification, section 11.2 (IHDR); ITU-T T.81, annexes B, C and F (JPEG).
"""

from __future__ import annotations

import re
import struct
import zlib

import simplejpeg

MOST_PIXELS = 1 << 24
"""Of a picture that is decoded: 4096 x 4096, fifty times HO3D's. A header of a few bytes may say any size."""

_MOST_WORK = 1 << 28
"""Pixels times scans of a JPEG: ten scans are usual, hundreds are an attack."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_IHDR, _CHUNK, _CHECKSUM = struct.Struct(">4sIIBB"), struct.Struct(">I4s"), struct.Struct(">I")
"""Kind, width, height, bits and colour type at byte 12 of a PNG; around a chunk, size and kind, and the
checksum of kind and content.
"""
_RGB, _PALETTE = 2, 3
"""PNG's colour types that are decoded to three channels."""
_CHUNKS = 50_000
"""Chunks of a PNG that are looked at: 64 MB in those of 8 kB are as many as 8,000."""

_SEGMENTS = 10_000
"""Segments of a JPEG that are looked at; a colour profile takes a few hundred."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""Begins a JPEG's segment; a restart, a stuffed zero and fill bytes do not."""
_HUFFMAN, _SCAN, _END = b"\xc4", b"\xda", b"\xd9"
_COEFFICIENTS = 0x10
"""Class of the Huffman tables that are not of means."""
_HOLE = bytes(16)
"""Where zeros stand for coefficients, these are more than forty of -1 in a row."""


def is_jpeg(data: bytes) -> bool:
    """Whether a file begins as a JPEG."""
    return data.startswith(_JPEG)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(H, W) of a JPEG whose bytes up to its first pixels are there."""
    if not is_jpeg(data):
        raise ValueError(f"no JPEG, it begins with {data[:8].hex(' ')}")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ValueError(f"JPEG without a size ({error})") from error
    return _modest(height, width, data.count(b"\xff" + _SCAN))


def png_size(data: bytes, *, is_depth: bool) -> tuple[int, int]:
    """(H, W) of a PNG whose first 26 bytes are there; depth must be decoded to three channels of 8 bit."""
    if not data.startswith(_PNG):
        raise ValueError(f"no PNG, it begins with {data[:8].hex(' ')}")
    if data[12:16] != b"IHDR" or len(data) < 26:
        raise ValueError("PNG without a size")
    _, width, height, bits, colour = _IHDR.unpack_from(data, 12)
    if is_depth and (bits, colour) != (8, _RGB) and colour != _PALETTE:
        raise ValueError(
            f"depth has {bits} bits and colour type {colour}, want a PNG of three 8-bit channels"
        )
    return _modest(height, width)


def png_end(data: bytes) -> int:
    """Number of bytes up to the end of a PNG's last chunk, all of whose checksums hold."""
    view, at = memoryview(data), len(_PNG)
    for _ in range(_CHUNKS):
        if at + 12 > len(data):
            break
        size, kind = _CHUNK.unpack_from(data, at)
        stop: int = at + 8 + size
        if stop + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : stop]) != _CHECKSUM.unpack_from(data, stop)[0]:
            raise ValueError(f"the checksum of its chunk {kind!r} at byte {at:,} is wrong")
        at = stop + 4
        if kind == b"IEND":
            return at
    raise ValueError(f"it ends in the chunk at byte {at:,}")


def require_no_holes(data: bytes) -> None:
    """Refuse a JPEG with zeros among its pixels where they would be coefficients, though it decodes."""
    are_coefficients: dict[int, bool] = {}
    """By Huffman table, see `_codes_of_zeros`."""
    at = len(_JPEG) - 1
    for _ in range(_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[1] == _END:
            return
        begin = found.end()
        at = begin + int.from_bytes(data[begin : begin + 2], "big")
        content = data[begin + 2 : at]
        if found[1] == _HUFFMAN:
            are_coefficients |= _codes_of_zeros(content)
        elif found[1] == _SCAN and content[-2:-1] > b"\0":  # it goes on behind the means
            tables = (_COEFFICIENTS | table & 15 for table in content[2:-3:2])
            if any(are_coefficients.get(table) for table in tables):
                after = _MARKER.search(data, at)
                hole = data.find(_HOLE, at, after.start() if after else len(data))
                if hole >= 0:
                    raise ValueError(f"a hole of zeros at byte {hole:,}")
    raise ValueError(f"more than {_SEGMENTS:,} segments")


def _codes_of_zeros(content: bytes) -> dict[int, bool]:
    """By class and number of each Huffman table of a segment: whether zeros, its first code, say more of a
    block than that it ends: a coefficient, or sixteen that are 0.
    """
    found, at = {}, 0
    while at + 17 < len(content):
        symbol = content[at + 17]
        found[content[at]] = symbol & 15 > 0 or symbol == 0xF0
        at += 17 + sum(content[at + 1 : at + 17])
    return found


def _modest(height: int, width: int, scans: int = 1) -> tuple[int, int]:
    """(H, W), if decoding takes no memory or time that no picture of a data set is worth."""
    if not 0 < height * width <= min(MOST_PIXELS, _MOST_WORK // max(scans, 1)):
        times = f" in {scans:,} scans" if scans > 1 else ""
        raise ValueError(f"its header says {width} x {height} pixels{times}, want 1 to {MOST_PIXELS:,}")
    return height, width
