"""What holds for every test: one thread, long files begin first, and no process outlives its test."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
from collections.abc import Iterator

import pytest

from tests import processes
from tests.rooms.sources import ROOT

os.environ["OMP_NUM_THREADS"] = "1"
"""The test processes share the cores already, and a fork of a process whose torch has used several threads
can wait for ever for the others. Set before any test imports torch."""

# Of a suite that nohup runs, too, tests find out who a closed terminal ends.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_LONG = ROOT / "tests" / "end_to_end"
_PRELOADED = ("train", "test_distributed_eval", "torch._inductor", "torch.utils.tensorboard")
"""What ranks import, and what torch and train.py import when they begin to work: 4 s of CPU a process."""


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Files that take a minute begin first: begun last, they leave all cores but one idle at the end.

    They start processes by the hundred. The server that forks those imports for all of them, once; what is
    preloaded is settled by whoever starts it.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(_LONG))
    if not session.config.option.collectonly and items and items[0].path.is_relative_to(_LONG):
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """A process that does not end would hold up the end of the whole suite, or slow the tests after this one.

    Loader processes are daemons: they end with their loader, which a module may share.
    """
    yield
    left = [f"process {child.name}" for child in multiprocessing.active_children() if not child.daemon]
    for child in multiprocessing.active_children():
        if not child.daemon:
            assert child.pid is not None
            processes.end_tree(child.pid)
            child.join(10)
    left += processes.end_all()
    assert not left, f"{len(left)} processes did not end with their test and were ended: {left}"
