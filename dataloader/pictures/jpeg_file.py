"""JPEG as a file: its segments, and damage that its decoder cannot see.

A JPEG has no checksum. Its decoder counts blocks: it knows when they end before their bytes do, or after. A
hole that happens to decode to as many blocks as were there passes. What no encoder writes gives most of
those away. A flipped bit, or a few bytes of another picture, may still look like pixels.

Source of the format: ITU-T T.81, annexes B, C, F and G.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

JPEG_START = b"\xff\xd8"
"""First bytes of a JPEG."""
_QUANTISATION, _HUFFMAN, _PROGRESSIVE, _SCAN, _END = 0xDB, 0xC4, 0xC2, 0xDA, 0xD9
"""Markers: two kinds of tables, the head of a progressive picture, pixels, the end."""
_BREAK = re.compile(rb"\xff(?:[\x01-\xcf\xd8-\xfe]|\xff+[^\xd0-\xd7\xff])", re.DOTALL)
"""What ends a scan: a marker that is not a restart's, or fill bytes and what they lead to."""
_HOLE = bytes(16)
"""Where zeros stand for coefficients, these are more than forty of -1 in a row."""
_COEFFICIENTS = 64
_SEGMENTS = 10_000
"""Segments and fill bytes of a picture; a colour profile takes a few hundred."""


class Segment(NamedTuple):
    """One marker and what belongs to it."""

    marker: int
    content: bytes
    """Without marker and length."""
    start: int
    """Place of the first byte behind the content; of a scan: of its pixels, which go on until"""
    end: int
    """here. Elsewhere it is `start`."""


def segments(data: bytes) -> Iterator[Segment]:
    """Segments of a JPEG up to its end marker, or up to where it is no longer one.

    Raises:
        ValueError: fill bytes stand where a scan's pixels go on, or more segments than a picture has.
    """
    at = len(JPEG_START)
    for _ in range(_SEGMENTS):
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return
        start = end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            found = _BREAK.search(data, start)
            end = found.start() if found else len(data)
            if found and found[0][-1] == 0:
                raise ValueError(f"bytes of 0xFF at {end:,}, among its pixels")
        yield Segment(marker, data[at + 4 : start], start, end)
        at = end
    raise ValueError(f"more than {_SEGMENTS:,} segments")


def require_no_holes(data: bytes) -> None:
    """Refuse what no encoder writes in a JPEG that its decoder took for whole.

    Raises:
        ValueError: zeros among the pixels where they would be coefficients, in a table of quantisation, bytes
            of 0xFF among the pixels, or a progressive picture without its last scans.
    """
    zeros_mean: dict[int, int] = {}
    """By table of coefficients: the symbol whose code is all zeros, which is the first one."""
    bits_left: dict[int, list[int]] = {}
    """By component of a progressive picture: bits of each coefficient that no scan has brought."""
    for marker, content, start, end in segments(data):
        if marker == _QUANTISATION:
            if any(0 in table for table in _byte_tables(content)):
                raise ValueError("zeros in a table of quantisation")
        elif marker == _HUFFMAN:
            zeros_mean |= _first_symbols(content)
        elif marker == _PROGRESSIVE:
            bits_left = {component: [1] * _COEFFICIENTS for component in content[6::3]}
        elif marker == _SCAN:
            components, tables = content[1:-3:2], content[2:-3:2]
            first, last, approximation = content[-3:]
            for component in components:
                if component in bits_left:
                    bits_left[component][first : last + 1] = [approximation & 15] * (last + 1 - first)
            if last and any(_is_coefficient(zeros_mean.get(0x10 | table & 15, 0)) for table in tables):
                hole = data.find(_HOLE, start, end)
                if hole >= 0:
                    raise ValueError(f"a hole of zeros at byte {hole:,}")
    if any(any(bits) for bits in bits_left.values()):
        raise ValueError("its last scans are missing")


def _byte_tables(content: bytes) -> Iterator[bytes]:
    """Quantisation tables of a segment whose numbers are bytes; those of two bytes are passed over."""
    at = 0
    while at < len(content):
        size = _COEFFICIENTS * (1 + (content[at] >> 4))
        if size == _COEFFICIENTS:
            yield content[at + 1 : at + 1 + size]
        at += 1 + size


def _first_symbols(content: bytes) -> dict[int, int]:
    """First symbol of each Huffman table of a segment, by class (0x10: coefficients) and number."""
    first, at = {}, 0
    while at + 17 < len(content):
        first[content[at]] = content[at + 17]
        at += 17 + sum(content[at + 1 : at + 17])
    return first


def _is_coefficient(symbol: int) -> bool:
    """Whether a symbol says more of its block than that it ends: a coefficient, or sixteen zeros."""
    return symbol & 15 > 0 or symbol == 0xF0
