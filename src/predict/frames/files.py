"""Which files a path, a folder or a pattern means, their names, and which depth belongs to which picture."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from src.errors import DataError
from src.runtime.log import get_logger

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
DEPTHS = (".png", ".npy", ".tif", ".tiff")

_NOT_PICTURES = ("depth", "meta")
"""Folders of a data set that lie beside its pictures."""
_SHOWN = 3
_log = get_logger("predict")


def list_files(given: str, endings: tuple[str, ...], what: str) -> dict[str, Path]:
    """Files by name, in natural order.

    A name is the path below the folder, or below the fixed part of the pattern, without its ending; files
    that differ only in their ending keep it. Hidden files are passed by, and below a folder also what lies
    in folders that are called depth or meta.

    Args:
        given: a file, a folder, which is searched with all that is below it, or a pattern (* ? [] **).
        endings: that count, in lower case.
        what: pictures or depth, for messages.

    Raises:
        DataError: nothing is there, or nothing of these endings, or a folder cannot be read.
    """
    path = Path(given)
    if os.path.lexists(path):
        if not path.is_dir():
            if path.suffix.lower() not in endings:
                raise DataError(f"{path}: {what} of this ending are not read, want {' '.join(endings)}")
            return {path.stem: path}
        base, found = path, _below(path)
    elif glob.has_magic(given):
        base = Path(*_until_magic(Path(given).parts[:-1]))
        found = [Path(p) for p in glob.glob(given, recursive=True) if not Path(p).is_dir()]  # noqa: PTH207
    else:
        raise DataError(f"{given}: no such file, folder or pattern of {what}")
    files = [p for p in found if p.suffix.lower() in endings]
    if not files:
        there = _some(sorted(p.name for p in found) or sorted(p.name for p in base.glob("*")))
        verb = "holds no" if path.is_dir() else "matches no"
        raise DataError(f"{given} {verb} {what} ({' '.join(endings)}); there is: {there}")
    files.sort(key=lambda p: _natural(str(p)))
    stems = Counter(p.relative_to(base).with_suffix("") for p in files)
    named = {}
    for file in files:
        below = file.relative_to(base)
        named[(below if stems[below.with_suffix("")] > 1 else below.with_suffix("")).as_posix()] = file
    if len(named) < len(files):  # a.jpg and a.png beside a.jpg.png
        named = {file.relative_to(base).as_posix(): file for file in files}
    return named


def pair(names: Sequence[str], depth: dict[str, Path], given: str) -> list[Path]:
    """The depth file of each picture: of equal name, else of equal last number in the name.

    Args:
        names: of the pictures.
        depth: files by name.
        given: where they are, for messages.

    Raises:
        DataError: a picture has none, or more than one; lists what has no partner.
    """
    if len(names) == len(depth) == 1:
        return list(depth.values())
    if all(name in depth for name in names):
        return [depth[name] for name in names]
    by_number: dict[int | None, list[str]] = defaultdict(list)
    for name in depth:
        by_number[_number(name)].append(name)
    partners = [by_number[n] if (n := _number(name)) is not None else [] for name in names]
    if all(len(found) == 1 for found in partners) and len({found[0] for found in partners}) == len(names):
        pairs = [depth[found[0]] for found in partners]
        _log.info(f"Depth is paired by the last number in the name: {names[0]} with {pairs[0].name}")
        return pairs
    alone = [name for name, found in zip(names, partners, strict=True) if not found and name not in depth]
    what = "the last numbers in the names do not tell which depth belongs to which picture"
    if alone:
        what = f"{len(alone)} of {len(names)} pictures have no depth: {_some(alone)}"
    raise DataError(
        f"{given}: {what}. There are {len(depth)} depth files: {_some(list(depth))}. Give depth the names "
        "or the numbers of the pictures"
    )


def _some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])]) or "nothing"


def _below(folder: Path) -> list[Path]:
    """All plain and odd files below a folder that are not hidden."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: folder cannot be read: {error.strerror}") from None

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_PICTURES]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return found


def _until_magic(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a pattern before the first one with a wildcard."""
    for number, part in enumerate(parts):
        if glob.has_magic(part):
            return parts[:number]
    return parts


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorting key in which 10 comes after 9."""
    parts = re.split(r"([0-9]+)", text)
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts]


def _number(name: str) -> int | None:
    """The last number in a name."""
    found = re.findall(r"[0-9]+", name)
    return int(found[-1]) if found else None
