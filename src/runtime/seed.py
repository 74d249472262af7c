"""Named random streams: the same name gives the same numbers on any rank, worker and machine."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Generator of the stream that `names` spell, apart from all others.

    Args:
        seed: root seed, >= 0.
        names: words (hashed with crc32) and numbers >= 0, e.g. `stream(0, "augment", epoch, sample_index)`.
    """
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else int(name) for name in names]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """The stream of the same names as a torch CPU generator."""
    generator = torch.Generator()
    generator.manual_seed(int(stream(seed, *names).integers(0, 2**63 - 1)))
    return generator


def seed_everything(seed: int, rank: int) -> None:
    """Start the global generators of torch for a training run, once, apart for each rank.

    Only dropped paths and initial weights draw from them; data and validation have streams of their own.
    """
    torch.manual_seed(int(stream(seed, "torch", rank).integers(0, 2**63 - 1)))
