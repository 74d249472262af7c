"""Where HO3D keeps what: list files, folders, file names of v2 and v3."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dataloader.ho3d.meta import ListName
from src.config import DatasetConfig
from src.errors import DataError
from src.runtime.files.disk import read_plain

_STAMP_THREADS = 2
_SHOWN = 80
"""Characters of a line that a message shows."""
_LINE = re.compile(r"(?!\.{1,2}/)[^/\s\x00-\x1f\x7f-\x9f]+/([0-9]{4}|[1-9][0-9]{4,8})")
"""Sequence and frame number: what is written otherwise is another frame."""
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
    sha256: str
    """Hex digest of the file's content."""
    lines: tuple[str, ...]
    """Sequence and frame number with a slash between, each once."""

    @functools.cached_property
    def frames(self) -> tuple[tuple[str, int], ...]:
        """(sequence, frame number) of each line."""
        parts = (line.partition("/") for line in self.lines)
        return tuple((sequence, int(frame)) for sequence, _, frame in parts)

    @functools.cached_property
    def sequences(self) -> tuple[str, ...]:
        """Sequence names in order of appearance."""
        return tuple(dict.fromkeys(line.partition("/")[0] for line in self.lines))


def frame_name(frame: int) -> str:
    """File name of a frame without its ending: four digits or more."""
    return f"{frame:04d}"


def frame_path(config: DatasetConfig, frame_id: str, kind: str) -> Path:
    """Path of the rgb, depth or meta of a frame such as `train/ABF10/0042`."""
    folder, _, name = frame_id.rpartition("/")
    suffix = {"rgb": {"v2": ".png", "v3": ".jpg"}[config.version], "depth": ".png", "meta": ".pkl"}[kind]
    return config.root_dir / f"{folder}/{kind}/{name}{suffix}"


def read_list(config: DatasetConfig, name: ListName) -> FrameList:
    """Read train.txt or evaluation.txt.

    Raises:
        DataError: no data set, or no list that can be read; it is empty or malformed, or names a frame twice;
            the training list has another number of frames than dataset.expected_train_frames.
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
        content = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise DataError(
            f"HO3D: {path} cannot be read ({error.strerror}). Restore it from the release."
        ) from error
    lines, want = _parse(content, path), config.expected_train_frames
    if name == "train" and want is not None and len(lines) != want:
        raise DataError(
            f"HO3D: {path} lists {len(lines):,} frames, want {want:,} (dataset.expected_train_frames). "
            "Check the release and the download, or set dataset.expected_train_frames=null."
        )
    return FrameList(name, hashlib.sha256(content).hexdigest(), lines)


def _parse(content: bytes, path: Path) -> tuple[str, ...]:
    """Lines of a list file, blank ones and the spaces around them left out."""
    seen: dict[str, None] = {}
    # A byte order mark is no part of the text; names that are not UTF-8 as by `os.fsdecode`.
    lines = content.decode("utf-8-sig", errors="surrogateescape").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if _LINE.fullmatch(line) is None:
            got = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
            raise DataError(
                f"HO3D: {path} line {number}: got {got!r}, want SEQUENCE/FRAME such as ABF10/0042."
            )
        if line in seen:
            raise DataError(f"HO3D: {path} line {number}: {line} is listed twice.")
        seen[line] = None
    if not seen:
        raise DataError(f"HO3D: {path} is empty: no frame is listed. Restore it from the release.")
    return tuple(seen)


def folder_stamp(config: DatasetConfig, frames: FrameList, kinds: Sequence[str]) -> str:
    """Hex digest of the times of the listed sequences' folders.

    It changes when a file comes, goes or is replaced; for one rewritten in place it takes `file_stamp`.
    """
    return _stamp(config, frames, kinds, lambda path: path.stat().st_mtime_ns if path.is_dir() else -1)


def file_stamp(config: DatasetConfig, frames: FrameList, kinds: Sequence[str]) -> str:
    """Hex digest of names, sizes and times of all files in the listed sequences' folders.

    Four times as dear as all else that a second start does, so the folders are read by several threads.
    """
    return _stamp(config, frames, kinds, _file_stamp)


def _stamp(
    config: DatasetConfig, frames: FrameList, kinds: Sequence[str], of: Callable[[Path], object]
) -> str:
    """Hex digest of what `of` says of the listed sequences' folders."""
    root = config.root_dir / frames.name
    folders = [root / sequence / kind for sequence in frames.sequences for kind in kinds]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_STAMP_THREADS) as pool:
        for folder, stamp in zip(folders, pool.map(of, folders), strict=True):
            digest.update(os.fsencode(f"{folder.parent.name}/{folder.name}:{stamp};"))
    return digest.hexdigest()


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
