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

from src.schema import motion_of

Names = tuple[NDArray[np.str_], NDArray[np.int64]]
"""Sequence names (N,) such as ABF10 and frame numbers (N,) of a split, as by `SplitFrames.names`."""


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


def find_leaks(train: Names, val: Names, within: Sequence[int] = (1, 5, 25)) -> LeakReport:
    """Compare two splits by the names of their frames.

    Args:
        train: M frames.
        val: N frames.
        within: the distances k in frame numbers, each at least 1.
    """
    names, numbers = np.unique(np.concatenate([train[0], val[0]]), return_inverse=True)
    motions, motion = np.unique([motion_of(str(name)) for name in names], return_inverse=True)
    filmed = np.unique([_filmed(str(name)) for name in names], return_inverse=True)[1]
    frame = np.concatenate([train[1], val[1]])
    frame = frame - frame.min(initial=0)
    step = int(frame.max(initial=0)) + 1
    count = len(train[1])
    sequence_key, instant_key = numbers * step + frame, filmed[numbers] * step + frame
    sequence_train, instant_train = np.sort(sequence_key[:count]), np.sort(instant_key[:count])
    identical = _count(sequence_train, sequence_key[count:])
    instant = _count(instant_train, instant_key[count:])
    gap = _nearest_other(sequence_train, sequence_key[count:], step)
    shared = np.isin(np.arange(len(motions)), motion[numbers[:count]])
    return LeakReport(
        total=len(val[1]),
        identical=int((identical > 0).sum()),
        neighbour={k: int((gap <= k).sum()) for k in sorted(set(within))},
        other_camera=int((instant > identical).sum()),
        same_motion=int(shared[motion[numbers[count:]]].sum()),
    )


def _filmed(sequence: str) -> str:
    """What the cameras of a sequence film at once: of names with one digit, takes of one camera, itself.

    Source: `multiCamSeqs` of HO3D's own vis_pcl_all_cameras.py; all of these names have one more digit.
    """
    return motion_of(sequence) if sequence[-2:].isdigit() else sequence


def _count(train: NDArray[np.int64], val: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how often each key of val is among the sorted (M,) keys of training."""
    return np.asarray(np.searchsorted(train, val, "right") - np.searchsorted(train, val, "left"), np.int64)


def _nearest_other(train: NDArray[np.int64], val: NDArray[np.int64], step: int) -> NDArray[np.float64]:
    """(N,) distance to the nearest training frame of its sequence with another number, inf without one.

    Keys are sequence x step + frame; those of training are sorted.
    """
    gap = np.full(len(val), np.inf)
    for place in (np.searchsorted(train, val, "left") - 1, np.searchsorted(train, val, "right")):
        there = np.flatnonzero((place >= 0) & (place < len(train)))
        other = train[place[there]]
        same = other // step == val[there] // step
        gap[there[same]] = np.minimum(gap[there[same]], np.abs(other - val[there])[same])
    return gap
