"""Camera files: YAML with fx, fy, cx, cy, width, height and, if there is depth, depth_unit_m."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.config_file.yaml_text import MOST_BYTES, YamlError, read_entries
from src.errors import ConfigError, DataError
from src.runtime.files.disk import read_plain

EXAMPLE = "{fx: 615.2, fy: 615.0, cx: 320.1, cy: 241.5, width: 640, height: 480, depth_unit_m: 0.001}"
"""A whole camera file."""
NEEDED = ("fx", "fy", "cx", "cy", "width", "height")
_MATRICES = ("k", "cammat", "camera_matrix", "intrinsics", "intrinsic_matrix", "matrix")
_LEAST_FOCAL_PX = 10.0
"""Less is a focal length in widths of the picture, or in millimetres, rather than in pixels."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera whose pictures have no distortion."""

    path: Path
    intrinsics_px: NDArray[np.float64]
    """(3, 3) K, OpenCV's pixel coordinates."""
    width: int
    height: int
    depth_unit_m: float | None
    """Metres per unit of 16-bit depth; None: the file does not say."""

    def require_size(self, name: str, height: int, width: int) -> None:
        """Refuse a picture that this camera did not take.

        Raises:
            DataError: another size; names the frame, and the K that would fit if the ratio is the same.
        """
        if (height, width) == (self.height, self.width):
            return
        fit = "Give the camera file of these pictures"
        if height * self.width == width * self.height:
            scale = width / self.width
            k = self.intrinsics_px * scale
            cx, cy = (self.intrinsics_px[:2, 2] + 0.5) * scale - 0.5
            fit = (
                f"If they are the same pictures in another size, this would fit: {{fx: {k[0, 0]:g}, fy: "
                f"{k[1, 1]:g}, cx: {cx:g}, cy: {cy:g}, width: {width}, height: {height}}}"
            )
        elif (height, width) == (self.width, self.height):
            fit = "They are turned by 90 degrees: turn the pictures, or calibrate the turned camera"
        raise DataError(
            f"{name}: the picture is {width} x {height}, the camera of {self.path} {self.width} x "
            f"{self.height}. {fit}"
        )


def read_camera(path: Path) -> Camera:
    """Read a camera file.

    Raises:
        ConfigError: it cannot be read, or a key is missing, unknown or not what a camera has; names the key.
    """
    values = _read_values(path)
    _require_known(path, values)
    if missing := [key for key in NEEDED if key not in values]:
        raise ConfigError(f"{path}: {', '.join(missing)} missing. A camera file is, for example: {EXAMPLE}")
    read = {key: _number(path, key, values[key]) for key in values if key != "distortion"}
    width, height = (_whole(path, key, read[key]) for key in ("width", "height"))
    for key in ("fx", "fy"):
        if read[key] < _LEAST_FOCAL_PX:
            raise ConfigError(
                f"{path}: {key}: got {read[key]:g}, want pixels, at least {_LEAST_FOCAL_PX:g}. A focal "
                f"length in widths of the picture is to be multiplied by {width}, one in millimetres divided "
                "by the size of a pixel"
            )
    for key, size, side in (("cx", width, "width"), ("cy", height, "height")):
        if not 0 <= read[key] <= size:
            raise ConfigError(
                f"{path}: {key}: got {read[key]:g}, want pixels inside the picture, 0 to {side}={size}; "
                f"most are near {size / 2:g}"
            )
    unit = read.get("depth_unit_m")
    if unit is not None:
        require_unit(f"{path}: depth_unit_m", unit)
    k = np.array([[read["fx"], 0, read["cx"]], [0, read["fy"], read["cy"]], [0, 0, 1]])
    return Camera(path, k, width, height, unit)


def require_unit(what: str, unit_m: float) -> None:
    """ConfigError unless metres per unit of depth are above 0 and at most 1."""
    if not 0 < unit_m <= 1:
        raise ConfigError(f"{what}: got {unit_m:g}, want metres per unit of depth, such as 0.001")


def _read_values(path: Path) -> dict[str, Any]:
    """Keys and values of the file, whatever they are."""
    try:
        entries = read_entries(read_plain(path, MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: camera file cannot be read: {error.strerror}") from None
    except (YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}. A camera file is, for example: {EXAMPLE}") from None
    for entry in entries:
        if entry.rule:
            raise ConfigError(f"{path} line {entry.line}: {entry.key}: {entry.rule}")
    return {entry.key: entry.value for entry in entries}


def _require_known(path: Path, values: dict[str, Any]) -> None:
    """Refuse keys that a camera file does not have, and lenses that bend lines."""
    known = (*NEEDED, "depth_unit_m", "distortion")
    for key, value in values.items():
        if key == "distortion":
            zeros = value if isinstance(value, list) else [value]
            if any(isinstance(v, bool) or v not in (None, 0) for v in zeros):
                raise ConfigError(
                    f"{path}: distortion: got {value}, want none. Undistort pictures and depth first "
                    "(cv2.undistort), and give the camera of the result"
                )
        elif key.partition(".")[0].lower() in _MATRICES:
            raise ConfigError(
                f"{path}: {key}: a matrix is not read. Write fx = K[0][0], fy = K[1][1], cx = K[0][2], cy = "
                f"K[1][2] and the size: {EXAMPLE}"
            )
        elif key not in known:
            near = difflib.get_close_matches(key.rpartition(".")[2].lower(), known, 1, 0.5)
            meant = f"Is {near[0]} meant? " if near else ""
            raise ConfigError(f"{path}: {key}: no key of a camera file. {meant}It has {', '.join(known)}")


def _number(path: Path, key: str, value: Any) -> float:
    """A value as a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}: {key}: got {value!r}, want a number")
    return float(value)


def _whole(path: Path, key: str, value: float) -> int:
    """A value as a size in pixels."""
    if value < 1 or value != int(value):
        raise ConfigError(f"{path}: {key}: got {value:g}, want whole pixels, at least 1")
    return int(value)
