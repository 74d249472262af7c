"""Ending a run in order: a signal is remembered, the loop asks, all ranks agree, save and leave."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.util import Finalize
from types import FrameType

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


class StopRequest:
    """Remembers the first stop signal (TERM, INT, HUP, USR1); a second INT ends the process at once.

    torchrun resets nohup's ignored SIGHUP in its workers, so a closed terminal reaches them: it is caught
    here.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Catch the signals from now on (main thread only)."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.received = self.received or signal.Signals(number).name
