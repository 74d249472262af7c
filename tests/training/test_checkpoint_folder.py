"""The checkpoints of a run: files of their own, and what is gone on from when one of them is damaged."""

from __future__ import annotations

import errno
import os
import random
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.config import RunConfig, TrainingConfig
from src.errors import AssetError, PeerError
from src.runtime.ranks.distributed import DistContext, spawn_ranks
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints import folder as folder_of
from src.training.checkpoints.checkpoint import Progress

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)


def write(
    path: Path,
    *copies: Path,
    step: int = 4,
    progress: Progress | None = None,
    weight: float = 1.0,
    width: int = 2,
    context: DistContext = ALONE,
) -> Path:
    """A checkpoint of a network of a few numbers, by the code that writes those of a run."""
    model = torch.nn.Linear(width, 1)
    torch.nn.init.constant_(model.weight, weight)
    trainer = SimpleNamespace(
        model=model, ema=None, optimizer=SimpleNamespace(state_dict=dict), step=step, schedule_step=step,
        total_steps=99,
    )  # fmt: skip
    hand = SimpleNamespace(fingerprint="f", is_standin=True)
    position = progress or Progress(epoch=step // 4)
    ckpt.save_checkpoint(path, trainer, position, RunConfig(), hand, "abc", context, copies)  # type: ignore[arg-type]
    return path


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("checkpoint of yesterday\n")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.pt")


def not_a_number(path: Path) -> None:
    write(path, step=40, weight=float("nan"))


DAMAGES = (zeros, bit, torn, empty, text, a_folder, gone, dangling, not_a_number)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of 3 epochs of 4 steps; the newest by its content is the oldest by its time."""
    checkpoints = tmp_path / "20260101-000000-demo" / "checkpoints"
    best = Progress(epoch=1, best_mpjpe_mm=31.0, best_epoch=0, judged_by="val")
    write(checkpoints / "best.pt", step=4, progress=best)
    write(checkpoints / "epoch_9.pt", step=8, progress=Progress(epoch=2, best_mpjpe_mm=31.0, best_epoch=0))
    write(checkpoints / "epoch_10.pt", step=12, progress=Progress(epoch=3, best_mpjpe_mm=31.0, best_epoch=0))
    write(checkpoints / "last.pt", step=14, progress=Progress(epoch=3, step_in_epoch=2, judged_by="val"))
    for age, name in enumerate(("best.pt", "epoch_9.pt", "epoch_10.pt")):
        os.utime(checkpoints / name, (2e9 - age, 2e9 - age))
    return checkpoints


def test_two_hundred_flipped_bits_are_found_two_hundred_times(tmp_path: Path) -> None:
    """One bit of a weight is another score; with an exponent's bit it is nan."""
    path = write(tmp_path / "last.pt", width=1000)
    whole, found = path.read_bytes(), 0
    for place in random.Random(17).sample(range(8 * len(whole)), 200):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            ckpt.load_checkpoint(path)
        except AssetError as error:
            found += str(path) in str(error)
    assert found == 200
    path.write_bytes(whole)
    assert ckpt.load_checkpoint(path)["step"] == 4


def test_names_of_one_save_are_files_of_their_own(tmp_path: Path) -> None:
    """They were names of one file: what damaged one damaged all."""
    names = folder_of.names_due(TrainingConfig(keep_every_epochs=1), best=True, epoch=3)
    assert names == [
        "best.pt",
        "epoch_3.pt",
        "last.pt",
    ]  # last.pt last: a run that dies before it comes again
    first, *copies = [tmp_path / name for name in names]
    write(first, *copies)
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert contents[1:] == contents[:-1]
    assert len({(tmp_path / name).stat().st_ino for name in names}) == 3
    for name in names:
        with (tmp_path / name).open("r+b") as file:
            file.write(bytes(100))
        assert len(folder_of._others(tmp_path / name)[0]) == 2
        (tmp_path / name).write_bytes(contents[0])


@pytest.mark.parametrize(
    ("every", "best", "epoch", "names"),
    [
        (0, False, None, ["last.pt"]),
        (0, True, 1, ["best.pt", "last.pt"]),
        (2, False, 1, ["epoch_1.pt", "last.pt"]),
        (2, False, 2, ["last.pt"]),
        (2, True, 2, ["best.pt", "last.pt"]),
        (1, False, None, ["last.pt"]),
    ],
)
def test_names_that_are_due(every: int, best: bool, epoch: int | None, names: list[str]) -> None:
    """Every second epoch means epochs 1, 3, 5; inside an epoch there is last.pt alone."""
    config = TrainingConfig(keep_every_epochs=every)
    assert folder_of.names_due(config, best=best, epoch=epoch) == names


def test_old_epochs_go_and_nothing_else(tmp_path: Path) -> None:
    """By number, not by text (10 after 9); a name that a user gave is no epoch."""
    others = ["epoch_1.pt.damaged", "epoch_best.pt", "last.pt"]
    for name in (*(f"epoch_{k}.pt" for k in range(7, 11)), *others):
        (tmp_path / name).touch()
    folder_of.prune(tmp_path, TrainingConfig(keep_every_epochs=0))
    assert len(list(tmp_path.iterdir())) == 7
    folder_of.prune(tmp_path, TrainingConfig(keep_every_epochs=1))
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"epoch_8.pt", "epoch_9.pt", "epoch_10.pt", *others}


def test_a_file_that_does_not_fit_leaves_the_previous_one(tmp_path: Path) -> None:
    """At a full disk what is there stays whole, in the system's words; no half file is left in its way."""
    last, copy = write(tmp_path / "last.pt", step=4), write(tmp_path / "copy.pt", step=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most in (1000, 20_000):  # at the end, and in the middle, where torch has words of its own
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
            with pytest.raises(
                AssetError, match=r"last\.pt was not written: \[Errno 27\] File too large\. About"
            ):
                write(last, step=8, width=100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match="File too large"):
            ckpt.copy_tensors(last, copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [ckpt.load_checkpoint(path)["step"] for path in (last, copy)] == [4, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.pt", "last.pt"]


def save_on_a_full_disk(context: DistContext, folder: str) -> str:
    """What a rank hears when the disk is full at the copy."""

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ckpt.copy_tensors = full  # type: ignore[assignment]
    try:
        write(Path(folder, "best.pt"), Path(folder, "last.pt"), step=8, context=context)
    except (AssetError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_copy_that_does_not_fit_on_the_disk_is_an_error_of_all_ranks(tmp_path: Path) -> None:
    """A checkpoint that is not written must end the run on every rank, with the previous one whole."""
    write(tmp_path / "last.pt", step=4)
    heard = spawn_ranks(save_on_a_full_disk, 2, (str(tmp_path),))
    why = f"checkpoint {tmp_path / 'last.pt'} was not written: [Errno 28] No space left on device. About"
    assert heard[0].startswith(f"AssetError: {why}")
    assert heard[1].startswith(f"PeerError: writing {tmp_path / 'best.pt'}: rank 0 failed: {why}")
    assert ckpt.load_checkpoint(tmp_path / "last.pt")["step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_passed_over_aloud(run: Path, damage) -> None:
    """A run at night goes on from the newest whole file, and the log says from where and why."""
    last = run / "last.pt"
    damage(last)
    source, warning = folder_of.to_go_on_from(last)
    assert source == run / "epoch_10.pt"
    assert warning is not None
    assert warning.startswith(f"WARNING: checkpoint {last}")
    assert f". Going on from {source} (epoch 3, step 12), the newest whole one there" in warning
    assert "\n" not in warning
    assert ("kept as last.pt.damaged" in warning) == (damage is not gone)
    assert not os.path.lexists(last)  # what stood there would be in the way of the next one
    assert os.path.lexists(run / "last.pt.damaged") == (damage is not gone)
    write(last, step=16)
    assert folder_of.to_go_on_from(last) == (last, None)


def test_damaged_files_are_passed_over_one_after_the_other(run: Path) -> None:
    """The newest whole one, not the next name; and where none is whole, no older run and no new one."""
    last = run / "last.pt"
    for k, (name, expected) in enumerate(
        (("last.pt", "epoch_10.pt"), ("epoch_10.pt", "epoch_9.pt"), ("epoch_9.pt", "best.pt"))
    ):
        bit(run / name)
        assert folder_of.to_go_on_from(last)[0] == run / expected
        assert len(list(run.glob("*.damaged"))) == 1, k
    zeros(run / "best.pt")
    with pytest.raises(
        AssetError, match=r"No checkpoint of this run is whole, and no older run is taken"
    ) as caught:
        folder_of.to_go_on_from(last)
    for name in ("last.pt", "best.pt", "epoch_9.pt", "epoch_10.pt"):
        assert f"checkpoint {run / name}" in str(caught.value)
    assert (run / "best.pt").exists()


def test_two_checkpoints_of_one_step_are_told_apart(run: Path) -> None:
    """After the validation is later than before it; before an epoch's end is not after."""
    (run / "last.pt").rename(run / "epoch_99.pt")
    write(run / "best.pt", step=14, progress=Progress(epoch=4))
    assert folder_of.to_go_on_from(run / "last.pt")[0] == run / "best.pt"
    write(run / "best.pt", step=14, progress=Progress(epoch=3, step_in_epoch=1))
    assert folder_of.to_go_on_from(run / "last.pt")[0] == run / "epoch_99.pt"


@pytest.mark.parametrize("damage", [zeros, bit, torn, gone])
def test_any_other_file_means_itself(run: Path, damage) -> None:
    """Whoever names best.pt wants those weights and no others; what else is whole is said."""
    for name in ("best.pt", "epoch_10.pt"):
        damage(run / name)
    newest = (
        f"Whole ones beside it, the newest first: {run / 'last.pt'} (epoch 3, step 14), {run / 'epoch_9.pt'}"
    )
    for name in ("best.pt", "epoch_10.pt"):
        with pytest.raises(AssetError, match=f"checkpoint .*{name}") as caught:
            folder_of.to_go_on_from(run / name)
        assert newest in str(caught.value)
        with pytest.raises(AssetError) as scored:  # what --evaluate and the tools read with
            folder_of.open_checkpoint(run / name)
        assert str(scored.value) == str(caught.value)
    assert folder_of.to_go_on_from(run / "epoch_9.pt") == (run / "epoch_9.pt", None)


def test_a_last_checkpoint_outside_a_run_means_itself(run: Path, tmp_path: Path) -> None:
    """A copy of last.pt elsewhere stands for no run: files beside it may be anybody's."""
    lone, other = tmp_path / "copies" / "last.pt", tmp_path / "copies" / "other.pt"
    write(lone)
    write(other, step=6)
    bit(lone)
    with pytest.raises(
        AssetError, match=r"last\.pt is no whole .*the newest first: .*other\.pt \(epoch 1, step 6\)"
    ):
        folder_of.to_go_on_from(lone)
    assert lone.exists()


def test_a_checkpoint_of_newer_code_is_not_passed_over(run: Path) -> None:
    """It is whole: to go on from an older one would lose what only newer code can read."""
    last = run / "last.pt"
    torch.save(torch.load(last, weights_only=True) | {"format": 9}, last)
    assert folder_of.to_go_on_from(last) == (last, None)
    with pytest.raises(AssetError, match="format 9"):
        folder_of.open_checkpoint(last)


def test_best_so_far_is_what_best_pt_scored_on_these_samples(run: Path) -> None:
    """A score of another split, folder or older file kept best.pt as it was, or let a worse epoch have it."""
    none = (float("inf"), -1)
    assert folder_of.best_so_far(run, "val", ALONE) == (31.0, 0)
    assert folder_of.best_so_far(run, "evaluation", ALONE) == none
    (run / "best.pt").unlink()
    assert folder_of.best_so_far(run, "val", ALONE) == none


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of the log."""
    lines: list[str] = []
    monkeypatch.setattr(folder_of._log, "warning", lines.append)
    return lines


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not gone])
def test_a_damaged_best_checkpoint_does_not_end_the_run(run: Path, damage, said: list[str]) -> None:
    """last.pt is whole: the run goes on, what was best is kept and said, the next best makes a best.pt."""
    write(
        run / "last.pt", step=14, progress=Progress(3, 2, best_mpjpe_mm=31.0, best_epoch=0, judged_by="val")
    )
    damage(run / "best.pt")
    assert folder_of.best_so_far(run, "val", ALONE) == (float("inf"), -1)
    assert not os.path.lexists(run / "best.pt")
    assert os.path.lexists(run / "best.pt.damaged")
    assert len(said) == 1
    assert said[0].startswith(f"WARNING: checkpoint {run / 'best.pt'}")
    assert (
        "It is kept as best.pt.damaged; no other file holds those weights (MPJPE 31.000 mm, epoch 0)"
        in said[0]
    )
    assert folder_of.best_so_far(run, "val", ALONE) == (float("inf"), -1)
    assert len(said) == 1


def test_a_damaged_best_checkpoint_is_replaced_by_the_best_whole_one(run: Path, said: list[str]) -> None:
    """Another file may hold the very weights; of those that were the best in their time the best one wins."""

    def kept(
        name: str, epoch: int, best_epoch: int, score: float, judge: str = "val", steps: int = 0
    ) -> None:
        position = Progress(epoch, steps, best_mpjpe_mm=score, best_epoch=best_epoch, judged_by=judge)
        write(run / name, step=4 * epoch, progress=position)

    kept("epoch_9.pt", 2, 1, 29.0)
    kept("epoch_10.pt", 3, 2, 27.0)
    kept("epoch_3.pt", 4, 2, 27.0)  # its own score is not the best
    kept("epoch_4.pt", 5, 4, 9.0, judge="evaluation")
    kept("last.pt", 6, 5, 8.0, steps=1)  # trained on since
    zeros(run / "best.pt")
    assert folder_of.best_so_far(run, "val", ALONE) == (27.0, 2)
    assert (run / "best.pt").read_bytes() == (run / "epoch_10.pt").read_bytes()
    assert f"best.pt is now a copy of {run / 'epoch_10.pt'} (epoch 3, step 12), MPJPE 27.000 mm" in said[0]
    assert folder_of.best_so_far(run, "val", ALONE) == (27.0, 2)
    assert len(said) == 1
