"""From what a user names to frames, and what is refused before the first one is predicted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.errors import DataError, UTNetError
from src.predict.frames import open_source
from tests.predict.frames.scenes import scene, write, write_camera, write_frames, write_video


def test_pictures_and_depth_become_frames(tmp_path: Path) -> None:
    """RGB, metres and K of each; what is done is passed by without being read."""
    write_frames(tmp_path)
    source = open_source(str(tmp_path / "color"), depth=str(tmp_path / "depth"), camera=tmp_path / "cam.yaml")
    assert source.names == ["color_0", "color_1", "color_2"]
    assert source.fps is None
    assert source.labels is None
    for number, frame in enumerate(source.frames()):
        rgb, depth = scene(number)
        assert frame.name == f"color_{number}"
        assert np.array_equal(frame.rgb, rgb)
        assert frame.depth_m is not None
        assert np.allclose(frame.depth_m, depth / 1000)
        assert frame.intrinsics_px[0].tolist() == [150.5, 0, 79.5]
    (tmp_path / "color/color_1.png").unlink()
    assert [f.name for f in source.frames(skip={"color_1"})] == ["color_0", "color_2"]
    with pytest.raises(DataError, match=r"color_1\.png: the picture cannot be read: No such file"):
        list(source.frames())


@pytest.mark.parametrize("ending", [".bmp", ".tiff", ".webp", ".jpg", ".jpeg"])
def test_other_pictures_show_the_same(tmp_path: Path, ending: str) -> None:
    """Red is red in all formats."""
    write(tmp_path / f"a{ending}", scene(0)[0])
    camera = write_camera(tmp_path / "cam.yaml")
    (frame,) = open_source(str(tmp_path / f"a{ending}"), camera=camera).frames()
    assert frame.depth_m is None
    assert frame.rgb.dtype == np.uint8
    assert np.abs(frame.rgb.astype(int) - scene(0)[0]).mean() < 8


def open_at(folder: Path, **changed: object) -> None:
    """Open the frames of `write_frames` with other arguments."""
    arguments: dict = {"depth": str(folder / "depth"), "camera": folder / "cam.yaml", **changed}
    open_source(str(arguments.pop("rgb", folder / "color")), **arguments)


def _resized(folder: Path) -> None:
    for number in range(3):
        write(folder / f"depth/depth_{number}.png", cv2.resize(scene(number)[1], (80, 60)))


def _emptied(folder: Path) -> None:
    for number in range(3):
        write(folder / f"depth/depth_{number}.png", np.zeros((120, 160), np.uint16))


WRONG: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no camera": (lambda _: None, {"camera": None}, "the camera is not known. Give --camera .*fx: "),
    "another camera": (
        lambda f: write_camera(f / "cam.yaml", width=320, height=240),
        {},
        "color_0: the picture is 160 x 120, the camera .* 320 x 240.*would fit",
    ),
    "no unit": (lambda f: write_camera(f / "cam.yaml"), {}, "needs its unit"),
    "millimetres as metres": (lambda _: None, {"depth_unit_m": 1.0}, r"With 0\.001 \(RealSense"),
    "depth of another size": (
        _resized,
        {},
        r"color_0: depth is 80 x 60 \(depth_0.png\), its picture 160 x 120",
    ),
    "empty depth": (_emptied, {}, "no pixel is measured in any of the 3 frames"),
    "no such unit": (lambda _: None, {"depth_unit_m": -1.0}, "--depth-unit-m: got -1"),
    "unit without depth": (lambda _: None, {"depth": None, "depth_unit_m": 0.001}, "there is no depth"),
    "depth as a video": (lambda _: None, {"depth": "d.mp4"}, "a video does not hold depth in numbers"),
    "split of a folder": (lambda _: None, {"split": "train"}, "no root of an HO3D tree"),
    "torn picture": (
        lambda f: (f / "color/color_0.png").write_bytes(b"\x89PNG"),
        {},
        "color_0.png: the picture",
    ),
    "depth as pictures": (lambda _: None, {"rgb": "depth"}, "Is it depth\\? Name it with --depth"),
    "one depth lost": (
        lambda f: (f / "depth/depth_1.png").unlink(),
        {},
        "1 of 3 pictures have no depth: color_1",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_line_before_anything_is_predicted(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first overlay it would be half a run."""
    write_frames(tmp_path)
    spoil, arguments, says = WRONG[what]
    spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UTNetError, match=says) as error:
        open_at(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_a_frame_that_is_unlike_the_others_is_named(tmp_path: Path) -> None:
    """What the sample has not seen is looked at when its turn comes."""
    write_frames(tmp_path, 20)
    source = open_source(str(tmp_path / "color"), depth=str(tmp_path / "depth"), camera=tmp_path / "cam.yaml")
    write(tmp_path / "depth/depth_4.png", np.ones((10, 10), np.uint16))
    with pytest.raises(DataError, match="color_4: depth is 10 x 10"):
        list(source.frames())


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mov", ".mkv"])
def test_a_video_gives_all_its_frames(tmp_path: Path, ending: str) -> None:
    """Named by their number, with depth of the same number."""
    write_video(tmp_path / f"clip{ending}")
    write_frames(tmp_path, 12)
    source = open_source(
        str(tmp_path / f"clip{ending}"), depth=str(tmp_path / "depth"), camera=tmp_path / "cam.yaml"
    )
    assert source.fps == 25
    assert source.names is not None
    assert len(source.names) == 12
    frames = list(source.frames(skip={"clip/000001"}))
    assert [f.name for f in frames] == [f"clip/{n:06d}" for n in range(12) if n != 1]
    assert np.abs(frames[4].rgb.astype(int) - scene(5)[0]).mean() < 12
    assert frames[4].depth_m is not None
    assert np.allclose(frames[4].depth_m, scene(5)[1] / 1000)


def test_a_cut_video_is_never_a_shorter_one(tmp_path: Path) -> None:
    """Half of a recording would look like the whole."""
    camera = write_camera(tmp_path / "cam.yaml")
    for name in ("a.avi", "b.mp4"):
        write_video(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(DataError, match=r"says that it has 12 frames, only \d+ can be decoded"):
        list(open_source(str(tmp_path / "a.avi"), camera=camera).frames())
    with pytest.raises(DataError, match="no video that can be decoded"):
        open_source(str(tmp_path / "b.mp4"), camera=camera)
    with pytest.raises(DataError, match="No such file"):
        open_source(str(tmp_path / "c.mp4"), camera=camera)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write into it."""
    for name in ("a.png", "a.mp4", "a.bmp"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="no plain file"):
            open_source(str(tmp_path / name), camera=write_camera(tmp_path / "cam.yaml"))
