"""The checkpoints of a run: which it keeps, and which one it goes on from.

Each is a file of its own: damage to one is not damage to all. Where one is damaged another can do its work,
and a line says so: nothing is passed over in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import TrainingConfig
from src.errors import AssetError
from src.runtime.files.disk import set_aside
from src.runtime.files.tensor_file import ADVICE, NO_FILE_ADVICE, copy_tensors
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.checkpoint import Progress, load_checkpoint, read_checkpoint

FOLDER = "checkpoints"
LAST, BEST = "last.pt", "best.pt"
KEPT_EPOCHS = 3
"""How many epoch_<k>.pt stay, the newest."""
_EPOCH = re.compile(r"epoch_(\d+)\.pt")
_log = get_logger("checkpoints")


@dataclass(frozen=True)
class Kept:
    """A whole checkpoint and where it stands."""

    path: Path
    step: int
    """Optimiser steps of the run that are in it."""
    progress: Progress

    @property
    def position(self) -> tuple[int, int, int]:
        """Grows along a run; the second of two checkpoints of one step was written after the validation."""
        return self.step, self.progress.epoch, self.progress.step_in_epoch

    @property
    def is_best(self) -> bool:
        """Whether its own weights have the best score that it knows of."""
        position = self.progress
        return position.step_in_epoch == 0 and position.best_epoch == position.epoch - 1 >= 0

    def __str__(self) -> str:
        """For messages."""
        return f"{self.path} (epoch {self.progress.epoch}, step {self.step})"


def names_due(config: TrainingConfig, *, best: bool, epoch: int | None) -> list[str]:
    """Files that a save writes, in this order.

    last.pt comes last: a run that dies in between goes on from the older one and comes here again.

    Args:
        config: how often an epoch is kept.
        best: the epoch that just ended is the best so far.
        epoch: it, or None inside an epoch.
    """
    every = config.keep_every_epochs
    kept = [f"epoch_{epoch}.pt"] if epoch is not None and every and (epoch + 1) % every == 0 else []
    return [*([BEST] if best else []), *kept, LAST]


def prune(folder: Path, config: TrainingConfig) -> None:
    """Remove the oldest epoch_<k>.pt where there are more than KEPT_EPOCHS."""
    if config.keep_every_epochs:
        numbered = {int(found[1]): p for p in folder.iterdir() if (found := _EPOCH.fullmatch(p.name))}
        for epoch in sorted(numbered)[:-KEPT_EPOCHS]:
            numbered[epoch].unlink(missing_ok=True)


def to_go_on_from(path: Path) -> tuple[Path, str | None]:
    """The checkpoint that a run goes on from: `path`, or the newest whole one beside a last.pt that is not.

    A damaged last.pt gets another name, because the run will write a new one. Run by rank 0.

    Args:
        path: as asked for. Only a run's last.pt stands for the run; any other file means itself.

    Returns:
        the file, and where it is another one, a warning that says why and which.

    Raises:
        AssetError: `path` cannot be read and nothing may take its place; it names what else there is.
    """
    try:
        read_checkpoint(path, mapped=True)
    except AssetError as caught:
        error = caught
    else:
        return path, None
    whole = instead_of(path, error)
    kept = f" The damaged one is kept as {set_aside(path).name}." if os.path.lexists(path) else ""
    return (
        whole.path,
        f"WARNING: {_brief(error)}. Going on from {whole}, the newest whole one there.{kept}",
    )


def instead_of(path: Path, error: AssetError) -> Kept:
    """The newest whole checkpoint beside a run's last.pt that cannot be read.

    Args:
        path: as asked for. Only a run's last.pt stands for the run; any other file means itself.
        error: why it cannot be read.

    Raises:
        AssetError: nothing may take its place; it names what else there is.
    """
    if path.name != LAST or path.parent.name != FOLDER:
        raise AssetError(f"{error}{_beside(path)}")
    whole, damaged = _others(path)
    if not whole:
        rest = "; ".join(damaged) or "there is no other in that folder"
        raise AssetError(
            f"{_brief(error)}; {rest}. No checkpoint of this run is whole, and no older run is taken for it: "
            "name one with --resume PATH, or start anew without --resume"
        )
    return whole[0]


def open_checkpoint(path: Path, *, look_around: bool = True, mapped: bool = False) -> dict[str, Any]:
    """`load_checkpoint`, whose error names the whole checkpoints of the folder where it is asked to.

    Raises:
        AssetError: as of `load_checkpoint`.
    """
    try:
        return load_checkpoint(path, mapped=mapped)
    except AssetError as error:
        if look_around:
            raise AssetError(f"{error}{_beside(path)}") from None
        raise


def best_so_far(folder: Path, judged_by: str, context: DistContext) -> tuple[float, int]:
    """Score (mm) and epoch of best.pt in a run's folder of checkpoints; (inf, -1) if the next is the best.

    The checkpoint that a run goes on from may stand in another folder, or be older than best.pt. A damaged
    best.pt gets another name and is replaced: at once by a whole checkpoint that was the best in its time,
    else by the next validation.

    Args:
        folder: of the run that goes on.
        judged_by: identity of the validation split. The score of another one says nothing.
        context: ranks; rank 0 reads, all get the same.
    """
    path, none = folder / BEST, (float("inf"), -1)

    def read() -> tuple[float, int]:
        if not context.is_main or not os.path.lexists(path):
            return none
        try:
            kept = Progress(**load_checkpoint(path, mapped=True)["progress"])
        except AssetError as error:
            return _replaced_best(path, judged_by, _brief(error)) or none
        if kept.judged_by == judged_by:
            return kept.best_mpjpe_mm, kept.best_epoch
        _log.info(
            f"{path} was chosen on other validation samples or labels (MPJPE {kept.best_mpjpe_mm:.3f} mm, "
            f"epoch {kept.best_epoch}): the next validation replaces it"
        )
        return none

    best: tuple[float, int] = context.broadcast_object(context.together("reading best.pt", read))
    return best


def _replaced_best(path: Path, judged_by: str, reason: str) -> tuple[float, int] | None:
    """Put a damaged best.pt aside; score and epoch of what takes its place, None if nothing can."""
    whole, _ = _others(path)
    of_this = [kept for kept in whole if kept.progress.judged_by == judged_by]
    scored = [kept for kept in of_this if kept.is_best]
    text = f"WARNING: {reason}. It is kept as {set_aside(path).name}"
    if not scored:
        known = of_this[0].progress if of_this else Progress()
        lost = f" (MPJPE {known.best_mpjpe_mm:.3f} mm, epoch {known.best_epoch})" * (known.best_epoch >= 0)
        _log.warning(
            f"{text}; no other file holds those weights{lost}: the next validation makes a new best.pt"
        )
        return None
    best = min(scored, key=lambda kept: kept.progress.best_mpjpe_mm)
    copy_tensors(best.path, path)
    score, epoch = best.progress.best_mpjpe_mm, best.progress.best_epoch
    _log.warning(f"{text}; best.pt is now a copy of {best}, MPJPE {score:.3f} mm of epoch {epoch}")
    return score, epoch


def _others(path: Path) -> tuple[list[Kept], list[str]]:
    """Whole checkpoints beside `path`, the newest by its content first; and what is wrong with the others.

    All of each file is read.
    """
    whole, damaged = [], []
    for other in sorted(path.parent.glob("*.pt"), reverse=True):
        if other.name == path.name:
            continue
        try:
            state = load_checkpoint(other, mapped=True)
        except AssetError as error:
            damaged.append(_brief(error))
        else:
            whole.append(Kept(other, state["step"], Progress(**state["progress"])))
    return sorted(whole, key=lambda kept: kept.position, reverse=True), damaged


def _brief(error: AssetError) -> str:
    """What is wrong with a file, without what to do about it."""
    return str(error).removesuffix(ADVICE).removesuffix(NO_FILE_ADVICE)


def _beside(path: Path) -> str:
    """For the end of an error about `path`: whole checkpoints of its folder."""
    if not path.is_file() and path.parent.name != FOLDER:
        return ""
    whole: Sequence[Kept] = _others(path)[0]
    return f". Whole ones beside it, the newest first: {', '.join(map(str, whole))}" if whole else ""
