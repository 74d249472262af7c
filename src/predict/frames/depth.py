"""Depth files -> metres: 16-bit PNG or TIFF with a unit, HO3D's packed PNG, and float files in metres."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.pictures.decode import combine_depth
from dataloader.pictures.formats import png_end, png_size
from src.errors import ConfigError, DataError
from src.runtime.files.disk import read_plain
from src.schema import DEPTH_UNIT_M

UNITS_M = {
    0.001: "RealSense D400, Azure Kinect, Kinect v2, Orbbec, most data sets",
    0.00025: "RealSense L515",
    0.000125: "RealSense SR300",
    0.0002: "TUM's sets",
    1.0: "metres",
}
"""Metres per unit, and whose unit it is."""

_MOST_BYTES = 1 << 28
_GREY, _RGB, _PALETTE = 0, 2, 3
"""PNG's colour types."""


@dataclass(frozen=True)
class DepthUnit:
    """Metres per unit of depth: what the user says, and what the camera file says."""

    given: float | None = None
    """Holds for whole numbers and for floats."""
    of_camera: float | None = None
    """Holds for whole numbers; floats are metres."""


class Depth(NamedTuple):
    """What a file holds."""

    metres: NDArray[np.float32]
    """(H, W) z of the camera, 0 where nothing was measured."""
    unit_m: float
    """By which the stored numbers were multiplied."""


def read_depth(path: Path, unit: DepthUnit) -> Depth:
    """Depth of a file.

    Raises:
        DataError: missing, damaged, or of a form that holds no depth (8 bit, colours).
        ConfigError: whole numbers without a unit, or another unit for HO3D's own form.
    """
    ending = path.suffix.lower()
    stored = _read(path, {".png": _decode_png, ".npy": _decode_npy}.get(ending, _decode_tiff))
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.ndim == 3 and ending == ".png":
        return _unpack(path, stored, unit)
    kind, size = stored.dtype.kind, stored.dtype.itemsize
    if stored.ndim != 2 or kind not in "uif" or size < 2:
        raise DataError(
            f"{path}: depth has the shape {stored.shape} and the type {stored.dtype}, want (height, width) "
            "of 16-bit numbers or floats. 8 bits are too few for depth: export what the camera measured"
        )
    metres = 1.0 if kind == "f" else unit.of_camera
    factor = metres if unit.given is None else unit.given
    if factor is None:
        table = ", ".join(f"{m:g} ({whose})" for m, whose in UNITS_M.items() if m < 1)
        raise ConfigError(
            f"{path}: depth in whole numbers needs its unit: --depth-unit-m, or depth_unit_m in the camera "
            f"file. Likely metres per unit: {table}"
        )
    depth = stored.astype(np.float32) * np.float32(factor)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return Depth(depth, factor)


def _unpack(path: Path, stored: NDArray[Any], unit: DepthUnit) -> Depth:
    """Depth in HO3D's form: R + 256 G, and nothing in B."""
    if np.count_nonzero(stored[..., 0]) > stored[..., 0].size // 4:
        raise DataError(
            f"{path}: a picture of depth in colours or greys, not depth. Want 16-bit PNG, .npy in metres, or "
            "HO3D's form (R + 256 G, B empty)"
        )
    if unit.given is not None and not np.isclose(unit.given, DEPTH_UNIT_M, rtol=1e-3):
        raise ConfigError(
            f"{path}: depth in HO3D's form (R + 256 G) has the unit {DEPTH_UNIT_M:.9g} m, --depth-unit-m "
            f"says {unit.given:g}. Leave it out"
        )
    metres = combine_depth(stored[..., :3]).astype(np.float32) * np.float32(DEPTH_UNIT_M)
    return Depth(metres, DEPTH_UNIT_M)


def _read(path: Path, decoder: Any) -> NDArray[Any]:
    """What a decoder makes of a file, or an error that names it."""
    try:
        return np.asarray(decoder(read_plain(path, _MOST_BYTES)))
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, cv2.error) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise DataError(f"{path}: depth cannot be read: {why}. Remove it, or write it anew") from None


def _decode_png(data: bytes) -> NDArray[Any]:
    """One channel of 16 bits, or B, G, R of 8."""
    png_size(data, is_depth=False)
    bits, colour = data[24], data[25]
    if (bits, colour) not in ((16, _GREY), (8, _RGB), (8, _PALETTE)):
        raise ValueError(
            f"it has {bits} bits and colour type {colour}, want one channel of 16 bits, or HO3D's three of 8"
        )
    stored = cv2.imdecode(np.frombuffer(data, np.uint8, png_end(data)), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise ValueError("its compressed rows are not whole")
    return np.asarray(stored)


def _decode_tiff(data: bytes) -> NDArray[Any]:
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise ValueError("no TIFF that OpenCV reads")
    return np.asarray(stored)


def _decode_npy(data: bytes) -> NDArray[Any]:
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
