"""Where HO3D keeps what: list files, folders, file names of v2 and v3."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dataloader.meta import ListName
from src.config import DatasetConfig
from src.errors import DataError

KINDS = ("rgb", "depth", "meta")
_SUFFIX = {
    "v2": {"rgb": ".png", "depth": ".png", "meta": ".pkl"},
    "v3": {"rgb": ".jpg", "depth": ".png", "meta": ".pkl"},
}
_LINE = re.compile(r"^(?P<sequence>[^/\s]+)/(?P<frame>\d{4,9})$")
_GET_DATA = (
    "Put HO3D there (README), write a synthetic tree with `python -m dataloader.synthetic --out DIR`, "
    "or set dataset.root_dir."
)


@dataclass(frozen=True)
class FrameList:
    """A list file: the frames that count, in its order. Others on disk are never read."""

    name: ListName
    frames: tuple[tuple[str, int], ...]
    """(sequence, frame number) of each line."""
    sequences: tuple[str, ...]
    """Sequence names in order of appearance."""
    sha256: str
    """Hex digest of the frames listed."""


def frame_name(frame: int) -> str:
    """File name of a frame without its ending: four digits or more."""
    return f"{frame:04d}"


def suffix(kind: str, version: str) -> str:
    """File ending of rgb, depth or meta in a release."""
    return _SUFFIX[version][kind]


def frame_path(root: Path, name: ListName, sequence: str, frame: int, kind: str, version: str) -> Path:
    """Path of one file of one frame."""
    return root / f"{name}/{sequence}/{kind}/{frame_name(frame)}{suffix(kind, version)}"


def read_list(config: DatasetConfig, name: ListName) -> FrameList:
    """Read train.txt or evaluation.txt.

    Raises:
        DataError: no data set, no list, an empty or malformed list, a frame listed twice, or not the number
            of training frames that dataset.expected_train_frames asks for.
    """
    root = config.root_dir
    path = root / f"{name}.txt"
    if not root.is_dir():
        raise DataError(f"HO3D: no data set: dataset.root_dir={root} is not a folder. {_GET_DATA}")
    if not path.is_file():
        raise DataError(
            f"HO3D: {root} holds no {path.name}, so it is not the root of an HO3D release. {_GET_DATA}"
        )
    content = path.read_bytes()
    frames = _parse(content, path)
    want = config.expected_train_frames
    if name == "train" and want is not None and len(frames) != want:
        raise DataError(
            f"HO3D: {path} lists {len(frames):,} frames, want {want:,} (dataset.expected_train_frames). "
            "Check the release and the download, or set dataset.expected_train_frames=null."
        )
    sequences = tuple(dict.fromkeys(sequence for sequence, _ in frames))
    return FrameList(name, frames, sequences, hashlib.sha256(content).hexdigest())


def check_files(config: DatasetConfig, frames: FrameList) -> None:
    """Every listed frame has its picture and its depth on disk; one listing per folder, no file is opened.

    Raises:
        DataError: a file is missing, naming the first and counting all.
    """
    missing: list[Path] = []
    wanted: dict[str, list[int]] = {}
    for sequence, frame in frames.frames:
        wanted.setdefault(sequence, []).append(frame)
    for sequence, numbers in wanted.items():
        for kind in ("rgb", "depth"):
            folder = config.root_dir / frames.name / sequence / kind
            present = _names(folder)
            end = suffix(kind, config.version)
            missing += [
                folder / f"{frame_name(n)}{end}" for n in numbers if f"{frame_name(n)}{end}" not in present
            ]
    if not missing:
        return
    raise DataError(
        f"HO3D {frames.name}: {len(missing):,} files of listed frames are missing (first: {missing[0]}). "
        + _missing_advice(missing[0], config.version)
    )


def folder_stamp(config: DatasetConfig, frames: FrameList) -> str:
    """Hex digest of the listed folders' modification times: changes when a file comes or goes.

    A file edited in place does not change it: after that, delete the index folder.
    """
    digest = hashlib.sha256()
    for sequence in frames.sequences:
        for kind in KINDS:
            folder = config.root_dir / frames.name / sequence / kind
            stamp = folder.stat().st_mtime_ns if folder.is_dir() else -1
            digest.update(f"{sequence}/{kind}:{stamp};".encode())
    return digest.hexdigest()


def _parse(content: bytes, path: Path) -> tuple[tuple[str, int], ...]:
    """(sequence, frame) of each line, each once."""
    frames: dict[tuple[str, int], None] = {}
    for number, raw in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        match = _LINE.match(line)
        if match is None or frame_name(int(match["frame"])) != match["frame"]:
            raise DataError(
                f"HO3D: {path} line {number}: got {line!r}, want SEQUENCE/FRAME such as ABF10/0042."
            )
        key = (match["sequence"], int(match["frame"]))
        if key in frames:
            raise DataError(f"HO3D: {path} line {number}: {line} is listed twice.")
        frames[key] = None
    if not frames:
        raise DataError(f"HO3D: {path} is empty: no frame is listed. Restore it from the release.")
    return tuple(frames)


def _names(folder: Path) -> set[str]:
    """File names inside a folder; empty where it does not exist."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _missing_advice(path: Path, version: str) -> str:
    """What to do about a missing picture."""
    other = {"v2": "v3", "v3": "v2"}[version]
    if path.parent.name == "rgb" and path.with_suffix(suffix("rgb", other)).exists():
        return f"The folder holds {suffix('rgb', other)} pictures: set dataset.version={other}."
    return f"Re-extract {path.parent.parent.name}, or take the frames out of the list file."
