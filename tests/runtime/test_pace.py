"""Samples per second and the share of waiting are those of the rounds since the last reading."""

from __future__ import annotations

import pytest

from src.runtime.pace import PaceMeter


def test_waits_are_told_from_work() -> None:
    """A loader that starves the device must show as a share, not hide in a lower speed."""
    ticks = iter([0.0, 1.0, 2.0, 4.0, 4.5, 10.0, 10.0, 13.0, 20.0])
    meter = PaceMeter(clock=lambda: next(ticks))
    for _ in range(2):
        with meter.waiting():
            pass
    pace = meter.read()
    assert pace.rounds_per_s == pytest.approx(2 / 10)
    assert pace.data_wait_share == pytest.approx(1.5 / 10)
    with meter.waiting():
        pass
    pace = meter.read()
    assert pace.rounds_per_s == pytest.approx(1 / 10)
    assert pace.data_wait_share == pytest.approx(3 / 10)
