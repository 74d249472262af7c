"""Ending a run in order: a signal is remembered, the loop asks, all ranks agree, save and leave."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


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
