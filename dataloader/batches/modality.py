"""Whether a sample's depth is shown to the network, decided before any file is opened."""

from __future__ import annotations

from typing import Literal

from src.runtime.seed import stream

Modality = Literal["train", "rgbd", "rgb"]
"""train: depth dropped at random; rgbd: always shown; rgb: never shown."""


def show_depth(modality: Modality, p_drop: float, seed: int, epoch: int, index: int) -> bool:
    """Decide about one sample from (seed, epoch, index) alone: the same on any worker and rank.

    A depth picture that is not shown is never read: it is 80 % of the decoding time.

    Args:
        modality: how the loader shows depth.
        p_drop: probability that a training sample is shown without depth.
        seed: the run's seed.
        epoch: pass over the training split.
        index: row of the split.
    """
    if modality != "train":
        return modality == "rgbd"
    return bool(stream(seed, "modality", epoch, index).random() >= p_drop)
