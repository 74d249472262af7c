"""Frames of a camera: Intel RealSense, by the optional library pyrealsense2 (`pip install --group live`)."""

from __future__ import annotations

import importlib
from collections.abc import Container, Iterator
from itertools import count
from typing import Any

import numpy as np

from src.errors import ConfigError, DataError
from src.predict.frame import Frame
from src.runtime.log import get_logger

_SIZE = (640, 480)
_FPS = 30
_log = get_logger("predict")


def open_live(kind: str) -> RealSense:
    """A camera that is connected.

    Args:
        kind: `realsense`.

    Raises:
        ConfigError: another kind, or its library is not installed.
        DataError: no camera answers.
    """
    if kind != "realsense":
        raise ConfigError(f"live: got {kind!r}, want realsense")
    try:
        library = importlib.import_module("pyrealsense2")
    except ImportError as error:
        raise ConfigError(
            f"live: pyrealsense2 is needed ({error}). Install it: .venv/bin/pip install "
            "--group live, in the folder of this program"
        ) from None
    return RealSense(library)


class RealSense:
    """Colour with depth aligned to it; camera and unit as the device says them.

    Raises:
        DataError: no camera answers, or it has no depth.
    """

    names = None
    fps = None
    labels = None

    def __init__(self, library: Any) -> None:
        self._pipeline, config = library.pipeline(), library.config()
        config.enable_stream(library.stream.color, *_SIZE, library.format.rgb8, _FPS)
        config.enable_stream(library.stream.depth, *_SIZE, library.format.z16, _FPS)
        try:
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            raise DataError(f"RealSense: {error}. Connect the camera, and close what else uses it") from None
        self._align = library.align(library.stream.color)
        self._unit_m = float(profile.get_device().first_depth_sensor().get_depth_scale())
        lens = profile.get_stream(library.stream.color).as_video_stream_profile().get_intrinsics()
        self._k = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]])
        if any(lens.coeffs):
            _log.warning(
                f"WARNING: RealSense: its colour lens bends lines ({lens.coeffs}), which is not undone"
            )

    def frames(self, skip: Container[str] = ()) -> Iterator[Frame]:
        """`live/000000` and so on until the caller stops; numbers in `skip` are not given again.

        Raises:
            DataError: the camera stopped answering.
        """
        names = (name for number in count() if (name := f"live/{number:06d}") not in skip)
        try:
            for name in names:
                try:
                    pair = self._align.process(self._pipeline.wait_for_frames())
                except RuntimeError as error:
                    raise DataError(f"RealSense: {error}. Is the camera still connected?") from None
                rgb = np.array(pair.get_color_frame().get_data(), np.uint8)
                depth = np.array(pair.get_depth_frame().get_data(), np.float32) * np.float32(self._unit_m)
                yield Frame(name, rgb, depth, self._k)
        finally:
            self._pipeline.stop()
