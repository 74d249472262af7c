"""The checkpoints of a run: when they are written, and which one it goes on from.

Each is a file of its own: damage to one is not damage to all. Where one is damaged another can do its work,
where the disk does not take one it is tried again, and a line says so: nothing is passed over in silence.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import RunConfig
from src.errors import AssetError, PeerError
from src.hand.mano import ManoLayer
from src.runtime.files.disk import set_aside
from src.runtime.files.tensor_file import ADVICE, NO_FILE_ADVICE
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from src.training.step import TrainStep

FOLDER = "checkpoints"
LAST, BEST = "last.pt", "best.pt"
MISSES, PATIENCE_S = 6, 60.0
"""A run ends after so many misses in a row, if so many seconds lie between the first and the last."""
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries in one place; the last one again and again."""
_MOST_STEPS = 32
"""Longest gap between two tries inside an epoch, optimiser steps."""
_log = get_logger("checkpoints")


class Saver:
    """Writes a run's checkpoints; all ranks call it together."""

    def __init__(
        self, folder: Path, config: RunConfig, hand: ManoLayer, split_id: str, context: DistContext
    ) -> None:
        """Args: the run's folder of checkpoints; what is stored in them; the ranks."""
        self.folder = folder
        self._config = config
        self._hand = hand
        self._split_id = split_id
        self._context = context
        self._missed = 0
        self._first_miss_s = 0.0
        self._next_step = 0

    def tries_again(self, step: int) -> bool:
        """Whether a save that failed is due once more after this optimiser step."""
        return self._missed > 0 and step >= self._next_step

    def save(self, trainer: TrainStep, progress: Progress, *, best: bool = False, wait: bool = True) -> None:
        """Write last.pt, and best.pt before it: a run that dies in between comes here again.

        Args:
            trainer: what is saved.
            progress: position of the loop.
            best: the epoch that just ended is the best so far.
            wait: where it cannot be written, wait and try again; else later steps do, see `tries_again`.

        Raises:
            AssetError: it could not be written `MISSES` times in `PATIENCE_S`; elsewhere PeerError.
        """
        last = self.folder / LAST
        path, copies = (self.folder / BEST, [last]) if best else (last, [])
        what = self._config, self._hand, self._split_id, self._context
        while True:
            try:
                save_checkpoint(path, trainer, progress, *what, copies)
                break
            except (AssetError, PeerError) as error:
                pause_s = self._miss(error, trainer.step)
                if not wait:
                    return
                time.sleep(pause_s)
        if self._missed:
            _log.warning(f"{path} is written again, after {self._missed} misses.")
        self._missed = 0

    def _miss(self, error: AssetError | PeerError, step: int) -> float:
        """Count a miss and say it; seconds until the next try. Raises the error when it was the last one."""
        self._first_miss_s = self._first_miss_s if self._missed else time.monotonic()
        self._missed += 1
        tried_s = time.monotonic() - self._first_miss_s
        if self._context.broadcast_object(self._missed >= MISSES and tried_s >= PATIENCE_S):
            raise type(error)(f"{error}. Tried {self._missed} times in {tried_s:.0f} s") from error
        if self._missed == 1:
            _log.warning(f"WARNING: {error}. It is tried again; the run goes on.")
        self._next_step = step + min(2 ** (self._missed - 1), _MOST_STEPS)
        return _PAUSES_S[min(self._missed, len(_PAUSES_S)) - 1]


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

    def __str__(self) -> str:
        """For messages."""
        return f"{self.path} (epoch {self.progress.epoch}, step {self.step})"


def open_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """`load_checkpoint`, whose error names the whole checkpoints of the folder.

    Raises:
        AssetError: as of `load_checkpoint`.
    """
    try:
        return load_checkpoint(path, mapped=mapped)
    except AssetError as error:
        raise AssetError(f"{error}{_beside(path)}") from None


def to_go_on_from(path: Path) -> tuple[Path, str]:
    """The checkpoint that a run goes on from: `path`, or what `instead_of` names. Run by rank 0.

    A damaged last.pt gets another name, because the run will write a new one.

    Returns:
        the file, and where it is another one, a warning that says why and which; else "".

    Raises:
        AssetError: as of `instead_of`.
    """
    try:
        load_checkpoint(path, mapped=True, any_format=True)
        return path, ""
    except AssetError as error:
        whole, why = instead_of(path, error), _brief(error)
    kept = f" The damaged one is kept as {set_aside(path).name}." if os.path.lexists(path) else ""
    return whole.path, f"WARNING: {why}. Going on from {whole}, the newest whole one there.{kept}"


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


def best_so_far(folder: Path, judged_by: str, context: DistContext) -> tuple[float, int]:
    """Score (mm) and epoch of best.pt in a run's folder of checkpoints; (inf, -1) if the next is the best.

    The checkpoint that a run goes on from may stand in another folder, or be older than best.pt. A damaged
    best.pt gets another name, and the next validation makes a new one.

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
            now = set_aside(path).name
            _log.warning(
                f"WARNING: {_brief(error)}. It is kept as {now}: the next validation makes a new one"
            )
            return none
        if kept.judged_by == judged_by:
            return kept.best_mpjpe_mm, kept.best_epoch
        _log.info(
            f"{path} was chosen on other validation samples or labels (MPJPE {kept.best_mpjpe_mm:.3f} mm, "
            f"epoch {kept.best_epoch}): the next validation replaces it"
        )
        return none

    best: tuple[float, int] = context.broadcast_object(context.together("reading best.pt", read))
    return best


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
    whole = _others(path)[0] if path.is_file() or path.parent.name == FOLDER else []
    return f". Whole ones beside it, the newest first: {', '.join(map(str, whole))}" if whole else ""
