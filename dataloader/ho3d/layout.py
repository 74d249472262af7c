"""Where HO3D keeps what: list files, folders, file names of v2 and v3."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from pathlib import Path

from dataloader.ho3d.meta import ListName
from src.config import DatasetConfig
from src.errors import DataError
from src.runtime.files.disk import read_plain

KINDS = ("rgb", "depth", "meta")
_SUFFIX = {
    "v2": {"rgb": ".png", "depth": ".png", "meta": ".pkl"},
    "v3": {"rgb": ".jpg", "depth": ".png", "meta": ".pkl"},
}
_STAMP_THREADS = 2
_SHOWN = 80
"""Characters of a line that a message shows."""
_LINE = re.compile(r"(?P<sequence>[^/\s]+)/(?P<frame>[0-9]{4,9})")
_UNFIT = re.compile(r"\.{1,2}|.*[\x00-\x1f\x7f-\x9f].*", re.DOTALL)
"""No names of folders inside the data set: those of the folder above, or with characters that no name has."""
_MOST_BYTES = 1 << 24
"""Longest list that is read; that of HO3D_v3 has 1 MB."""
_GET_DATA = (
    "Put HO3D there (README), write a synthetic tree with `python -m dataloader.synthetic --out DIR`, "
    "or set dataset.root_dir."
)


@dataclass(frozen=True, eq=False)
class FrameList:
    """A list file: the frames that count, in its order. Others on disk are never read."""

    name: ListName
    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the file's content."""
        return hashlib.sha256(self.content).hexdigest()

    @functools.cached_property
    def frames(self) -> tuple[tuple[str, int], ...]:
        """(sequence, frame number) of each line.

        Raises:
            DataError: the list is empty or malformed, or names a frame twice.
        """
        return _parse(self.content, self.path)

    @functools.cached_property
    def sequences(self) -> tuple[str, ...]:
        """Sequence names in order of appearance; read without a look at the rest of a line."""
        lines = map(str.strip, _text(self.content).splitlines())
        names = dict.fromkeys(map(itemgetter(0), map(str.partition, lines, repeat("/"))))
        return tuple(name for name in names if name and not _UNFIT.fullmatch(name))


def frame_name(frame: int) -> str:
    """File name of a frame without its ending: four digits or more."""
    return f"{frame:04d}"


def suffix(kind: str, version: str) -> str:
    """File ending of rgb, depth or meta in a release."""
    return _SUFFIX[version][kind]


def frame_path(root: Path, name: str, sequence: str, frame: int, kind: str, version: str) -> Path:
    """Path of one file of one frame."""
    return root / f"{name}/{sequence}/{kind}/{frame_name(frame)}{suffix(kind, version)}"


def read_list(config: DatasetConfig, name: ListName) -> FrameList:
    """Read train.txt or evaluation.txt.

    Raises:
        DataError: no data set, or no list that can be read.
    """
    root = config.root_dir
    path = root / f"{name}.txt"
    if not root.is_dir():
        raise DataError(f"HO3D: no data set: dataset.root_dir={root} is not a folder. {_GET_DATA}")
    if not path.is_file():
        raise DataError(
            f"HO3D: {root} holds no {path.name}, so it is not the root of an HO3D release. {_GET_DATA}"
        )
    try:
        return FrameList(name, path, read_plain(path, _MOST_BYTES))
    except OSError as error:
        raise DataError(
            f"HO3D: {path} cannot be read ({error.strerror}). Restore it from the release."
        ) from error


def require_count(config: DatasetConfig, listed: FrameList, count: int) -> None:
    """The training list has as many frames as dataset.expected_train_frames asks for.

    Raises:
        DataError: it has not.
    """
    want = config.expected_train_frames
    if listed.name == "train" and want is not None and count != want:
        raise DataError(
            f"HO3D: {listed.path} lists {count:,} frames, want {want:,} (dataset.expected_train_frames). "
            "Check the release and the download, or set dataset.expected_train_frames=null."
        )


def folder_stamp(config: DatasetConfig, frames: FrameList, kinds: Sequence[str]) -> str:
    """Hex digest of the times of the listed sequences' folders.

    It changes when a file comes, goes or is replaced; for one rewritten in place it takes `file_stamp`.
    """
    digest = hashlib.sha256()
    for folder in _folders(config, frames, kinds):
        stamp = folder.stat().st_mtime_ns if folder.is_dir() else -1
        digest.update(os.fsencode(f"{folder.parent.name}/{folder.name}:{stamp};"))
    return digest.hexdigest()


def file_stamp(config: DatasetConfig, frames: FrameList, kinds: Sequence[str]) -> str:
    """Hex digest of names, sizes and times of all files in the listed sequences' folders.

    Four times as dear as all else that a second start does, so the folders are read by several threads.
    """
    folders = _folders(config, frames, kinds)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_STAMP_THREADS) as pool:
        for folder, stamp in zip(folders, pool.map(_file_stamp, folders), strict=True):
            digest.update(os.fsencode(f"{folder.parent.name}/{folder.name}:{stamp};"))
    return digest.hexdigest()


def _folders(config: DatasetConfig, frames: FrameList, kinds: Sequence[str]) -> list[Path]:
    """Folders of the listed sequences."""
    root = config.root_dir / frames.name
    return [root / sequence / kind for sequence in frames.sequences for kind in kinds]


def _file_stamp(folder: Path) -> str:
    """Digest of name, size and both times of each file: `cp -p` keeps size and time of change of its content,
    but not that of the file.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return "none"
    try:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208  (of the folder that stays open)
        found = []
        for name in names:
            try:
                found.append(os.stat(name, dir_fd=descriptor))
            except OSError:  # a link to nowhere
                continue
        states = array("q", [n for s in found for n in (s.st_size, s.st_mtime_ns, s.st_ctime_ns)])
        return hashlib.sha256(os.fsencode("/".join(names)) + states.tobytes()).hexdigest()
    finally:
        os.close(descriptor)


def _parse(content: bytes, path: Path) -> tuple[tuple[str, int], ...]:
    """(sequence, frame) of each line, each once."""
    frames: dict[tuple[str, int], None] = {}
    for number, raw in enumerate(_text(content).splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if (
            match is None
            or frame_name(int(match["frame"])) != match["frame"]
            or _UNFIT.fullmatch(match["sequence"])
        ):
            got = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
            raise DataError(
                f"HO3D: {path} line {number}: got {got!r}, want SEQUENCE/FRAME such as ABF10/0042."
            )
        key = (match["sequence"], int(match["frame"]))
        if key in frames:
            raise DataError(f"HO3D: {path} line {number}: {line} is listed twice.")
        frames[key] = None
    if not frames:
        raise DataError(f"HO3D: {path} is empty: no frame is listed. Restore it from the release.")
    return tuple(frames)


def _text(content: bytes) -> str:
    """A list's text; a byte order mark is no part of it; names that are not UTF-8 as by `os.fsdecode`."""
    return content.decode("utf-8-sig", errors="surrogateescape")
