"""Commands of tests: each has a longest time, ends with all that it started, and says what it had said.

`subprocess.run` ends the command alone when its time is up, and then waits for ever for the pipes that the
command's own processes (torchrun's ranks, a writer's pool) still hold.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
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
    """Kill a process and its descendants (torchrun's ranks have sessions of their own)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold anything; the parent is the second word behind it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    wanted = {pid}
    while more := {child for child, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    for each in wanted:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
