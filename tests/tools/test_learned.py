"""The picture page of `make learn`: which frames stand on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from src.tools import learned


def test_the_page_shows_the_worst_frames_first_and_then_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the best frames hides what a network cannot do; nan is worse than any error."""
    shown: list[int] = []

    def tile(dataset: Any, index: int, mpjpe_mm: np.ndarray, joints: np.ndarray) -> np.ndarray:
        shown.append(index)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(learned, "_tile", tile)
    errors = np.arange(100.0)
    errors[17] = np.nan
    learned.page(range(100), errors, np.zeros((100, 21, 3), np.float32))  # type: ignore[arg-type]
    worst, drawn = shown[: learned.TILES], shown[learned.TILES :]
    assert worst == [17, *range(99, 99 - learned.TILES + 1, -1)]
    assert len(set(drawn)) == learned.TILES
    assert max(drawn) - min(drawn) > 50
