"""Memory: large arrays that go back to the system at once, and how much a piece of work takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def mapped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A CPU tensor of zeros in pages of its own, which the system gets back as soon as nobody holds it.

    malloc keeps large arrays that were freed once for later: a process that collects after every epoch would
    hold last epoch's arrays beside this one's.

    Args:
        shape: any, also with a 0 in it.
        dtype: any.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.empty(*shape, dtype=dtype)
    pages = mmap.mmap(-1, count * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)  # which holds `pages`


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
