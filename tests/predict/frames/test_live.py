"""A RealSense, by a stub of its library's interface."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from src.errors import ConfigError, DataError
from src.predict.frames import open_live


class Stub:
    """What of pyrealsense2 is used: 640 x 480, unit 0.00025 m, frame n is all n."""

    stream, format = SimpleNamespace(color=1, depth=2), SimpleNamespace(rgb8="rgb", z16="z")

    def __init__(self, last: int = 99, *, connected: bool = True) -> None:
        self.last, self.connected, self.number, self.stopped, self.aligned_to = last, connected, -1, False, 0
        self.asked: list = []

    def pipeline(self) -> Stub:
        return self

    config = pipeline
    get_device = first_depth_sensor = as_video_stream_profile = get_color_frame = pipeline

    def get_stream(self, kind: int) -> Stub:
        assert kind == self.stream.color
        return self

    def enable_stream(self, *asked: object) -> None:
        self.asked.append(asked)

    def start(self, config: object) -> Stub:
        if not self.connected:
            raise RuntimeError("No device connected")
        return self

    def get_depth_scale(self) -> float:
        return 0.00025

    def get_intrinsics(self) -> SimpleNamespace:
        return SimpleNamespace(fx=610.0, fy=611.0, ppx=320.0, ppy=240.0, coeffs=[0.0] * 5)

    def align(self, kind: int) -> Stub:
        self.aligned_to = kind
        return self

    def process(self, pair: Stub) -> Stub:
        return pair

    def wait_for_frames(self) -> Stub:
        self.number += 1
        if self.number > self.last:
            raise RuntimeError("Frame didn't arrive within 5000")
        return self

    def get_data(self) -> np.ndarray:
        return np.full((480, 640, 3), self.number, np.uint8)

    def get_depth_frame(self) -> SimpleNamespace:
        return SimpleNamespace(get_data=lambda: np.full((480, 640), 2000 + self.number, np.uint16))

    def stop(self) -> None:
        self.stopped = True


def opened(monkeypatch: pytest.MonkeyPatch, stub: Stub) -> Stub:
    monkeypatch.setitem(sys.modules, "pyrealsense2", stub)
    return stub


def test_a_camera_gives_frames_with_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth aligned to colour, K and unit as the device says; numbers go on where a run was interrupted."""
    stub = opened(monkeypatch, Stub())
    source = open_live("realsense")
    stream = source.frames(skip={"live/000000"})
    first, second = itertools.islice(stream, 2)
    assert (source.names, source.fps, stub.aligned_to) == (None, None, stub.stream.color)
    assert [asked[:3] for asked in stub.asked] == [(1, 640, 480), (2, 640, 480)]
    assert (first.name, second.name) == ("live/000001", "live/000002")
    assert first.rgb.max() == 0
    assert second.rgb.min() == 1
    assert first.depth_m is not None
    assert np.allclose(first.depth_m, 0.5)
    assert first.intrinsics_px.tolist() == [[610, 0, 320], [0, 611, 240], [0, 0, 1]]
    stream.close()  # type: ignore[attr-defined]
    assert stub.stopped


def test_a_camera_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library, no device, a cable pulled out, another kind."""
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(ConfigError, match="pip install --group live"):
        open_live("realsense")
    opened(monkeypatch, Stub(connected=False))
    with pytest.raises(DataError, match="No device connected"):
        open_live("realsense")
    stub = opened(monkeypatch, Stub(last=1))
    with pytest.raises(DataError, match="still connected"):
        list(open_live("realsense").frames())
    assert stub.stopped
    with pytest.raises(ConfigError, match="want realsense"):
        open_live("kinect")
