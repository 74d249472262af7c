"""A checkpoint of a network of a few numbers, by the code that writes those of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from src.config import RunConfig
from src.config_file import config_to_dict
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.checkpoint import Progress
from tests.training.toy import ALONE


def write_checkpoint(
    path: Path,
    *copies: Path,
    config: Any = None,
    step: int = 4,
    progress: Progress | None = None,
    weight: float = 1.0,
    width: int = 2,
    context: DistContext = ALONE,
) -> Path:
    """Write one with these settings, whatever they are; None: the defaults."""
    model = torch.nn.Linear(width, 1)
    torch.nn.init.constant_(model.weight, weight)
    trainer: Any = SimpleNamespace(
        model=model, ema=None, optimizer=SimpleNamespace(state_dict=dict), step=step, schedule_step=step,
        total_steps=99,
    )  # fmt: skip
    hand: Any = SimpleNamespace(fingerprint="f", is_standin=True)
    kept = config_to_dict(RunConfig()) if config is None else config
    with mock.patch.object(ckpt, "config_to_dict", return_value=kept):
        position = progress or Progress(epoch=step // 4)
        ckpt.save_checkpoint(path, trainer, position, RunConfig(), hand, "abc", context, copies)
    return path
