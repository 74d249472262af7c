"""train.py's command line in processes forked from a server that has imported it once.

A start of train.py costs seconds of imports and milliseconds of a test's work. What is under test here is
`train.main` with its own process, standard streams, environment and exit status; the start itself, torchrun
and signals are tested by real commands.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.rooms.sources import ROOT

GRACE_S = 60.0
"""Longest time that ranks have to notice that another one failed."""


def _body(
    arguments: list[str],
    environment: dict[str, str],
    out: str,
    err: str,
    plant: Callable[[], None] | None,
) -> None:
    """What a forked process does: take the streams and the environment, then leave with main's status."""
    import train  # the server has it already

    for number, path in ((1, out), (2, err)):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, number)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["train.py", *arguments]
    if plant is not None:
        plant()
    status = train.main(arguments)
    sys.stdout.flush()
    sys.exit(status)


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    ranks: int,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 200.0,
    plant: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`train.main(arguments)` on `ranks` ranks, with the environment that torchrun gives them.

    `plant` (a module's function) is called in each process before main: it breaks what a test wants broken.

    Returns:
        both streams of all ranks, and the largest exit status.

    Raises:
        TimeoutError: a rank did not end; all are ended.
    """
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        out.touch()
        err.touch()
        processes = []
        for rank in range(ranks):
            place = {"OMP_NUM_THREADS": "1", **(env or {})}
            if ranks > 1:
                place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                place |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
            given = (list(arguments), place, str(out), str(err), plant)
            process = context.Process(target=_body, args=given)
            process.start()
            processes.append(process)
        late = _await(processes, timeout_s)
        said = out.read_text(), err.read_text()
        if late:
            raise TimeoutError(
                f"ranks {late} of {ranks} did not end in {timeout_s:g} s, or {GRACE_S:g} s after another "
                f"failed: {list(arguments)}. They said:\n{said[0][-3000:]}\n{said[1][-3000:]}"
            )
        status = max((p.exitcode or 0 for p in processes), key=abs)
        return subprocess.CompletedProcess(list(arguments), status, *said)


def _await(processes: Sequence[ForkServerProcess], timeout_s: float) -> list[int]:
    """Wait for ranks to end; those that did not, and were ended."""
    failed, deadline = False, time.monotonic() + timeout_s
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], timeout=0.5)
        if not failed and any(p.exitcode for p in processes):
            failed, deadline = True, min(deadline, time.monotonic() + GRACE_S)
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
        processes[rank].join(10.0)
    return late
