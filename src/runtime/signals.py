"""Ending a run in order: a signal is remembered, the loop asks, all ranks agree, save and leave."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes started inside inherit a mask that stop signals do not pass.

    torchrun and terminals signal whole process groups. Helpers that died of it would take the run down before
    it has saved; masked, they live until the run closes them, or vanishes. This process gets the signals that
    came meanwhile on leaving.
    """
    # Its start, which a forkserver would do inside, unblocks signals again.
    resource_tracker.ensure_running()
    Finalize(None, end_helpers, exitpriority=0)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_helpers() -> None:
    """End helper processes by a signal that no mask stops: multiprocessing sends TERM and waits for ever."""
    # torch's handler would take their end for a fault.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _ChildWatch:
    """Answers SIGCHLD as another handler does, but only inside."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler
        self._inside = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._inside:
            self._handler(number, frame)

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False


def child_watch() -> contextlib.AbstractContextManager[None]:
    """Context of waiting for a batch: only inside does a loader process that died raise torch's RuntimeError.

    torch raises it from a signal handler, in the middle of whatever the process does: a weight update, a
    checkpoint. Call it after the processes were started.
    """
    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _ChildWatch):
        return handler
    if not callable(handler):  # no loader process was ever started
        return contextlib.nullcontext()
    watch = _ChildWatch(handler)
    signal.signal(signal.SIGCHLD, watch)
    return watch


def interrupt_on_stop() -> None:
    """From now on, until a `StopRequest` is installed, a stop signal raises KeyboardInterrupt with its name:
    there is nothing to save yet, but something to clean up.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


class StopRequest:
    """Remembers the first stop signal (TERM, INT, HUP, USR1); a second INT ends the process at once.

    torchrun resets nohup's ignored SIGHUP in its workers, so a closed terminal reaches them: it is caught
    here.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Catch the signals from now on (main thread only).

        A HUP that nohup ignores stays ignored; torchrun undoes that in its ranks, so there it is caught.
        """
        for number in _SIGNALS:
            kept = number == signal.SIGHUP and "TORCHELASTIC_RUN_ID" not in os.environ
            if not kept or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.received = self.received or signal.Signals(number).name
