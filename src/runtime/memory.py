"""How much memory a piece of work takes at its peak, as the kernel counts it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Growth of this process's resident memory from its construction to the highest point since.

    Allocations of torch, numpy and gloo are all in it, and nothing that was in use before. Linux only.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # not every C library can
            ctypes.CDLL(None).malloc_trim(0)  # memory that is kept for later would hide what is taken from it
        try:
            _CLEAR.write_text("5", encoding="ascii")  # sets the peak back to what is resident now
            self._before = _resident("VmRSS")
        except OSError:  # another system, or a container that does not let a process reset its peak
            self._before = None

    def growth_bytes(self) -> int | None:
        """Bytes of the peak above the start; None where the kernel does not tell."""
        return None if self._before is None else _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    """A line of the process's status, bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
