"""What holds for every test: no process outlives it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from tests import processes


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
