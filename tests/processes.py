"""Commands of tests: each has a longest time, ends with all that it started, and says what it had said.

`subprocess.run` ends the command alone when its time is up, and then waits for ever for the pipes that the
command's own processes (torchrun's ranks, a writer's pool) still hold.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_started: list[subprocess.Popen[str]] = []
"""Commands in the background; `end_all` ends those that a test left."""

_TAIL = 3000
"""Characters of its last words that an error shows."""


def run(
    command: Sequence[str], *, cwd: Path, env: dict[str, str] | None = None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        TimeoutError: it did not end; it and its descendants are ended, and what it said is shown.
    """
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)
        out, err = process.communicate(timeout=30)
        raise TimeoutError(
            f"{' '.join(command)} did not end in {timeout_s:g} s. It said:\n{out[-_TAIL:]}\n{err[-_TAIL:]}"
        ) from None
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def start(
    command: Sequence[str], *, cwd: Path, env: dict[str, str], new_session: bool = False
) -> subprocess.Popen[str]:
    """Start a command in the background, its two streams in one pipe."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=new_session, text=True,
    )  # fmt: skip
    _started.append(process)
    return process


def end_all() -> list[str]:
    """End the background commands that still run; which those were."""
    left = [process for process in _started if process.poll() is None]
    _started.clear()
    for process in left:
        end_tree(process.pid)
        process.wait(30)
    return [" ".join(map(str, process.args)) for process in left]  # type: ignore[union-attr]


def end_tree(pid: int) -> None:
    """Kill a process and its descendants (torchrun's ranks have sessions of their own), and see them gone.

    They are stopped first: one that runs could start another behind our back.

    Raises:
        TimeoutError: one is still there after 30 s.
    """
    wanted: set[int] = set()
    while more := _tree(pid) - wanted:
        _signal_all(more, signal.SIGSTOP)
        wanted |= more
    _signal_all(wanted, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while left := sorted(filter(alive, wanted)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} are still there, 30 s after they were killed")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process is there and not just waiting to be collected."""
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent and what follows; the name in parentheses before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _tree(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    tree = {pid} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    """Send one signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
