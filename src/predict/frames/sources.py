"""Where frames come from: pictures, a video, or an HO3D tree, with depth and a camera."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.meta import ListName
from dataloader.pictures.decode import read_rgb
from src.errors import ConfigError, DataError
from src.predict.frame import Frame
from src.predict.frames.camera import EXAMPLE, Camera, read_camera, require_unit
from src.predict.frames.checks import SAMPLE, require_on_picture, require_range
from src.predict.frames.depth import Depth, DepthUnit, read_depth
from src.predict.frames.files import DEPTHS, PICTURES, VIDEOS, list_files, pair
from src.predict.frames.tree import LISTS, LabelBoxes, beside, is_tree, tree_frames
from src.predict.frames.video import Video
from src.runtime.files.disk import open_plain, read_plain

_MOST_BYTES = 1 << 28


class Source(Protocol):
    """Frames in an order."""

    @property
    def names(self) -> Sequence[str] | None:
        """Of all frames, known before any is decoded; None: a camera, which goes on."""

    @property
    def fps(self) -> float | None:
        """Frames per second of a video; None: of anything else."""

    @property
    def labels(self) -> LabelBoxes | None:
        """The boxes of the frames' labels; None: there are none."""

    def frames(self, skip: Container[str] = ()) -> Iterator[Frame]:
        """The frames whose names are not in `skip`, in order.

        Raises:
            DataError: a file is damaged, or picture, depth and camera are not of one size; names the frame.
        """


@dataclass(frozen=True)
class _Assembler:
    """Makes a frame of a picture: looks up its camera and reads its depth."""

    camera: Camera | None
    labels: LabelBoxes | None
    """Say the camera where no file does."""
    depth: Mapping[str, Path]
    """Files by frame; empty: no depth."""
    unit: DepthUnit

    def frame(self, name: str, rgb: NDArray[np.uint8]) -> Frame:
        height, width = rgb.shape[:2]
        if self.camera is not None:
            self.camera.require_size(name, height, width)
            k = self.camera.intrinsics_px
        else:
            assert self.labels is not None
            k = self.labels.intrinsics_px(name)
        depth = self.read(name).metres if self.depth else None
        if depth is not None and depth.shape != (height, width):
            raise DataError(
                f"{name}: depth is {depth.shape[1]} x {depth.shape[0]} ({self.depth[name].name}), its "
                f"picture {width} x {height}. Depth must lie on the picture pixel by pixel: align it to the "
                "colour camera, do not only resize it"
            )
        return Frame(name, rgb, depth, k)

    def read(self, name: str) -> Depth:
        return read_depth(self.depth[name], self.unit)


@dataclass(frozen=True)
class _Stills:
    """A `Source` of picture files."""

    files: Mapping[str, Path]
    assembler: _Assembler
    labels: LabelBoxes | None
    fps: float | None = None

    @property
    def names(self) -> list[str]:
        return list(self.files)

    def frames(self, skip: Container[str] = ()) -> Iterator[Frame]:
        for name, path in self.files.items():
            if name not in skip:
                yield self.assembler.frame(name, read_picture(path))


@dataclass(frozen=True)
class _Film:
    """A `Source` of a video file."""

    video: Video
    assembler: _Assembler
    labels: LabelBoxes | None = None

    @property
    def names(self) -> list[str]:
        return self.video.names

    @property
    def fps(self) -> float:
        return self.video.fps

    def frames(self, skip: Container[str] = ()) -> Iterator[Frame]:
        for name, rgb in self.video.pictures(skip):
            yield self.assembler.frame(name, rgb)


def open_source(
    rgb: str,
    *,
    depth: str | None = None,
    depth_unit_m: float | None = None,
    camera: Path | None = None,
    split: str | None = None,
    without_depth: bool = False,
) -> Source:
    """The frames of a picture, a folder, a pattern, a video, or an HO3D tree.

    What can be wrong with all frames is looked at here: SAMPLE of them are decoded, spread over the pictures
    (of a video, the first), see `checks.py`.

    Args:
        rgb: path or pattern of the pictures.
        depth: path or pattern of depth that lies on them; None: what an HO3D tree has, unless only a part
            of it is named and `camera` is given; else none.
        depth_unit_m: metres per unit of depth; None: as the camera file or the form of the depth says.
        camera: camera file; None: the annotations of an HO3D tree.
        split: list of an HO3D tree, evaluation unless told.
        without_depth: hide the depth of an HO3D tree.

    Raises:
        ConfigError: arguments that contradict one another, a camera file that is none, no camera, no unit.
        DataError: nothing to read, depth that does not fit, and what `Source.frames` raises.
    """
    lens = None if camera is None else read_camera(Path(camera))
    if depth_unit_m is not None:
        require_unit("--depth-unit-m", depth_unit_m)
    video, files, own, labels = _find(rgb, split)
    names = list(files) if video is None else video.names
    if lens is None and labels is None:
        raise ConfigError(
            f"{rgb}: the camera is not known. Give --camera FILE, a YAML file such as: {EXAMPLE}. Only "
            "pictures of an HO3D tree with their meta/ need none"
        )
    hidden = without_depth or (lens is not None and not is_tree(Path(rgb)))  # depth of another camera, maybe
    paths = {} if own is None or hidden else own
    if depth is not None:
        if Path(depth).suffix.lower() in VIDEOS:
            raise ConfigError(
                f"{depth}: a video does not hold depth in numbers. Give 16-bit PNG or .npy files, one a frame"
            )
        paths = dict(zip(names, pair(names, list_files(depth, DEPTHS, "depth"), depth), strict=True))
    elif depth_unit_m is not None and not paths:
        raise ConfigError("--depth-unit-m: there is no depth that has a unit. Give --depth, or leave it out")
    unit = DepthUnit(depth_unit_m, None if lens is None else lens.depth_unit_m)
    assembler = _Assembler(lens, labels, paths, unit)
    source = _Stills(files, assembler, labels) if video is None else _Film(video, assembler)
    _look_at_sample(source, given=depth is not None)
    return source


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a picture file, its pixels as they are stored.

    Raises:
        DataError: missing, damaged, or of more than 8 bits, as depth is.
    """
    try:
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            picture = read_rgb(path)
            with open_plain(path) as file:
                head = file.read(25)
            deep = head.startswith(b"\x89PNG") and head[24] > 8
        else:
            flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            stored = cv2.imdecode(np.frombuffer(read_plain(path, _MOST_BYTES), np.uint8), flags)
            if stored is None:
                raise ValueError("no picture that OpenCV reads")
            deep = stored.dtype != np.uint8
            picture = np.asarray(stored, np.uint8)
    except (DataError, OSError, ValueError, cv2.error) as error:
        cause = error.__cause__ or error
        why = cause.strerror if isinstance(cause, OSError) else " ".join(str(cause).split())
        raise DataError(f"{path}: the picture cannot be read: {why}. Remove it, or write it anew") from None
    if deep:
        raise DataError(
            f"{path}: the picture has more than 8 bits a channel. Is it depth? Name it with --depth"
        )
    return picture


def _find(
    rgb: str, split: str | None
) -> tuple[Video | None, dict[str, Path], dict[str, Path] | None, LabelBoxes | None]:
    """Video or picture files, and the depth and labels that an HO3D tree has of them."""
    path = Path(rgb)
    if is_tree(path):
        names: dict[str, ListName] = {name: name for name in LISTS}
        if (split or "evaluation") not in names:
            raise ConfigError(f"--split: got {split!r}, want {' or '.join(LISTS)}")
        files, depth, labels = tree_frames(path, names[split or "evaluation"])
        return None, files, depth, labels
    if split is not None:
        raise ConfigError(f"--split {split}: {rgb} is no root of an HO3D tree. Leave it out")
    if path.suffix.lower() in VIDEOS and not path.is_dir():
        return Video(path), {}, None, None
    files = list_files(rgb, PICTURES, "pictures")
    return None, files, *beside(files)


def _look_at_sample(source: _Stills | _Film, *, given: bool) -> None:
    """Read some frames, and refuse depth that cannot be right; where frames lie if it was `given`."""
    names, reader = source.names, source.assembler
    has_depth = bool(reader.depth)
    spread = [names[i] for i in sorted({round(i) for i in np.linspace(0, len(names) - 1, SAMPLE)})]
    chosen = (names if isinstance(source, _Film) else spread)[: SAMPLE if has_depth else 1]
    sample = list(islice(source.frames(skip=set(names) - set(chosen)), len(chosen)))
    if has_depth:
        depths = [reader.read(name) for name in spread]
        require_range([depth.metres for depth in depths], depths[0].unit_m)
    if given:
        require_on_picture(sample)
