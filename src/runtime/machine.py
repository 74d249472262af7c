"""Settings of torch that hold for a whole process."""

from __future__ import annotations

import os

import torch

from src.config import RuntimeConfig


def configure_torch(config: RuntimeConfig) -> None:
    """Set threads, determinism and TF32 before the first computation."""
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # A few CUDA kernels (grid_sample's gradient) have no deterministic form: torch then warns by name.
        torch.use_deterministic_algorithms(True, warn_only=True)
