"""The checkpoints of a run: files of their own, tried again, and what is gone on from."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from src.config import RunConfig
from src.errors import AssetError, PeerError
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints import folder as folder_of
from src.training.checkpoints.checkpoint import Progress
from tests.checkpoints import write_checkpoint as write
from tests.log_lines import log_lines
from tests.training.toy import ALONE


def bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit": bit,
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": Path.unlink,
    "dangling": lambda path: (path.unlink(), path.symlink_to("nowhere.pt")),
    "not a number": lambda path: write(path, step=40, weight=float("nan")),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of 3 epochs of 4 steps, some of a program that kept them; the newest is the oldest file."""
    checkpoints = tmp_path / "20260101-000000-demo" / "checkpoints"
    best = Progress(epoch=1, best_mpjpe_mm=31.0, best_epoch=0, judged_by="val")
    write(checkpoints / "best.pt", step=4, progress=best)
    write(checkpoints / "epoch_9.pt", step=8, progress=Progress(epoch=2))
    write(checkpoints / "epoch_10.pt", step=12, progress=Progress(epoch=3))
    write(checkpoints / "last.pt", step=14, progress=Progress(epoch=3, step_in_epoch=2, judged_by="val"))
    for age, name in enumerate(("best.pt", "epoch_9.pt", "epoch_10.pt")):
        os.utime(checkpoints / name, (2e9 - age, 2e9 - age))
    return checkpoints


def test_a_file_that_does_not_fit_leaves_the_previous_one(tmp_path: Path) -> None:
    """At a full disk what is there stays whole, in the system's words; no half file is left in its way."""
    last = tmp_path / "last.pt"
    best = write(tmp_path / "best.pt", last)
    assert best.read_bytes() == last.read_bytes()
    assert best.stat().st_ino != last.stat().st_ino, "damage to one would be damage to both"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    want = r"last\.pt was not written: \[Errno 27\] File too large\. About 0\.4 MB are needed, [\d,.]+ MB are"
    try:
        for most in (1000, 20_000):  # at the end, and in the middle, where torch has words of its own
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
            with pytest.raises(AssetError, match=want):
                write(last, step=8, width=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [ckpt.load_checkpoint(path)["step"] for path in (last, best)] == [4, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_a_copy_that_does_not_fit_on_the_disk_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    """The previous one is whole, and rank 0 tells the others before it raises."""
    last, told = write(tmp_path / "last.pt"), []
    ranks: Any = SimpleNamespace(
        device=ALONE.device, is_main=True, world=1, gather_objects=lambda mine, what: [mine],
        agree=lambda error, what: told.append((str(error), what)),
    )  # fmt: skip
    with mock.patch.object(ckpt, "copy_tensors", side_effect=OSError(errno.ENOSPC, "No space left")):
        write(tmp_path / "best.pt", last, step=8, context=ranks)
    ((error, what),) = told
    assert error.startswith(f"checkpoint {last} was not written: [Errno 28] No space left. About ")
    assert what == f"writing {tmp_path / 'best.pt'}"
    assert ckpt.load_checkpoint(last)["step"] == 4


class Disk:
    """Writes fail so often; a clock that only sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, misses: int, error: type[Exception] = AssetError):
        self.misses, self.error = misses, error
        self.tries: list[tuple[str, ...]] = []
        self.now = 0.0
        monkeypatch.setattr(folder_of, "save_checkpoint", self._write)
        monkeypatch.setattr(folder_of.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(folder_of.time, "sleep", self._sleep)

    def _write(self, path: Path, *arguments: Any) -> None:
        self.tries.append((path.name, *(copy.name for copy in arguments[-1])))
        if len(self.tries) <= self.misses:
            raise self.error("checkpoint last.pt was not written: No space left on device")

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def saver_in(folder: Path) -> folder_of.Saver:
    """A saver whose checkpoints are not looked into."""
    return folder_of.Saver(folder, RunConfig(), None, "abc", ALONE)  # type: ignore[arg-type]


def at(step: int) -> Any:
    """A trainer; the step is all that is asked for."""
    return SimpleNamespace(step=step)


def test_inside_an_epoch_later_steps_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on while the disk is full; each try writes all that there is room for, so they grow seldom."""
    disk, saver = Disk(monkeypatch, 4), saver_in(tmp_path)
    tried = []
    with log_lines("checkpoints") as said:
        for step in range(10, 60):
            if step == 10 or saver.tries_again(step):
                tried.append(step)
                saver.save(at(step), Progress(), wait=False)
    assert tried == [10, 11, 13, 17, 25]
    assert disk.now == 0.0, "no step waits"
    assert said == [
        "WARNING: checkpoint last.pt was not written: No space left on device. It is tried again; the run "
        "goes on.",
        f"{tmp_path / 'last.pt'} is written again, after 4 misses.",
    ]


@pytest.mark.parametrize("error", [AssetError, PeerError])
def test_at_an_epochs_end_it_is_tried_in_place_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """best.pt of this epoch can be written from these weights alone: all of its files, again and again; but a
    week of training that nobody can keep is lost time.
    """
    disk, saver = Disk(monkeypatch, 3, error), saver_in(tmp_path)
    saver.save(at(0), Progress(), best=True)
    assert disk.tries == [("best.pt", "last.pt")] * 4
    assert disk.now == 1.0 + 2.0 + 4.0
    disk = Disk(monkeypatch, 1000, error)
    with pytest.raises(error, match=r"No space left on device\. Tried 7 times in 61 s"):
        saver.save(at(0), Progress())
    assert disk.tries == [("last.pt",)] * 7


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_last_checkpoint_is_passed_over_aloud(run: Path, damage: str) -> None:
    """A run at night goes on from the newest whole file, and the log says from where and why."""
    last = run / "last.pt"
    DAMAGES[damage](last)
    source, warning = folder_of.to_go_on_from(last)
    assert source == run / "epoch_10.pt"
    assert warning.startswith(f"WARNING: checkpoint {last}")
    assert f". Going on from {source} (epoch 3, step 12), the newest whole one there" in warning
    assert "\n" not in warning
    kept = damage != "gone"
    assert ("kept as last.pt.damaged" in warning) == os.path.lexists(run / "last.pt.damaged") == kept
    assert not os.path.lexists(last)  # what stood there would be in the way of the next one
    write(last, step=16)
    assert folder_of.to_go_on_from(last) == (last, "")


def test_damaged_files_are_passed_over_one_after_the_other(run: Path) -> None:
    """The newest whole one by its content, not the next name or the youngest file; where none is whole, no
    older run and no new one.
    """
    last, order = run / "last.pt", ["last.pt", "epoch_10.pt", "epoch_9.pt", "best.pt"]
    for damaged, expected in pairwise(order):
        bit(run / damaged)
        assert folder_of.to_go_on_from(last)[0] == run / expected
        assert len(list(run.glob("*.damaged"))) == 1, damaged
    bit(run / "best.pt")
    with pytest.raises(AssetError, match="No checkpoint of this run is whole, and no older run") as caught:
        folder_of.to_go_on_from(last)
    assert all(f"checkpoint {run / name}" in str(caught.value) for name in order)
    assert (run / "best.pt").exists()


def test_two_checkpoints_of_one_step_are_told_apart(run: Path) -> None:
    """After the validation is later than before it; before an epoch's end is not after."""
    (run / "last.pt").rename(run / "epoch_99.pt")
    for position, newest in ((Progress(4), "best.pt"), (Progress(3, step_in_epoch=1), "epoch_99.pt")):
        write(run / "best.pt", step=14, progress=position)
        assert folder_of.to_go_on_from(run / "last.pt")[0] == run / newest


def test_any_other_file_means_itself(run: Path, tmp_path: Path) -> None:
    """Whoever names best.pt wants those weights and no others, and a copy of last.pt elsewhere stands for no
    run; what else is whole is said, by --evaluate and the tools too.
    """
    lone = write(tmp_path / "copies" / "last.pt")
    write(lone.with_name("other.pt"), step=6)
    for path, newest in (
        (run / "best.pt", f"{run / 'last.pt'} (epoch 3, step 14), {run / 'epoch_10.pt'}"),
        (lone, f"{lone.with_name('other.pt')} (epoch 1, step 6)"),
    ):
        bit(path)
        with pytest.raises(AssetError, match=f"checkpoint {path} is no whole file") as caught:
            folder_of.to_go_on_from(path)
        assert f"Whole ones beside it, the newest first: {newest}" in str(caught.value)
        with pytest.raises(AssetError) as scored:
            folder_of.open_checkpoint(path)
        assert str(scored.value) == str(caught.value)
        assert path.exists()
    assert folder_of.to_go_on_from(run / "epoch_9.pt") == (run / "epoch_9.pt", "")


def test_a_checkpoint_of_newer_code_is_not_passed_over(run: Path) -> None:
    """It is whole: to go on from an older one would lose what only newer code can read."""
    last = run / "last.pt"
    torch.save(torch.load(last, weights_only=True) | {"format": 9}, last)
    assert folder_of.to_go_on_from(last) == (last, "")
    with pytest.raises(AssetError, match="format 9"):
        folder_of.open_checkpoint(last)


def test_best_so_far_is_what_best_pt_scored_on_these_samples(run: Path) -> None:
    """A score of another split, folder or older file kept best.pt as it was, or let a worse epoch have it. A
    damaged one does not end the run: the next validation makes another.
    """
    none, best = (float("inf"), -1), run / "best.pt"
    with log_lines("checkpoints") as said:
        assert folder_of.best_so_far(run, "val", ALONE) == (31.0, 0)
        assert folder_of.best_so_far(run, "other", ALONE) == none
        bit(best)
        for _ in range(2):
            assert folder_of.best_so_far(run, "val", ALONE) == none
    chosen, damaged = said
    assert chosen.startswith(
        f"{best} was chosen on other validation samples or labels (MPJPE 31.000 mm, epoch 0)"
    )
    assert damaged.startswith(f"WARNING: checkpoint {best} is no whole file")
    assert damaged.endswith("It is kept as best.pt.damaged: the next validation makes a new one")
    assert not os.path.lexists(best)
