"""Steady hands along a video: the one-euro filter.

Source: Casiez, Roussel and Vogel 2012, "1 euro filter: a simple speed-based low-pass filter". The faster a
hand moves, the less it is filtered: no jitter at rest, little lag in motion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from src.predict.frame import HandBox
from src.predict.hands import PER_HAND, Hands

MIN_CUTOFF_HZ = 1.5
"""Cutoff for a hand at rest."""
BETA_PER_M = 12.0
"""Rise of the cutoff (Hz) by a mean speed of the joints of 1 m/s."""
SPEED_CUTOFF_HZ = 2.0
"""Cutoff of the speed itself."""
SAME_HAND_M = 0.15
"""A hand whose wrist moves farther from one frame to the next is another one."""
LOST_S = 0.5
"""A hand that was not seen for longer starts anew."""

_ROTATIONS = ("global_orient", "hand_pose")


@dataclass
class _Track:
    """What is known of one hand."""

    left: bool
    time_s: float
    raw_joints_m: NDArray[np.float32]
    speed_m_s: float
    filtered: dict[str, NDArray[np.float32]]


class Smoother:
    """Filters the hands of a video's frames, given in their order; equal frames give equal numbers."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []

    def __call__(self, time_s: float, hands: Hands, boxes: Sequence[HandBox]) -> Hands:
        """The hands of the next frame, filtered.

        One cutoff holds for all of a hand, so joints, mesh and parameters stay together.

        Args:
            time_s: of the frame, growing.
            hands: N, NumPy arrays.
            boxes: N, of the hands.
        """
        self._tracks = [track for track in self._tracks if time_s - track.time_s <= LOST_S]
        free, out = list(self._tracks), {name: getattr(hands, name).copy() for name in PER_HAND}
        for k in range(len(boxes)):
            row = {name: values[k] for name, values in out.items()}
            track = _nearest(free, bool(hands.left[k]), row["joints_m"][0])
            if track is None:
                joints = row["joints_m"].copy()
                fresh = _Track(
                    bool(hands.left[k]), time_s, joints, 0.0, {n: v.copy() for n, v in row.items()}
                )
                self._tracks.append(fresh)
                continue
            free.remove(track)
            _advance(track, time_s, row)
            for name, value in track.filtered.items():
                out[name][k] = value
        return replace(hands, **out)


def _nearest(tracks: Sequence[_Track], left: bool, wrist_m: NDArray[np.float32]) -> _Track | None:
    """The track of the same side whose wrist is nearest, if it is near."""
    gaps = [
        (float(np.linalg.norm(track.raw_joints_m[0] - wrist_m)), k)
        for k, track in enumerate(tracks)
        if track.left == left
    ]
    gap, best = min(gaps, default=(math.inf, -1))
    return tracks[best] if gap < SAME_HAND_M else None


def _advance(track: _Track, time_s: float, row: dict[str, NDArray[np.float32]]) -> None:
    """One step of the filter."""
    step_s = time_s - track.time_s
    speed = float(np.linalg.norm(row["joints_m"] - track.raw_joints_m, axis=1).mean()) / step_s
    track.speed_m_s += _share(SPEED_CUTOFF_HZ, step_s) * (speed - track.speed_m_s)
    share = np.float32(_share(MIN_CUTOFF_HZ + BETA_PER_M * track.speed_m_s, step_s))
    for name, value in row.items():
        mixed = track.filtered[name] + share * (value - track.filtered[name])
        track.filtered[name] = _rotation(mixed) if name in _ROTATIONS else mixed
    track.time_s, track.raw_joints_m = time_s, row["joints_m"].copy()


def _share(cutoff_hz: float, step_s: float) -> float:
    """Weight of the newest value in a low-pass filter of first order."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * step_s))


def _rotation(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 3, 3) -> the nearest rotations."""
    u, _, vt = np.linalg.svd(matrix.astype(np.float64))
    u[..., -1] *= np.linalg.det(u @ vt)[..., None]
    return np.asarray(u @ vt, np.float32)
