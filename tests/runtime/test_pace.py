"""How fast it goes, how long it waits, and how long it still takes."""

from __future__ import annotations

import pytest

from src.runtime import progress as bars
from src.runtime.progress import PaceMeter


def test_waits_are_told_from_work() -> None:
    """A loader that starves the device must show as a share, not hide in a lower speed; and both are those of
    the rounds since the last reading.
    """
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


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        (10, ["frames: 2 of 10, 0.05/s, about 160 s left", "frames: 3 of 10, 0.04/s, about 187 s left"]),
        (None, ["frames: 2 of ?, 0.05/s", "frames: 3 of ?, 0.04/s"]),
    ],
)
def test_the_time_left_is_that_of_what_is_left(
    total: int | None, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads the log of an index or a cache decides by it whether to wait."""
    ticks = iter([0.0, 10.0, 20.0, 40.0, 80.0, 90.0])  # the start, then as each item is handed out
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(ticks))
    assert list(bars.progress(range(5), total=total, desc="frames")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == lines
