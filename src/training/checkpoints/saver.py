"""When a checkpoint is written, and what happens where it cannot be: try again, and end the run only late."""

from __future__ import annotations

import time
from pathlib import Path

from src.config import RunConfig
from src.errors import AssetError, PeerError
from src.hand.mano import ManoLayer
from src.runtime.log import get_logger
from src.runtime.outlet import optional
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.checkpoint import Progress, save_checkpoint
from src.training.checkpoints.folder import names_due, prune
from src.training.step import TrainStep

MISSES, PATIENCE_S = 6, 60.0
"""A run ends after so many misses in a row, if so many seconds lie between the first and the last."""
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries in one place; the last one again and again."""
_MOST_STEPS = 32
"""Longest gap between two tries inside an epoch, optimiser steps."""

_log = get_logger("saver")


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

    def save(
        self,
        trainer: TrainStep,
        progress: Progress,
        *,
        best: bool = False,
        epoch: int | None = None,
        wait: bool = True,
    ) -> None:
        """Write last.pt, and best.pt and epoch_<k>.pt where they are due.

        Args:
            trainer: what is saved.
            progress: position of the loop.
            best: the epoch that just ended is the best so far.
            epoch: it, or None inside an epoch.
            wait: where it cannot be written, wait and try again; else later steps do, see `tries_again`.

        Raises:
            AssetError: it could not be written `MISSES` times in `PATIENCE_S`; elsewhere PeerError.
        """
        path, *copies = (
            self.folder / name for name in names_due(self._config.training, best=best, epoch=epoch)
        )
        while True:
            try:
                save_checkpoint(
                    path,
                    trainer,
                    progress,
                    self._config,
                    self._hand,
                    self._split_id,
                    self._context,
                    copies,
                )
            except (AssetError, PeerError) as error:
                pause_s = self._miss(error, trainer.step)
                if not wait:
                    return
                time.sleep(pause_s)
            else:
                break
        if self._missed:
            _log.warning(f"{path} is written again, after {self._missed} misses.")
        self._missed = 0
        if self._context.is_main:
            with optional("removing old checkpoints"):
                prune(self.folder, self._config.training)
        self._context.barrier("removing old checkpoints")

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
