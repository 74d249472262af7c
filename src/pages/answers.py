"""The first questions about a validation, answered in sentences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from src.evaluation.scored import NOT_WRIST, WRIST, JointErrors, Scored, flipped_text
from src.evaluation.statistics import (
    FEW_GROUPS,
    TOO_FEW_GROUPS,
    Interval,
    Rows,
    bootstrap_groups,
    bootstrap_mean,
)
from src.geometry.in_view import HIDDEN, IN_VIEW
from src.hand.joints import OPENPOSE21
from src.pages.page import Json


def answers(
    scored: Mapping[str, Scored], baselines: Mapping[str, Rows], means: Mapping[str, Mapping[str, Json]]
) -> list[str]:
    """How good, better than nothing, depth, refinement, what is wrong, hidden joints, the worst sequence.

    Args:
        scored: modality -> its rows; the first is taken apart.
        baselines: `mean_pose_mpjpe_mm`, `mean_pose_pa_mm` -> (N,) mm.
        means: modality -> more scores, as `Validation.means`.
    """
    (name, rows), *others = scored.items()
    if not len(rows.mpjpe_mm):
        return ["No sample could be scored."]
    said = [_score(other, own) for other, own in scored.items()]
    if rows.nonfinite:
        return said
    mean_pose = [baselines.get(f"mean_pose_{metric}") for metric in ("mpjpe_mm", "pa_mm")]
    pairs = [(f"{name} beside the mean pose, which sees no picture", [
        None if column is None else column[rows.usable] for column in mean_pose
    ])]  # fmt: skip
    pairs += [
        (f"Depth, {name} beside {other}", [own.mpjpe_mm, own.pa_mpjpe_mm])
        for other, own in others
        if not own.nonfinite
    ]
    for title, columns in pairs:
        told = [
            f"{metric} is {gain(rows_interval(column - own, rows.motions))}"
            for metric, column, own in zip(
                ("MPJPE", "PA-MPJPE"), columns, (rows.mpjpe_mm, rows.pa_mpjpe_mm), strict=True
            )
            if column is not None
        ]
        if told:
            said.append(f"{title}: {'; '.join(told)}.")
    said += _refinement(name, rows, means.get(name, {}))
    if rows.joints is not None:
        said += [_worst_joints(name, rows, rows.joints), *_views(name, rows, rows.joints)]
    if (flipped := flipped_text(scored)) is not None:
        said.append(f"{flipped}: palm is taken for back, or fingers for the arm.")
    for metric, column in ((1, "MPJPE"), (2, "PA-MPJPE")):
        worst, numbers = max(rows.by_sequence().items(), key=lambda item: item[1][metric])
        said.append(f"The worst sequence by {column} ({name}): {worst}, {numbers[metric]:.3f} mm.")
    said.append("In brackets: the 95 % interval over motions. Sure: 0 is outside of it; not sure: inside.")
    if 1 < (count := len(np.unique(rows.motions))) < TOO_FEW_GROUPS:
        said[-1] += f" {count} motions are too few to be sure of anything."
    elif TOO_FEW_GROUPS <= count < FEW_GROUPS:
        said[-1] += f" Likely: outside, but {count} motions are few."
    return said


def _score(name: str, rows: Scored) -> str:
    """The two scores of a modality."""
    if rows.nonfinite:
        return f"{name}: {rows.nonfinite} predictions are not finite, so there is no score."
    return (
        f"{name}: joints are off by {rows.estimate(rows.mpjpe_mm)} mm on average (MPJPE), and by "
        f"{rows.estimate(rows.pa_mpjpe_mm)} mm after alignment (PA-MPJPE)."
    )


def rows_interval(values: Rows, motions: NDArray[np.str_]) -> Interval | None:
    """Mean and interval of (n,) values; None if one is not finite."""
    return bootstrap_mean(values, motions, seed=0) if np.isfinite(values).all() else None


def gain(interval: Interval | None) -> str:
    """What a paired difference in mm says; above 0: the error is lower."""
    if interval is None:
        return "not comparable"
    way = "lower" if interval.mean >= 0.0 else "higher"
    text = f"{way} by {abs(interval.mean):.3f}"
    if not interval.exists:
        return f"{text} mm (one motion: not sure)"
    ends = (interval.low, interval.high) if interval.mean >= 0.0 else (-interval.high, -interval.low)
    return f"{text} mm [{ends[0]:.3f}, {ends[1]:.3f}] ({interval.certainty})"


def _refinement(name: str, rows: Scored, means: Mapping[str, Json]) -> list[str]:
    """Whether the last part of the network pays."""
    before = means.get("MPJPE before refinement, mm"), means.get("PA-MPJPE before refinement, mm")
    if any(value is None for value in before):
        return []
    after = rows.mpjpe_mm.mean(), rows.pa_mpjpe_mm.mean()
    changes = [
        f"{then:.3f} to {now:.3f} mm ({'better' if now < then else 'worse'})"
        for then, now in zip(before, after, strict=True)
    ]
    return [f"Refinement ({name}) takes MPJPE from {changes[0]} and PA-MPJPE from {changes[1]}."]


def _worst_joints(name: str, rows: Scored, joints: JointErrors) -> str:
    """What is wrong: the hand as a whole, or which of its joints."""
    relative, aligned = float(rows.mpjpe_mm.mean()), float(rows.pa_mpjpe_mm.mean())
    errors = [joints.of([j])[1] for j in range(len(OPENPOSE21))]
    worst, best = int(np.argmax(errors)), int(np.argmin(errors))
    return (
        f"What is wrong ({name}): alignment of the whole hand (rotation, scale, shift) takes away "
        f"{relative - aligned:.3f} of {relative:.3f} mm. In what is left, the worst joint is "
        f"{OPENPOSE21[worst]} ({errors[worst]:.3f} mm), the best {OPENPOSE21[best]} ({errors[best]:.3f} mm)."
    )


def _views(name: str, rows: Scored, joints: JointErrors) -> list[str]:
    """What being hidden costs, over all joints, and for a joint beside the same joint."""
    (count, seen), (others, hidden) = (joints.of_view(kind, NOT_WRIST) for kind in (IN_VIEW, HIDDEN))
    if not (count and others):
        return []
    text = f"Joints in view ({name}): {seen:.3f} mm over {count}, hidden ones {hidden:.3f} mm over {others}."
    cost = gain(hidden_cost(joints, rows.motions))
    return [f"{text} When each joint is compared with itself, the error in view is {cost}."]


def hidden_cost(joints: JointErrors, motions: NDArray[np.str_]) -> Interval | None:
    """How much worse a hidden joint is than the same joint in view, with its interval.

    Tips are hidden more often than knuckles and worse anyway, so joints are not thrown together: a joint
    counts as often as it is hidden, if it is also in view somewhere.

    Args:
        joints: n rows.
        motions: (n,) drawn with replacement as wholes.

    Returns:
        mm; None if an error is not finite, or no joint is both hidden and in view.
    """
    if not np.isfinite(joints.relative_mm).all():
        return None
    names, member = np.unique(motions, return_inverse=True)
    masks = [(joints.in_view == kind) & (np.arange(len(OPENPOSE21)) != WRIST) for kind in (HIDDEN, IN_VIEW)]
    totals = np.zeros((4, len(names), len(OPENPOSE21)))
    for k, mask in enumerate(masks):
        np.add.at(totals[k], member, mask)
        np.add.at(totals[2 + k], member, mask * joints.relative_mm)

    def cost(weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """(R,) of (R, G) times that each motion is there."""
        hidden, seen, hidden_sum, seen_sum = weights @ totals
        both = (hidden > 0) & (seen > 0)
        difference = hidden_sum / np.maximum(hidden, 1) - seen_sum / np.maximum(seen, 1)
        counts = np.where(both, hidden, 0.0)
        return np.asarray((counts * difference).sum(axis=1) / np.maximum(counts.sum(axis=1), 1))

    if not ((totals[0].sum(axis=0) > 0) & (totals[1].sum(axis=0) > 0)).any():
        return None
    centre = float(cost(np.ones((1, len(names))))[0])
    if len(names) < 2:
        return Interval(centre, math.nan, math.nan, len(names))
    return Interval(centre, *bootstrap_groups(cost, len(names), seed=0), len(names))
