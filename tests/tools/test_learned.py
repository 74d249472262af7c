"""The report of `make learn`: which lines of the curves it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.errors import DataError
from src.tools import learned


def test_minutes_and_baselines_are_those_of_the_last_line(tmp_path: Path) -> None:
    """RESULT's minutes are the run's, not its first step's; what validations repeat, the last one says."""
    names = ("zero_mpjpe_mm", "zero_pa_mm", "mean_pose_mpjpe_mm", "mean_pose_pa_mm", "nearest_pose_pa_mm")
    rows = [
        {"step": 50, "minutes": 0.5, "Train/loss": 4.0},
        {"step": 99, "minutes": 40.0, **{f"Val/baseline/{name}": 1.0 + k for k, name in enumerate(names)}},
        {"step": 200, "minutes": 61.2, **{f"Val/baseline/{name}": 9.0 - k for k, name in enumerate(names)}},
        {"step": 200, "minutes": 61.25, "Train/epoch": 3},
    ]
    (tmp_path / "scalars.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert learned._last_scalars(tmp_path)["minutes"] == 61.25
    assert learned._baselines(tmp_path) == dict(zip(names, (9.0, 8.0, 7.0, 6.0, 5.0), strict=True))
    (tmp_path / "scalars.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(DataError, match="no zero_mpjpe_mm, zero_pa_mm"):
        learned._baselines(tmp_path)
