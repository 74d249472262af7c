"""How a process was started: what an environment may say, and what ties ranks to torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from src.errors import ConfigError
from src.runtime.ranks import launch, parent
from src.runtime.ranks.launch import (
    Place,
    place_from_environment,
    rank_from_environment,
    reach_ranks,
    starts_again,
)
from tests.processes import alive
from tests.rooms.sources import ROOT

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Nothing but these of what launchers set."""
    for name in (*NAMES, *launch._COPIES, *launch._COPIES.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_place_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone without it; one rank of a torchrun is no less launched; one copy under another launcher
    (`srun -n 1 python train.py`), or a shell inside an allocation of several tasks, is a run.
    """
    for values in ({}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "4"}, {"PMI_SIZE": "1"}):
        environment(monkeypatch, **values)
        assert place_from_environment() == Place()
    environment(monkeypatch, **{**TWO, "RANK": "5", "WORLD_SIZE": "8"}, LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    assert place_from_environment() == Place(5, 8, 1, 4, launched=True)
    environment(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert place_from_environment() == Place(0, 1, 0, 1, launched=True)
    environment(monkeypatch, **TWO, SLURM_PROCID="0", SLURM_NTASKS="2")
    assert place_from_environment().world == 2


TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
WRONG = [
    ({"WORLD_SIZE": "2"}, r"WORLD_SIZE='2' and no RANK"),
    ({**TWO, "RANK": ""}, r"WORLD_SIZE='2' and no RANK"),
    ({"RANK": "1"}, r"RANK='1' and no WORLD_SIZE"),
    ({**TWO, "RANK": "one"}, r"RANK='one', which is no number"),
    ({**TWO, "WORLD_SIZE": "2.0"}, r"WORLD_SIZE='2\.0', which is no number"),
    ({**TWO, "LOCAL_RANK": "x"}, r"LOCAL_RANK='x'"),
    ({**TWO, "RANK": "2"}, r"RANK=2 of WORLD_SIZE=2: want 0 to 1"),
    ({**TWO, "RANK": "-1"}, r"RANK=-1 of WORLD_SIZE=2"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, r"no MASTER_ADDR and no MASTER_PORT"),
    ({**TWO, "MASTER_PORT": ""}, r"no MASTER_PORT:"),
    ({**TWO, "MASTER_PORT": "abc"}, r"MASTER_PORT='abc', which is"),
    ({**TWO, "MASTER_PORT": "99999"}, r"MASTER_PORT=99999: want 0 to 65535"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, r"4 copies .*SLURM_STEP_NUM_TASKS=4"),
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}, r"3 copies"),
    ({"PMI_RANK": "0", "PMI_SIZE": "2"}, r"2 copies"),
]


@pytest.mark.parametrize(("values", "text"), WRONG, ids=[text for _, text in WRONG])
def test_half_an_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], text: str
) -> None:
    """A traceback at best, else two runs that each believe to be the only one."""
    environment(monkeypatch, **values)
    with pytest.raises(ConfigError, match=text):
        place_from_environment()
    assert rank_from_environment() in (0, 1, 2), "messages need a rank before anything was checked"


@pytest.mark.parametrize(("most", "now", "again"), [("2", "0", True), ("2", "2", False), ("0", "0", False)])
def test_torchrun_starts_again_while_it_has_starts_left(
    monkeypatch: pytest.MonkeyPatch, most: str, now: str, again: bool
) -> None:
    """An agreed stop with any status but 0 would be undone."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", most)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", now)
    assert starts_again() is again
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    assert not starts_again()


def test_each_start_on_one_machine_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of the ranks of the start before are still in torchrun's store; nobody answers there."""
    kept = dist.HashStore()
    monkeypatch.setattr(launch.dist, "rendezvous", lambda *a, **k: iter([(kept, 0, 2)]))
    seen = []
    for start in ("0", "1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        store = reach_ranks(Place(0, 2, 0, 2, launched=True), 5.0)
        seen.append(store.check(["address"]))
        store.set("address", start)
    assert seen == [False, False, False]
    # On several machines each torchrun counts for itself: the names must be the same all the same.
    assert reach_ranks(Place(0, 2, 0, 1, launched=True), 5.0) is kept


def test_ranks_that_do_not_meet_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """47 lines of C++ do not say which address was wrong."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment(monkeypatch, **{**TWO, "MASTER_PORT": port})
    with pytest.raises(ConfigError, match=r"rank 0 of 2 did not meet the others at .*:\d+ in 1 s \("):
        reach_ranks(Place(0, 2, 0, 1, launched=True), 1.0)


PARENT = """
import os, subprocess, sys
variables = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
child = subprocess.Popen(sys.argv[1:], start_new_session=True, env=variables)
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
import multiprocessing, os, sys, time
from pathlib import Path
from src.runtime.files.disk import atomic_write
from src.runtime.ranks.launch import end_with_parent
end_with_parent()
helper = multiprocessing.Process(target=time.sleep, args=(100,), daemon=True)
helper.start()
with atomic_write(Path(sys.argv[1]) / "last.pt") as file:
    file.write(b"half")
    print(helper.pid, flush=True)
    time.sleep(100)
"""


EARLY = """
import src.runtime.ranks.parent
import sys, time
from pathlib import Path
print(0, flush=True)
while not Path(sys.argv[1], "killed").exists():
    time.sleep(0.01)
from src.runtime.ranks.launch import end_with_parent
end_with_parent()
time.sleep(100)
"""
WRAPPER = """#!/bin/sh
"$@"
exit $?
"""


@pytest.mark.parametrize(
    ("number", "around"),
    [(signal.SIGKILL, ("sh", "wrapper.sh")), (signal.SIGUSR1, ())],
    ids=["script", "alone"],
)
def test_ranks_end_with_torchrun_and_leave_nothing_half_written(
    tmp_path: Path, number: signal.Signals, around: tuple[str, ...]
) -> None:
    """Alone they would train on, hold their GPUs, and write into the folder of the run that follows."""
    with launched(tmp_path, CHILD, around) as agent:
        ranks = [said(agent), said(agent)]
        work = tmp_path / "work"
        assert [path.name for path in work.iterdir() if path.name.endswith(".part")], "it is writing"
        agent.send_signal(number)
    wait_until(lambda: not any(alive(pid) for pid in ranks))
    assert list(work.iterdir()) == []


def test_a_torchrun_that_was_killed_while_its_ranks_imported_is_noticed(tmp_path: Path) -> None:
    """They asked for their agent seconds later, and took process 1 for it."""
    with launched(tmp_path, EARLY) as agent:
        child = said(agent)
        said(agent)
        agent.kill()
    (tmp_path / "work" / "killed").touch()
    wait_until(lambda: not alive(child))


@pytest.mark.parametrize(("first", "lives"), [("/sbin/init", False), ("python torchrun", True)])
def test_whose_parent_is_process_1(monkeypatch: pytest.MonkeyPatch, first: str, lives: bool) -> None:
    """An orphan's is; and in a container that of a rank whose torchrun is process 1 itself."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(parent.os, "getppid", lambda: 1)
    monkeypatch.setattr(parent, "_holds", lambda path, text: path == "/proc/1/cmdline" and text in first)
    agent = parent._agent()
    assert agent is not None
    assert agent.lives() is lives


def test_nobody_is_a_parent_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one process goes on when its shell ends, as nohup asks for; no process has this number."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert parent._agent() is None
    assert not parent.Agent(1 << 30, "").lives()


def launched(folder: Path, program: str, around: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A process that starts a program as torchrun starts a rank, and says its number."""
    (folder / "work").mkdir()
    (folder / "wrapper.sh").write_text(WRAPPER)
    (folder / "parent.py").write_text(PARENT)
    (folder / "child.py").write_text(program)
    command = [sys.executable, "parent.py", *around, sys.executable, "child.py", str(folder / "work")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    variables.pop("TORCHELASTIC_RUN_ID", None)
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True)


def said(agent: subprocess.Popen[str]) -> int:
    """A number that the program, or what started it, has said."""
    assert agent.stdout is not None
    return int(agent.stdout.readline())


def wait_until(done: object) -> None:
    """Poll for a minute."""
    deadline = time.monotonic() + 60
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in a minute"
        time.sleep(0.05)
