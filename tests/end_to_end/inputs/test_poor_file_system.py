"""A file system without locks or syncs, as some networks mount them: a whole run on one, from nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.end_to_end.conftest import Embedded, command

PROGRAM = """
import errno, fcntl, os, sys
sys.path.insert(0, os.getcwd())

def refused(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

fcntl.flock = os.fsync = refused
import train
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_on_a_poor_file_system_is_a_warning_for_each_lack(embedded: Embedded, tmp_path: Path) -> None:
    """The index, the crop cache, the hand, checkpoints and reports: any of them ended it."""
    shutil.copytree(embedded.root, tmp_path / "HO3D", ignore=shutil.ignore_patterns(".utnet"))
    shutil.copy(embedded.hand, tmp_path / "hand.pkl")
    other = Embedded(tmp_path / "HO3D", tmp_path / "hand.pkl", tmp_path / "runs")
    brief = ("training.max_steps_per_epoch=2", "training.num_epochs=1", "dataset.cache=auto")
    done = command("-c", PROGRAM, *other.settings("name=poor", *brief))
    assert done.returncode == 0, done.stdout + done.stderr
    said = sorted(line.partition(": this ")[2] for line in done.stdout.splitlines() if "WARNING" in line)
    assert [line.partition(" (")[0] for line in said] == [
        "file system cannot sync files",
        "file system cannot sync folders",
        "file system has no file locks",
    ]
    assert {p.name for p in other.runs.glob("*/checkpoints/*")} == {"best.pt", "last.pt"}
    assert not list(tmp_path.rglob("*.part"))
