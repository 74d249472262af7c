"""A rank that hangs makes a test fail with a name, and not the suite hang."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.rooms.sources import ROOT

STUCK = """
import subprocess, sys, time
print("rank 1 waits", flush=True)
over = "import sys, time; time.sleep(120); open(sys.argv[1], 'w')"
child = subprocess.Popen([sys.executable, "-c", over, sys.argv[1] + ".over"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(120)
"""


def test_a_command_that_hangs_ends_with_what_it_started(tmp_path: Path) -> None:
    """Its child has a session of its own and holds its pipe, as a rank of torchrun does."""
    note = tmp_path / "pid"
    with pytest.raises(TimeoutError, match=r"(?s)did not end in 2 s\. It said:.*rank 1 waits"):
        processes.run([sys.executable, "-c", STUCK, str(note)], cwd=ROOT, timeout_s=2.0)
    assert not processes.alive(int(note.read_text()))
    assert not (tmp_path / "pid.over").exists(), "a longest time of 2 s that lasts until the child's own end"


def test_a_command_left_in_the_background_is_ended_and_named(tmp_path: Path) -> None:
    """A failed test must not leave its run training beside the tests after it."""
    process = processes.start(
        [sys.executable, "-c", STUCK, str(tmp_path / "pid")], cwd=ROOT, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "rank 1 waits\n"
    (left,) = processes.end_all()
    assert "rank 1 waits" in left
    assert not processes.alive(process.pid)
    assert processes.end_all() == []
