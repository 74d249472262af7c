"""What a run says beside its checkpoints: streams, logs, curves, pictures. None of it may end the run.

A terminal goes away, the reader of a pipe dies, a disk is full: then text waits and is written when there is
room again; where nobody can ever read it, it is dropped. Each failure is said once, in what still works.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN)
"""Of a stream: whoever read it will not come back."""
_MOST_BYTES = 1 << 22
"""What may wait for room; of more, the oldest lines are dropped and counted."""
_PIPE_BYTES = 4096
"""What a pipe that can be written to takes without waiting (POSIX: PIPE_BUF)."""
_STALL_S = 1.0
"""Longest wait for a reader that reads too slowly, seconds; after it, text waits without it."""
_log = logging.getLogger("utnet.outlets")
_failures: dict[str, tuple[str, int]] = {}
"""What does not work now: why, and how often it was tried."""


class Guard:
    """Context that keeps an exception instead of letting it leave; KeyboardInterrupt and SystemExit pass."""

    error: Exception | None = None
    """Set on leaving."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


class optional(Guard):  # noqa: N801  (used as a statement)
    """Context of work that a run can do without: what fails inside is one warning, and the run goes on.

    No collective may stand inside. The first failure of its kind is logged, and the first success after it.

    Args:
        what: the work, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        kept = super().__exit__(kind, error, trace)
        if kept:
            note_failure(self.what, f"{type(error).__name__}: {error}")
        elif error is None:
            note_success(self.what)
        return kept


def note_failure(what: str, reason: str) -> None:
    """Count a failure; the first one since `what` last worked is logged."""
    first, count = _failures.get(what, (reason, 0))
    _failures[what] = first, count + 1
    if not count:
        say_failures(what)


def say_failures(*names: str) -> None:
    """Log what does not work now, all of it unless named."""
    for what in names or tuple(_failures):
        _log.warning(f"WARNING: {what}: {_failures[what][0]}. The run goes on without it.")


def note_success(what: str) -> None:
    """Say that what failed works again."""
    if what in _failures:
        _, count = _failures.pop(what)
        times = f"{count} time{'s' * (count > 1)}"
        _log.warning(f"{what} works again, after it failed {times}.")


class Outlet:
    """A text file that is only appended to, or a stream; `write` never raises and never waits for long."""

    def __init__(self, what: str, *, path: Path | None = None, descriptor: int | None = None) -> None:
        """Nothing is opened before something is written.

        Args:
            what: its role, for messages.
            path: the file; it is made where there is none.
            descriptor: of an open stream, which is not closed, in place of a path.
        """
        self.what = what
        self._path = path
        self._descriptor = descriptor
        self._slow = descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._waiting = bytearray()
        self._dropped = 0
        self._gone = False

    def write(self, text: str, encoding: str = "utf-8") -> None:
        """Append text, after what still waits; what the encoding lacks is escaped."""
        if self._gone:
            return
        self._waiting += text.encode(encoding, "backslashreplace")
        if len(self._waiting) > _MOST_BYTES:
            end = self._waiting.find(b"\n", len(self._waiting) - _MOST_BYTES // 2) + 1 or len(self._waiting)
            self._dropped += end
            del self._waiting[:end]
        self.flush()

    def flush(self) -> None:
        """Try to write what waits."""
        if not self._waiting or self._gone:
            return
        try:
            if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
                self._let_go()  # of a file that was removed
            if self._descriptor is None:
                assert self._path is not None
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._descriptor = os.open(self._path, flags, 0o666)
                if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no plain file")
            while self._waiting:
                self._drain(self._descriptor)
        except OSError as error:
            self._failed(error)
        else:
            note_success(self.what)

    @property
    def stopped(self) -> bool:
        """Whether text waits for room."""
        return bool(self._waiting)

    def close(self) -> None:
        """Write what waits if that is possible, and close the file."""
        self.flush()
        self._let_go()

    def _let_go(self) -> None:
        """What is written from here on goes into a file opened anew; a stream is not ours to close."""
        if self._path is not None and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _drain(self, descriptor: int) -> None:
        """Write some of what waits."""
        waiting = self._waiting
        if self._dropped:
            lost = f"[{self._dropped} bytes are missing here: they could not be written]\n"
            waiting = bytearray(lost.encode()) + waiting
        if self._slow:
            stalled = self.what in _failures
            if not select.select([], [descriptor], [], 0.0 if stalled else _STALL_S)[1]:
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        written = os.write(descriptor, waiting[:_PIPE_BYTES] if self._slow else waiting)
        del waiting[:written]
        self._waiting, self._dropped = waiting, 0

    def _failed(self, error: OSError) -> None:
        self._let_go()  # its folder may have been mounted anew
        if self._path is None and error.errno in _GONE:
            self._gone = True
            self._waiting.clear()
            assert self._descriptor is not None
            _to_nowhere(self._descriptor)
        note_failure(self.what, error.strerror or str(error))


class _Stream(io.TextIOBase):
    """sys.stdout or sys.stderr, whose writing never fails."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._outlet = Outlet(name, descriptor=stream.fileno())

    def write(self, text: str) -> int:
        """Write at once."""
        self._outlet.write(text, self.encoding)
        return len(text)

    def flush(self) -> None:
        """Try to write what still waits."""
        self._outlet.flush()

    def fileno(self) -> int:
        """Of the stream, also when nobody reads it any more."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal that is still there."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the terminal."""
        return self._stream.encoding or "utf-8"

    @property
    def buffer(self) -> Any:
        """The bytes below, unguarded."""
        return self._stream.buffer


def secure_streams() -> None:
    """From now on nothing that this process prints can end it; safe to call again.

    Descriptors 0 to 2 are made to exist: where a process was started without them, its next file would get
    one of their numbers, and whatever a library prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            if number:
                note_failure(name, "it was closed when the run started")
            mode = "w" if number else "r"
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115, PTH123  (lives as long as we)
            setattr(sys, name, stream)
        if number and not isinstance(stream, _Stream) and _has_descriptor(stream):
            stream.flush()
            setattr(sys, name, cast(TextIO, _Stream(stream, name)))


def _has_descriptor(stream: TextIO) -> bool:
    """Whether writing to a stream reaches the system; what tests put in its place does not."""
    try:
        return stream.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False


def _to_nowhere(descriptor: int) -> None:
    """Make a descriptor swallow what is written to it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
