"""How much of a validation split a network has all but seen in training.

HO3D films a motion with several cameras many times a second: the frame before, or the same instant from the
side, is nearly the same label. Frame numbers are time, and all cameras of a motion share it.
Legend: N validation frames, M training frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.split import motion_of
from src.errors import ConfigError, ShapeError


@dataclass(frozen=True, eq=False)
class FrameNames:
    """Which frames a split holds."""

    sequence: NDArray[np.str_]
    """(N,) sequence names, ABF10 ..."""
    frame: NDArray[np.int64]
    """(N,) frame numbers."""


@dataclass(frozen=True)
class LeakReport:
    """Counts of validation frames."""

    total: int
    """N."""
    identical: int
    """Frames that are training frames themselves."""
    neighbour: Mapping[int, int]
    """k -> frames with another training frame of their sequence at most k frame numbers away."""
    other_camera: int
    """Frames with a training frame of the same instant of their motion from another camera."""
    same_motion: int
    """Frames whose motion is in training at all, at whatever instant and from whichever camera."""

    @property
    def clean(self) -> bool:
        """No validation frame shares its motion with a training frame."""
        return not (self.identical or self.other_camera or self.same_motion or any(self.neighbour.values()))


def find_leaks(train: FrameNames, val: FrameNames, within: Sequence[int] = (1, 5, 25)) -> LeakReport:
    """Compare two splits by the names of their frames.

    Args:
        train: M frames.
        val: N frames.
        within: the distances k in frame numbers, each at least 1.

    Raises:
        ShapeError: names and numbers of a split are not two arrays of one length.
        ConfigError: a distance below 1.
    """
    for side in (train, val):
        if side.sequence.shape != side.frame.shape or side.frame.ndim != 1:
            raise ShapeError(f"leaks: {side.sequence.shape} names for {side.frame.shape} frame numbers")
    if any(k < 1 for k in within):
        raise ConfigError(f"leaks: distances in frames are {list(within)}, want each at least 1")
    names, numbers = np.unique(np.concatenate([train.sequence, val.sequence]), return_inverse=True)
    train_sequence, val_sequence = numbers[: len(train.frame)], numbers[len(train.frame) :]
    motions, motion = np.unique([motion_of(str(name)) for name in names], return_inverse=True)
    train_motion, val_motion = motion[train_sequence], motion[val_sequence]
    identical = _count(train_sequence, train.frame, val_sequence, val.frame)
    instant = _count(train_motion, train.frame, val_motion, val.frame)
    gap = _nearest_other(train_sequence, train.frame, val_sequence, val.frame)
    return LeakReport(
        total=len(val.frame),
        identical=int((identical > 0).sum()),
        neighbour={k: int((gap <= k).sum()) for k in sorted(set(within))},
        other_camera=int((instant > identical).sum()),
        same_motion=int(np.isin(np.arange(len(motions)), train_motion)[val_motion].sum()),
    )


def _keys(
    train_group: NDArray[np.intp],
    train_frame: NDArray[np.int64],
    val_group: NDArray[np.intp],
    val_frame: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """One number per (group, frame), sorted for training; and the step from one group to the next."""
    everything = np.concatenate([train_frame, val_frame, [0]])
    step = int(everything.max() - everything.min()) + 1
    low = int(everything.min())
    train = np.sort(train_group.astype(np.int64) * step + (train_frame - low))
    return train, val_group.astype(np.int64) * step + (val_frame - low), step


def _count(
    train_group: NDArray[np.intp],
    train_frame: NDArray[np.int64],
    val_group: NDArray[np.intp],
    val_frame: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(N,) training frames with the same group and number."""
    train, val, _ = _keys(train_group, train_frame, val_group, val_frame)
    return np.asarray(np.searchsorted(train, val, "right") - np.searchsorted(train, val, "left"), np.int64)


def _nearest_other(
    train_group: NDArray[np.intp],
    train_frame: NDArray[np.int64],
    val_group: NDArray[np.intp],
    val_frame: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(N,) distance to the nearest training frame of the group with another number; inf if there is none."""
    train, val, step = _keys(train_group, train_frame, val_group, val_frame)
    gap = np.full(len(val), np.inf)
    for place in (np.searchsorted(train, val, "left") - 1, np.searchsorted(train, val, "right")):
        there = np.flatnonzero((place >= 0) & (place < len(train)))
        other = train[place[there]]
        same = other // step == val[there] // step
        gap[there[same]] = np.minimum(gap[there[same]], np.abs(other - val[there])[same])
    return gap
