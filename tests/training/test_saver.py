"""Checkpoints where the disk does not take them: tried again, and only then the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from src.config import RunConfig
from src.errors import AssetError, PeerError
from src.training.checkpoints import saver as saving
from src.training.checkpoints.checkpoint import Progress
from src.training.checkpoints.saver import MISSES, PATIENCE_S, Saver
from tests.log_lines import log_lines
from tests.training.toy import ALONE


class Disk:
    """Writes fail so often; a clock that only sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, misses: int, error: type[Exception] = AssetError):
        self.misses, self.error = misses, error
        self.tries: list[tuple[str, ...]] = []
        self.now = 0.0
        monkeypatch.setattr(saving, "save_checkpoint", self._write)
        monkeypatch.setattr(saving.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(saving.time, "sleep", self._sleep)

    def _write(self, path: Path, *arguments: Any) -> None:
        self.tries.append((path.name, *(copy.name for copy in arguments[-1])))
        if len(self.tries) <= self.misses:
            raise self.error("checkpoint last.pt was not written: No space left on device")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


class Trainer:
    """The step is all that is asked for."""

    step = 0


def saver_in(folder: Path) -> Saver:
    """A saver whose checkpoints are not looked into."""
    return Saver(folder, RunConfig(), None, "abc", ALONE)  # type: ignore[arg-type]


def test_inside_an_epoch_later_steps_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on while the disk is full; each try writes all that there is room for, so they grow seldom."""
    disk, saver, trainer = Disk(monkeypatch, 4), saver_in(tmp_path), Trainer()
    tried = []
    with log_lines("saver") as said:
        for step in range(10, 60):
            trainer.step = step
            if step == 10 or saver.tries_again(step):
                tried.append(step)
                saver.save(trainer, Progress(), wait=False)  # type: ignore[arg-type]
    assert tried == [10, 11, 13, 17, 25]
    assert disk.now == 0.0, "no step waits"
    assert said == [
        "WARNING: checkpoint last.pt was not written: No space left on device. It is tried again; the run "
        "goes on.",
        f"{tmp_path / 'last.pt'} is written again, after 4 misses.",
    ]
    trainer.step = 100
    assert not saver.tries_again(100)


@pytest.mark.parametrize("error", [AssetError, PeerError])
def test_at_an_epochs_end_it_is_tried_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """best.pt of this epoch can be written from these weights alone: all of its files, again and again."""
    disk, saver = Disk(monkeypatch, 3, error), saver_in(tmp_path)
    saver.save(Trainer(), Progress(), best=True, epoch=0)  # type: ignore[arg-type]
    assert disk.tries == [("best.pt", "last.pt")] * 4
    assert disk.now == 1.0 + 2.0 + 4.0


def test_a_disk_that_stays_full_ends_the_run_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the first miss, nor never: a week of training that nobody can keep is lost time."""
    disk, saver = Disk(monkeypatch, 1000), saver_in(tmp_path)
    with pytest.raises(AssetError, match=r"No space left on device\. Tried 7 times in 61 s"):
        saver.save(Trainer(), Progress(), epoch=0)  # type: ignore[arg-type]
    assert len(disk.tries) >= MISSES
    assert disk.now >= PATIENCE_S
