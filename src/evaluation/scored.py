"""A validation taken apart by joint, finger, sequence, threshold, view, distance: for log and page.

Legend: N samples, n of them with a complete label, J 21 joints (`OPENPOSE21`). Numbers are millimetres unless
something else is said. What has no complete label is left out and counted. A prediction that is not finite
makes every mean it belongs to nan. Intervals are over whole motions (`src.evaluation.statistics`), 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import DataError
from src.evaluation.evaluator import CheckedResult
from src.evaluation.statistics import FEW_GROUPS, Rows, bootstrap_mean, chunks, mean
from src.geometry.procrustes import fit_rotation, fit_similarity
from src.hand.joints import FINGERS, OPENPOSE21
from src.schema import motion_of

WRIST = OPENPOSE21.index("wrist")
FINGER_JOINTS = {finger: [OPENPOSE21.index(f"{finger}_{k}") for k in range(1, 5)] for finger in FINGERS}
"""Finger -> its four joints, from the knuckle to the tip."""
NOT_WRIST = tuple(j for j in range(len(OPENPOSE21)) if j != WRIST)
"""The joints that have a wrist-relative error."""
THRESHOLDS_MM = np.arange(51.0)
"""Where the share of correct joints (PCK) is taken: 0 to 50 mm."""
FLIPPED_DEG = 90.0
"""A palm that is turned further is taken for the back of the hand, or fingers for the arm."""
_PALM = [WRIST, *(joints[0] for joints in FINGER_JOINTS.values())]
_MM_PER_M = 1000.0


@dataclass(frozen=True, eq=False)
class JointErrors:
    """Errors joint by joint of the n rows that count."""

    relative_mm: NDArray[np.float64]
    """(n, J) wrist-relative."""
    aligned_mm: NDArray[np.float64]
    """(n, J) after the best similarity."""
    in_view: NDArray[np.int8]
    """(n, J) see `src.geometry.in_view`."""
    distance_m: NDArray[np.float64]
    """(n,) of the labelled wrist from the camera, metres."""
    turned_deg: NDArray[np.float64]
    """(n,) rotation between the predicted and the labelled palm (wrist and knuckles), 0-180; nan: none."""

    @property
    def flipped(self) -> int:
        """Hands that are seen the wrong way round: turned by more than `FLIPPED_DEG`, or not finite."""
        return int(np.count_nonzero(~(self.turned_deg <= FLIPPED_DEG)))

    def of(self, joints: Sequence[int]) -> tuple[float, float]:
        """Mean error of some joints, wrist-relative and aligned; nan if one is not finite."""
        chosen = list(joints)
        return mean(self.relative_mm[:, chosen].ravel()), mean(self.aligned_mm[:, chosen].ravel())

    def of_view(self, kind: int, joints: Sequence[int]) -> tuple[int, float]:
        """How many of some joints are `kind` (`IN_VIEW`, `HIDDEN`, `UNKNOWN`), and their mean error.

        Args:
            kind: see `src.geometry.in_view`.
            joints: those that count.
        """
        chosen = self.in_view[:, list(joints)] == kind
        return int(chosen.sum()), mean(self.relative_mm[:, list(joints)][chosen])

    def share_within(self, *, aligned: bool) -> NDArray[np.float64]:
        """(51,) share of the joints that are within each of `THRESHOLDS_MM`; nan of no joint.

        A joint that is not finite is never within. The wrist counts after alignment alone: before, its error
        is 0.
        """
        errors = (self.aligned_mm if aligned else self.relative_mm[:, NOT_WRIST]).ravel()
        if not len(errors):
            return np.full(len(THRESHOLDS_MM), np.nan)
        first = np.searchsorted(THRESHOLDS_MM, errors, side="left")  # nan sorts behind all
        counts = np.bincount(first, minlength=len(THRESHOLDS_MM) + 1)[: len(THRESHOLDS_MM)]
        return np.asarray(np.cumsum(counts) / len(errors))


@dataclass(frozen=True, eq=False)
class Scored:
    """The rows of one result that count; of results of one split these are the same rows."""

    usable: NDArray[np.bool_]
    """(N,) which they are."""
    sequences: NDArray[np.str_]
    """(n,) of the frames."""
    mpjpe_mm: Rows
    """(n,)."""
    pa_mpjpe_mm: Rows
    """(n,)."""
    nonfinite: int
    """Predictions of all N samples that are not finite: one makes the means of the result nan."""
    joints: JointErrors | None
    """None where no truth is at hand, as in a per-sample file."""

    @classmethod
    def of(cls, result: CheckedResult, frames: Sequence[str]) -> Scored:
        """Rows with complete labels, and the error of each of their joints.

        Args:
            result: with per-sample rows.
            frames: N names `<sequence>/<frame>`, row i = sample i.

        Raises:
            DataError: this rank has no rows, or lengths differ.
        """
        rows = result.rows
        if rows is None:
            raise DataError("this rank has no per-sample rows: they are on rank 0")
        if len(frames) != len(rows.usable):
            raise DataError(f"got {len(frames)} frame names for {len(rows.usable)} samples")
        usable = rows.usable
        target_m = rows.target_joints_cam_m[usable]
        relative, aligned, turned = [], [], []
        for pred, target in chunks(rows.pred_joints_cam_m[usable], target_m):
            hands = [points - points[:, WRIST, None] for points in (pred, target)]
            relative.append(_lengths_mm(hands[0] - hands[1]))
            turned.append(_angles_deg(fit_rotation(*(hand[:, _PALM] for hand in hands))))
            aligned.append(_lengths_mm(fit_similarity(pred, target).apply(pred) - target))
        errors = JointErrors(
            relative_mm=np.concatenate(relative),
            aligned_mm=np.concatenate(aligned),
            in_view=rows.in_view[usable],
            distance_m=np.linalg.norm(target_m[:, WRIST].astype(np.float64), axis=-1),
            turned_deg=np.concatenate(turned),
        )
        nonfinite = int(np.count_nonzero(rows.broken))
        sequences = sequences_of(frames)[usable]
        return cls(usable, sequences, rows.mpjpe_mm[usable], rows.pa_mpjpe_mm[usable], nonfinite, errors)

    @classmethod
    def of_file(cls, arrays: Mapping[str, NDArray[Any]]) -> Scored:
        """The same of what `read_per_sample` read: without joints, because no truth is in it."""
        usable = arrays["label_usable"].astype(bool)
        nonfinite = ~np.isfinite(arrays["pred_joints_cam_m"]).all(axis=(1, 2))
        nonfinite |= usable & ~np.isfinite(arrays["loss"])
        mpjpe, pa = (arrays[name].astype(np.float64)[usable] for name in ("mpjpe_mm", "pa_mpjpe_mm"))
        return cls(
            usable, sequences_of(arrays["frame"].tolist())[usable], mpjpe, pa, int(nonfinite.sum()), None
        )

    def estimate(self, values: Rows) -> str:
        """Mean of (n,) values with its interval, as text; nan if a prediction of the result is not finite."""
        return "nan" if self.nonfinite else bootstrap_mean(values, self.motions, seed=0).text

    @property
    def motions(self) -> NDArray[np.str_]:
        """(n,) of the frames: what intervals are over."""
        return motions_of(self.sequences)

    @property
    def extent(self) -> str:
        """How many motions there are, and what that means for the intervals."""
        count = len(np.unique(self.motions))
        few = " (few: the intervals are too narrow)" if 1 < count < FEW_GROUPS else ""
        return f"{count} motion{'' if count == 1 else 's'}{few}"

    def by_sequence(self) -> dict[str, tuple[int, float, float]]:
        """Sequence -> (frames, MPJPE, PA-MPJPE); nan first, then the worst MPJPE first."""
        names, member = np.unique(self.sequences, return_inverse=True)
        order = np.argsort(member, kind="stable")
        own = np.split(order, np.cumsum(np.bincount(member)))[: len(names)]
        mpjpe = [mean(self.mpjpe_mm[rows]) for rows in own]
        return {
            str(names[k]): (len(own[k]), mpjpe[k], mean(self.pa_mpjpe_mm[own[k]]))
            for k in np.argsort(mpjpe, kind="stable")[::-1]
        }


def sequences_of(frames: Iterable[str]) -> NDArray[np.str_]:
    """(N,) sequence of each frame."""
    return np.array([sequence_of(frame) for frame in frames], dtype=np.str_)


def motions_of(sequences: Iterable[str]) -> NDArray[np.str_]:
    """(N,) motion of each sequence."""
    return np.array([motion_of(sequence) for sequence in sequences], dtype=np.str_)


def sequence_of(frame: str) -> str:
    """Sequence of a frame: `train/ABF10/0042` -> `train/ABF10`."""
    return frame.rpartition("/")[0]


def number_of(frame: str) -> int:
    """Number of a frame: `train/ABF10/0042` -> 42; 0 where its name is no number."""
    name = frame.rpartition("/")[2]
    return int(name) if name.isdecimal() else 0


def area_under(shares: NDArray[np.float64]) -> float:
    """Area under a curve of `share_within`, 1 where every joint is right at once."""
    return float(np.trapezoid(shares, THRESHOLDS_MM) / THRESHOLDS_MM[-1])


def means_over(
    values: NDArray[np.float64], errors: Rows, bins: int = 8
) -> list[tuple[float, float, int, float]]:
    """Mean error in parts of equal size along some property of the samples.

    Args:
        values: (n,) the property; rows where it or the error is not finite are left out.
        errors: (n,).
        bins: parts; fewer where values repeat.

    Returns:
        (lowest value, highest value, samples, mean error) of each part, by rising values.
    """
    known = np.isfinite(values) & np.isfinite(errors)
    values, errors = values[known], errors[known]
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, bins + 1)))
    member = np.searchsorted(edges[1:-1], values, side="right")
    parts = (member == k for k in range(max(1, len(edges) - 1)))
    return [
        (float(values[own].min()), float(values[own].max()), int(own.sum()), mean(errors[own]))
        for own in parts
        if own.any()
    ]


def _angles_deg(rotations: Tensor) -> NDArray[np.float64]:
    """(n, 3, 3) -> (n,) angles, 0-180."""
    cosine = (rotations.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1.0) / 2.0
    return np.asarray(cosine.clamp(-1.0, 1.0).acos().rad2deg().double().numpy())


def flipped_text(scored: Mapping[str, Scored]) -> str | None:
    """How many hands of each modality are seen the wrong way round; None where no truth is at hand."""
    counts = [
        f"{name} {joints.flipped} of {len(joints.turned_deg)} ({joints.flipped / len(joints.turned_deg):.2%})"
        for name, rows in scored.items()
        if (joints := rows.joints) is not None and len(joints.turned_deg)
    ]
    return f"Palms turned by more than {FLIPPED_DEG:g} degrees: {', '.join(counts)}" if counts else None


def _lengths_mm(offsets_m: Tensor) -> NDArray[np.float64]:
    """(n, J, 3) metres -> (n, J) mm."""
    lengths: NDArray[np.float64] = torch.linalg.vector_norm(offsets_m, dim=-1).numpy() * _MM_PER_M
    return lengths
