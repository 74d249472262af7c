"""The store of what is derived: made once from inputs that have a fingerprint, opened by its identity.

Annotation index, official ground truth, crops and baselines can all be made again from their inputs. Each is
a folder of files that never change:

    <place>/<name>-<key>-<mark>/    key: digest of the fingerprint; mark: drawn anew at each making
        derived.json                fingerprint, facts, size and CRC-32 of each file; written last
        ...

It is made in `<name>-<key>.part/`, by one process at a time, and gets its name when it is whole. Whoever has
it open holds a shared lock on its derived.json. It is removed under an exclusive one, so never while a
process of any run has it open. A copy that travels to another process is its identity: there it opens the
very same files, or raises.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.runtime.files import disk
from src.runtime.log import get_logger

WAIT_S = 1800.0
"""Longest wait for another process that makes the same thing, seconds."""

_MOST_BYTES = 1 << 26
"""Longest derived.json that is read: the names of a million sequences."""
MARKER = "derived.json"
_KEY, _MARK = "[0-9a-f]{16}", "[0-9a-f]{8}"
_OFFER_WAIT_S = 20.0
_log = get_logger(__name__)

Fingerprint = Mapping[str, Any]
"""What a thing is made from: plain values that JSON holds."""
FileState = tuple[int, int, int]
"""Inode, size and time of change (ns) of a file: whether it is still the same one, unchanged."""


class Derived:
    """One derived thing, open: its files cannot be removed while this object or a copy of it is in use.

    A pickled copy opens the files when it is first asked for one.
    """

    def __init__(
        self,
        folder: Path,
        what: str,
        content: Mapping[str, Any],
        held: BinaryIO,
        states: dict[str, FileState],
    ) -> None:
        self.folder = folder
        self.place = folder.parent
        """Folder of the store."""
        self.what = what
        self.fingerprint: dict[str, Any] = content["fingerprint"]
        """What it was made from."""
        self.facts: dict[str, Any] = content["facts"]
        """What its maker noted."""
        self._checksums: dict[str, int | None] = {name: crc for name, (_, crc) in content["files"].items()}
        self._states = states
        self._held: BinaryIO | None = held

    def path(self, name: str) -> Path:
        """Where a file stands, for messages."""
        return self.folder / name

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            DataError: it is no longer the file that was found when this thing was opened.
        """
        gone = DataError(
            f"{self.what}: {self.path(name)} is not the file that this run opened when it started: something "
            "else removed, changed or replaced it. Start again (training: with --resume auto)."
        )
        if self._held is None:
            again = _open(self.folder, self.what)
            if again is None:
                raise gone
            self._held, again._held = again._held, None
        try:
            file = self.path(name).open("rb")
        except OSError as error:
            raise gone from error
        if _state(os.fstat(file.fileno())) != self._states.get(name):
            file.close()
            raise gone
        return file

    def array(self, name: str, dtype: Any = None, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """An array that `np.save` wrote, memory-mapped read-only.

        Args:
            name: of the file.
            dtype: what it holds; None: numbers of any kind, but no objects, whose bytes are addresses.
            shape: of each of its rows; None: any.

        Raises:
            DataError: as `open`, or it is no such array.
        """
        with self.open(name) as file:
            try:
                got, fortran, kind = disk.read_array_header(file)
                fits = not kind.hasobject if dtype is None else kind == dtype
                if not fits or (shape is not None and tuple(got[1:]) != shape):
                    raise ValueError(f"it holds {kind} in the shape {got}")
                return np.memmap(file, kind, "r", file.tell(), got, "F" if fortran else "C")
            except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
                raise DataError(
                    f"{self.what}: {self.path(name)} is damaged ({error}). Delete {self.folder}; it is made "
                    "anew."
                ) from error

    def is_whole(self) -> bool:
        """Whether the content of every file has the checksum that was noted; false also if it vanishes."""
        try:
            for name, want in self._checksums.items():
                with self.open(name) as file:
                    if want is not None and disk.crc32(file) != want:
                        return False
        except (OSError, DataError):
            return False
        return True

    def close(self) -> None:
        """Let go of the files; the object is of no further use."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}


@dataclass(frozen=True)
class Store:
    """Where things of one kind are kept.

    A thing that is not there, not whole or made from something else is made anew; what is then no longer
    used by any process is removed.
    """

    place: Path
    """Folder; it is made."""
    name: str
    """First part of the folders' names."""
    what: str
    """What is made, for messages."""
    mend: str = "Set dataset.index_dir to a folder"
    """How to name a place that can be written."""
    keep: int = 0
    """Unused things of other fingerprints that stay, the newest: cheap to keep, dear to make."""
    unsummed: str = ""
    """How names of files begin that carry checksums of their own; the others are summed when it is found."""
    resumable: bool = False
    """A making that was interrupted goes on with the files that it finished."""
    facts: Mapping[str, type] = dataclasses.field(default_factory=dict)
    """Facts that the maker notes, and of which kind: a thing without them is not whole."""

    def find(self, fingerprint: Fingerprint, *, say: bool = False) -> Derived | None:
        """The thing made from `fingerprint`, open and whole; None if there is none.

        Args:
            fingerprint: what it must be made from.
            say: log what is there but damaged.
        """
        wanted = _plain(fingerprint)
        for found in self.all(_key(wanted), say=say):
            if found.fingerprint == wanted:
                return found
        return None

    def all(self, key: str = "", *, say: bool = False) -> Iterator[Derived]:
        """What stands here whole, open, the newest first.

        Args:
            key: of one fingerprint alone; empty: of any.
            say: log what is there but damaged.
        """
        for folder in self._folders(key):
            found = _open(folder, self.what)
            if found is not None:
                noted = (isinstance(found.facts.get(name), kind) for name, kind in self.facts.items())
                if all(noted) and found.is_whole():
                    yield found
                    continue
                found.close()
            if say:
                _log.warning(f"{self.what}: {folder} is damaged or incomplete; it is made anew.")

    def ensure(
        self,
        fingerprint: Fingerprint,
        make: Callable[[Path], Mapping[str, Any]],
        *,
        find: Callable[[bool], Derived | None] | None = None,
        wait_s: float = WAIT_S,
    ) -> Derived:
        """The thing made from `fingerprint`; made if need be, by one process while others wait.

        Args:
            fingerprint: what it is made from.
            make: writes the files into the folder that it is given and returns facts to note. If it raises
                and the store is `resumable`, the files wait for the next call.
            find: looks for one that serves, instead of `find` of the same fingerprint; its argument is `say`.
            wait_s: longest wait for another process, seconds.

        Raises:
            DataError: no place to write, or another process did not end in time; and what `make` raises.
        """
        look = find if find is not None else (lambda say: self.find(fingerprint, say=say))
        if (found := look(False)) is not None:
            return found
        with self._lock(wait_s) as alone:
            if (found := look(True)) is not None:  # another process has made it meanwhile
                return found
            return self._make(_plain(fingerprint), make, alone=alone)

    def offer(self, fingerprint: Fingerprint, make: Callable[[Path], Mapping[str, Any]]) -> str | None:
        """Keep a thing that can be had without: None if it was kept, else why it was not.

        Args:
            fingerprint: what it was made from.
            make: writes its files, as in `ensure`.
        """
        try:
            self.ensure(fingerprint, make, wait_s=_OFFER_WAIT_S).close()
        except OSError as error:
            return error.strerror or str(error)
        except DataError as error:
            return str(error).rstrip(".")
        return None

    def _make(
        self, fingerprint: dict[str, Any], make: Callable[[Path], Mapping[str, Any]], *, alone: bool
    ) -> Derived:
        """Make it and give it its name.

        Where the lock is held (`alone`), whatever is half made has no maker. Elsewhere others may be at work:
        each has a folder of its own, and none goes on with another's.
        """
        name, mark = f"{self.name}-{_key(fingerprint)}", secrets.token_hex(4)
        goes_on = self.resumable and alone
        staging = self.place / (f"{name}.part" if goes_on else f"{name}-{mark}.part")
        with contextlib.suppress(FileExistsError):
            staging.mkdir()
        if staging.is_symlink() or not staging.is_dir():
            so = "is not a folder of UTNet. It was left as it is. Move it away."
            raise DataError(f"{self.what}: {staging} {so}")
        if alone:
            self._remove_half_made(staging)
        try:
            self._seal(staging, fingerprint, make(staging))
            folder = self.place / f"{name}-{mark}"
            staging.rename(folder)
        finally:
            if not goes_on:
                shutil.rmtree(staging, ignore_errors=True)
        disk.sync_folder(self.place)
        made = _open(folder, self.what)
        if made is None:
            raise DataError(f"{self.what}: {folder} was removed while it was opened. Start again.")
        self._retire(folder)
        return made

    def _remove_half_made(self, but: Path) -> None:
        """Remove what an interrupted maker left."""
        for leftover in self.place.glob(f"{self.name}-*.part"):
            if leftover != but and re.fullmatch(f"{re.escape(self.name)}-{_KEY}(-{_MARK})?", leftover.stem):
                shutil.rmtree(leftover, ignore_errors=True)  # of a link it removes nothing

    def _seal(self, folder: Path, fingerprint: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Write derived.json: from now on the folder is whole."""
        files: dict[str, tuple[int, int | None]] = {}
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                disk.sync_file(file)
                summed = not self.unsummed or not path.name.startswith(self.unsummed)
                files[path.name] = os.fstat(file.fileno()).st_size, disk.crc32(file) if summed else None
        content = {"fingerprint": fingerprint, "facts": dict(facts), "files": files}
        with disk.atomic_write(folder / MARKER) as file:
            file.write(json.dumps(content | {"crc32": _content_crc32(content)}, indent=1).encode())

    def _retire(self, current: Path) -> None:
        """Remove what no process has open, but for the newest `keep`."""
        kept = 0
        for folder in self._folders():
            if folder == current:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    marker = stack.enter_context(disk.open_plain(folder / MARKER))
                    if not disk.lock(marker):
                        continue  # without locks nobody can tell what is in use
                except FileNotFoundError:
                    pass  # it never was whole
                except OSError:
                    continue  # in use, or its marker is no file
                else:
                    kept += 1
                    if kept <= self.keep:
                        continue
                shutil.rmtree(folder, ignore_errors=True)  # of a link it removes nothing

    def _folders(self, key: str = "") -> list[Path]:
        """Folders of this store, of one key or of all, the newest first."""
        pattern = re.compile(f"{re.escape(self.name)}-{key or _KEY}-{_MARK}")
        found = []
        with contextlib.suppress(OSError), os.scandir(self.place) as entries:
            for entry in entries:
                if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)))
        return [path for _, path in sorted(found, reverse=True)]

    @contextlib.contextmanager
    def _lock(self, wait_s: float) -> Iterator[bool]:
        """Hold the lock of this store, which dies with its process; false where there are no locks."""
        path = self.place / f"{self.name}.lock"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            file = disk.open_lock(path)
        except OSError as error:
            raise DataError(
                f"{self.what}: cannot write to {self.place} ({error.strerror}). {self.mend} that can be "
                "written."
            ) from error
        with file:
            try:
                alone = disk.lock(file, wait_s=wait_s)
            except BlockingIOError:
                raise DataError(
                    f"{self.what}: waited {wait_s:.0f} s for another process to make it ({path}). Make it "
                    "with one process first, or end that process."
                ) from None
            yield alone


def _open(folder: Path, what: str) -> Derived | None:
    """What stands in a folder, held open; None if it is not whole or is being removed."""
    marker = folder / MARKER
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(disk.open_plain(marker))
            disk.lock(held, shared=True)
            content = json.loads(held.read(_MOST_BYTES))
            if content.pop("crc32") != _content_crc32(content):
                return None
            names = list(content["files"])
            if any("/" in name or name in ("", ".", "..") for name in names):
                return None  # a file of another folder is none of this one
            states = {name: _state((folder / name).stat()) for name in names}
            whole = all(states[name][1] == size for name, (size, _) in content["files"].items())
            whole &= isinstance(content["facts"], dict) and isinstance(content["fingerprint"], dict)
            if not whole or _state(marker.stat()) != _state(os.fstat(held.fileno())):
                return None
            found = Derived(folder, what, content, held, states)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        stack.pop_all()
    return found


def _plain(fingerprint: Fingerprint) -> dict[str, Any]:
    """As it is read back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain


def _key(fingerprint: dict[str, Any]) -> str:
    """16 hex digits of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _content_crc32(content: Mapping[str, Any]) -> int:
    """Of what derived.json says."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _state(status: os.stat_result) -> FileState:
    return status.st_ino, status.st_size, status.st_mtime_ns
