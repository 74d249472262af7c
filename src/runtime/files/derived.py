"""The store of what is derived: made once from inputs that have a fingerprint, opened by its identity.

Annotation index, official ground truth, crops, baselines and the hand's arrays can all be made again from
their inputs. Each is a folder of files that never change:

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
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.runtime.files.disk import atomic_write, crc32, lock, open_lock, open_plain, sync_file, sync_folder
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
        self.what = what
        self.fingerprint: dict[str, Any] = content["fingerprint"]
        """What it was made from."""
        self.facts: dict[str, Any] = content["facts"]
        """What its maker noted."""
        self._checksums: dict[str, int | None] = {name: crc for name, (_, crc) in content["files"].items()}
        self._states = states
        self._held: BinaryIO | None = held

    @property
    def place(self) -> Path:
        """Folder of the store."""
        return self.folder.parent

    def path(self, name: str) -> Path:
        """Where a file stands, for messages."""
        return self.folder / name

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            DataError: it is no longer the file that was found when this thing was opened.
        """
        if name not in self._states:
            raise self._gone(name)
        if self._held is None:
            again = _open(self.folder, self.what)
            if again is None:
                raise self._gone(name)
            self._held, again._held = again._held, None
        try:
            file = self.path(name).open("rb")
        except OSError as error:
            raise self._gone(name) from error
        if _state(os.fstat(file.fileno())) != self._states[name]:
            file.close()
            raise self._gone(name)
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
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2_0
                got, fortran, kind = read(file)
                fits = not kind.hasobject if dtype is None else kind == dtype
                if not fits or (shape is not None and tuple(got[1:]) != shape):
                    raise ValueError(f"it holds {kind} in the shape {got}")
                order: Any = "F" if fortran else "C"
                return np.memmap(file, kind, "r", file.tell(), got, order)
            except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
                raise DataError(
                    f"{self.what}: {self.path(name)} is damaged ({error}). Delete {self.folder}; it is made "
                    "anew."
                ) from error

    def is_whole(self) -> bool:
        """Whether the content of every file has the checksum that was noted when it was made."""
        for name, want in self._checksums.items():
            with self.open(name) as file:
                if want is not None and crc32(file) != want:
                    return False
        return True

    def close(self) -> None:
        """Let go of the files; the object is of no further use."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def _gone(self, name: str) -> DataError:
        return DataError(
            f"{self.what}: {self.path(name)} is not the file that this run opened when it started: something "
            "else removed, changed or replaced it. Start again (training: with --resume auto)."
        )


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
            noted = found is not None and all(
                isinstance(found.facts.get(name), kind) for name, kind in self.facts.items()
            )
            if found is not None and noted and _is_whole(found):
                yield found
                continue
            if found is not None:
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
            with self._lock(_OFFER_WAIT_S) as alone:
                made = self.find(fingerprint) or self._make(_plain(fingerprint), make, alone=alone)
        except OSError as error:
            return error.strerror or str(error)
        except DataError as error:
            return str(error).rstrip(".")
        made.close()
        return None

    def staging(self, fingerprint: Fingerprint) -> Path:
        """The folder in which the thing of this fingerprint is made."""
        return self.place / f"{self.name}-{_key(_plain(fingerprint))}.part"

    def _make(
        self, fingerprint: dict[str, Any], make: Callable[[Path], Mapping[str, Any]], *, alone: bool
    ) -> Derived:
        """Make it and give it its name.

        Where the lock is held (`alone`), whatever is half made has no maker. Elsewhere others may be at work:
        each has a folder of its own, and none goes on with another's.
        """
        staging, mark = self.staging(fingerprint), secrets.token_hex(4)
        name = staging.stem
        if alone:
            self._clear(staging)
        else:
            staging = staging.with_name(f"{name}-{mark}.part")
        staging.mkdir(exist_ok=True)
        try:
            self._seal(staging, fingerprint, make(staging))
            folder = self.place / f"{name}-{mark}"
            staging.rename(folder)
        finally:
            if not self.resumable or not alone:
                _remove(staging)
        sync_folder(self.place)
        made = _open(folder, self.what)
        if made is None:
            raise DataError(f"{self.what}: {folder} was removed while it was opened. Start again.")
        self._retire(folder)
        return made

    def _clear(self, staging: Path) -> None:
        """Remove what was half made, but for what can go on."""
        for leftover in self.place.glob(f"{self.name}-*.part"):
            if re.fullmatch(f"{re.escape(self.name)}-{_KEY}(-{_MARK})?", leftover.stem):
                _require_own_folder(leftover, self.what)
                if leftover != staging or not self.resumable:
                    _remove(leftover)

    def _seal(self, folder: Path, fingerprint: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Write derived.json: from now on the folder is whole."""
        files: dict[str, tuple[int, int | None]] = {}
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                sync_file(file)
                summed = not self.unsummed or not path.name.startswith(self.unsummed)
                files[path.name] = os.fstat(file.fileno()).st_size, crc32(file) if summed else None
        content = {"fingerprint": fingerprint, "facts": dict(facts), "files": files}
        with atomic_write(folder / MARKER) as file:
            file.write(json.dumps(content | {"crc32": _content_crc32(content)}, indent=1).encode())

    def _retire(self, current: Path) -> None:
        """Remove what no process has open, but for the newest `keep`."""
        kept = 0
        for folder in self._folders():
            if folder == current:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    marker = stack.enter_context(open_plain(folder / MARKER))
                    if not lock(marker):
                        continue  # without locks nobody can tell what is in use
                except FileNotFoundError:
                    pass  # it never was whole
                except OSError:
                    continue  # in use, or its marker is no file
                else:
                    kept += 1
                    if kept <= self.keep:
                        continue
                with contextlib.suppress(OSError):  # another process was faster, or may write here and not we
                    _remove(folder.rename(folder.with_name(f"{folder.name}.old")))
        for leftover in self.place.glob(f"{self.name}-*.old"):
            if re.fullmatch(f"{re.escape(self.name)}-{_KEY}-{_MARK}", leftover.stem):
                _remove(leftover)

    def _folders(self, key: str = "") -> list[Path]:
        """Folders of this store, of one key or of all, the newest first."""
        pattern = re.compile(f"{re.escape(self.name)}-{key or _KEY}-{_MARK}")
        try:
            with os.scandir(self.place) as entries:
                found = [
                    (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                    for entry in entries
                    if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                ]
        except OSError:
            return []
        return [self.place / name for _, name in sorted(found, reverse=True)]

    @contextlib.contextmanager
    def _lock(self, wait_s: float) -> Iterator[bool]:
        """Hold the lock of this store, which dies with its process; false where there are no locks."""
        path = self.place / f"{self.name}.lock"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            file = open_lock(path)
        except OSError as error:
            raise DataError(
                f"{self.what}: cannot write to {self.place} ({error.strerror}). {self.mend} that can be "
                "written."
            ) from error
        with file:
            self._require_own(file, path)
            try:
                alone = lock(file, wait_s=wait_s)
            except BlockingIOError:
                raise DataError(
                    f"{self.what}: waited {wait_s:.0f} s for another process to make it ({path}). Make it "
                    "with one process first, or end that process."
                ) from None
            yield alone

    def _require_own(self, file: BinaryIO, path: Path) -> None:
        """A lock file of ours is a plain file without content and without a second name."""
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size == 0 and status.st_nlink == 1:
            return
        raise DataError(
            f"{self.what}: {path} is not a lock file of UTNet: want an empty plain file, got "
            f"{stat.filemode(status.st_mode)}, {status.st_size:,} bytes, {status.st_nlink} names. It stays "
            f"as it is. Move it away, or: {self.mend[0].lower()}{self.mend[1:]} of its own."
        )


def _open(folder: Path, what: str) -> Derived | None:
    """What stands in a folder, held open; None if it is not whole or is being removed."""
    marker = folder / MARKER
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(open_plain(marker))
            lock(held, shared=True)
            content = json.loads(held.read(_MOST_BYTES))
            if content.pop("crc32") != _content_crc32(content):
                return None
            names = list(content["files"])
            if any("/" in name or name in ("", ".", "..") for name in names):
                return None  # a file of another folder is none of this one
            states = {name: _state((folder / name).stat()) for name in names}
            whole = all(states[name][1] == size for name, (size, _) in content["files"].items())
            if not whole or _state(marker.stat()) != _state(os.fstat(held.fileno())):
                return None
            found = Derived(folder, what, content, held, states)
            if not isinstance(found.facts, dict) or not isinstance(found.fingerprint, dict):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        stack.pop_all()
    return found


def _is_whole(found: Derived) -> bool:
    """Whether all checksums hold; false also if it vanishes meanwhile."""
    try:
        return found.is_whole()
    except (OSError, DataError):
        return False


def _require_own_folder(path: Path, what: str) -> None:
    """A folder that is worked in must be one, not a link to somewhere else."""
    if path.is_symlink() or not path.is_dir():
        raise DataError(f"{what}: {path} is not a folder of UTNet. It was left as it is. Move it away.")


def _remove(path: Path) -> None:
    """Remove a folder, never what a link points to; what cannot be removed stays."""
    shutil.rmtree(path, ignore_errors=True)


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


def _read_header_2_0(file: BinaryIO) -> tuple[Any, Any, Any]:
    header: tuple[Any, Any, Any] = np.lib.format.read_array_header_2_0(file)
    return header
