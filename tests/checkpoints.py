"""The least that a checkpoint holds, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from src.config import RunConfig
from src.config_file import config_to_dict
from src.runtime.files.tensor_file import save_tensors


def write_checkpoint(path: Path, config: Any = None) -> Path:
    """Write one with these settings; None: the defaults."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 3,
        "model": {},
        "ema": None,
        "optimizer": {},
        "schedule_step": 4,
        "total_steps": 9,
        "step": 4,
        "progress": {},
        "rng": [{"cpu": torch.get_rng_state()}],
        "config": config_to_dict(RunConfig()) if config is None else config,
        "world": 1,
        "hand_fingerprint": "",
        "hand_is_standin": True,
        "split_hash": "",
        "commit": "",
    }
    save_tensors(content, path)
    return path
