"""Which torchrun started this process. To be imported before all that takes seconds: whoever asks late may
find that it is gone already, and its place taken by process 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_RUN_ID = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Agent:
    """A process, told from a later one of the same number by when it started."""

    pid: int
    started: str

    def lives(self) -> bool:
        """Whether it is still there."""
        return self.started != "" and _stat(self.pid)[1] == self.started


def _stat(pid: int) -> tuple[int, str]:
    """Parent and start of a process, in ticks since the machine's own; (0, '') where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, ""
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), "" if fields[0] in "ZX" else fields[19]


def _holds(path: str, text: str) -> bool:
    try:
        return os.fsencode(text) in Path(path).read_bytes()
    except OSError:
        return False


def _agent() -> Agent | None:
    """The nearest ancestor that torchrun did not give this run's name to; None without torchrun."""
    if not (run := os.environ.get(_RUN_ID)):
        return None
    pid = os.getppid()
    while pid > 1 and _holds(f"/proc/{pid}/environ", f"{_RUN_ID}={run}\0"):  # a script around this process
        pid = _stat(pid)[0]
    if pid <= 1 and not _holds("/proc/1/cmdline", "torch"):
        return Agent(pid, "")  # it is gone already; in a container torchrun may be process 1 itself
    return Agent(pid, _stat(pid)[1])


AGENT = _agent()
"""Of this process."""
