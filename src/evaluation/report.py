"""A validation in words: its log lines.

Numbers are millimetres. What has no complete label is left out and counted. A prediction that is not finite
makes every mean it belongs to nan, and is counted. Intervals are over whole motions, 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from src.errors import CollectError, DataError
from src.evaluation.collect import MESH_USABLE
from src.evaluation.evaluator import CheckedResult
from src.evaluation.scored import FINGER_JOINTS, NOT_WRIST, Scored, flipped_text
from src.evaluation.statistics import mean
from src.geometry.in_view import HIDDEN, IN_VIEW
from src.hand.joints import FINGERS
from src.schema import EvalResult

BASELINES = {
    "zero": "zero pose",
    "mean_pose": "mean pose",
    "nearest_pose": "nearest training pose",
}
"""Key of a baseline in `EvalResult.baselines` and what it is called."""


def report_lines(result: CheckedResult, world: int, device_label: str) -> list[str]:
    """The log lines of a validation.

    Args:
        result: from `evaluate`.
        world: ranks of the run; must be the number that the rows came from.
        device_label: `GPUs` or `CPU ranks`.

    Raises:
        CollectError: other samples were counted than are scored, or on another number of ranks.
    """
    receipt, columns = result.receipt, result.columns
    if receipt.world != world or receipt.num_samples != result.num_samples + result.unusable_labels:
        raise CollectError(
            f"report_lines: {result.num_samples} scored + {result.unusable_labels} unusable samples from "
            f"{world} ranks, but {receipt.num_samples} samples from {receipt.world} ranks were counted"
        )
    lines = [
        f"  Val Loss: {result.loss:.3f}, MPJPE: {result.mpjpe_mm:.3f} mm, "
        f"PA-MPJPE: {result.pa_mpjpe_mm:.3f} mm",
        f"  Evaluated on {result.num_samples} samples from all {world} {device_label}",
    ]
    if "mpvpe_mm" in columns:
        line = f"  Vertices: MPVPE {columns['mpvpe_mm']:.3f} mm, PA-MPVPE {columns['pa_mpvpe_mm']:.3f} mm"
        if (labelled := int(columns[MESH_USABLE])) != receipt.num_samples:
            line += f" ({labelled} of {receipt.num_samples} meshes labelled)"
        lines.append(line)
    if "coarse_mpjpe_mm" in columns:
        coarse, aligned = columns["coarse_mpjpe_mm"], columns["coarse_pa_mpjpe_mm"]
        lines.append(f"  Before refinement: MPJPE {coarse:.3f} mm, PA-MPJPE {aligned:.3f} mm")
    if result.nonfinite_count:
        lines.append(f"  Non-finite predictions: {nonfinite_text(result)}")
    if result.unusable_labels:
        of_all = f"{result.unusable_labels} of {receipt.num_samples} samples"
        lines.append(f"  Unusable ground truth: {of_all}, not scored")
    if result.baselines:
        lines.append(f"  Baselines of this split: {_baseline_text(result.baselines)}")
    return lines


def beside_labels(labels: CheckedResult, other: CheckedResult) -> dict[str, float]:
    """Scores with other boxes, and those of the labels' boxes on the samples that have one; on rank 0.

    Returns:
        `MPJPE` and `PA-MPJPE` in mm, `labels/MPJPE` and `labels/PA-MPJPE`, `samples` that are scored, and
        `without`: samples with a label and without a box.

    Raises:
        DataError: this rank has no rows.
    """
    if labels.rows is None or other.rows is None:
        raise DataError("scores of other boxes are computed from per-sample rows, which are on rank 0")
    same = other.rows.usable
    return {
        "MPJPE": other.mpjpe_mm,
        "PA-MPJPE": other.pa_mpjpe_mm,
        "labels/MPJPE": mean(labels.rows.mpjpe_mm[same]),
        "labels/PA-MPJPE": mean(labels.rows.pa_mpjpe_mm[same]),
        "samples": other.num_samples,
        "without": labels.num_samples - other.num_samples,
    }


def boxes_line(scores: Mapping[str, float], boxes: str, modality: str) -> str:
    """`beside_labels` as a log line.

    Args:
        scores: of one modality.
        boxes: where the boxes are from.
        modality: `RGB-D` or another, which is named.
    """
    hidden = "" if modality == "RGB-D" else f" ({modality})"
    return (
        f"  With boxes of {boxes}{hidden}: MPJPE: {scores['MPJPE']:.3f} mm, PA-MPJPE: "
        f"{scores['PA-MPJPE']:.3f} mm; with label boxes on the same {scores['samples']} samples: MPJPE: "
        f"{scores['labels/MPJPE']:.3f} mm, PA-MPJPE: {scores['labels/PA-MPJPE']:.3f} mm; "
        f"{scores['without']} samples without a box"
    )


def nonfinite_text(result: EvalResult) -> str:
    """How many predictions are not finite, and the first of them."""
    shown = ", ".join(map(str, result.nonfinite_indices))
    more = ", ..." if result.nonfinite_count > len(result.nonfinite_indices) else ""
    return f"{result.nonfinite_count} (samples {shown}{more})"


def _baseline_text(baselines: Mapping[str, float]) -> str:
    """The scores of predictors that learned nothing, in one line."""
    parts: dict[str, list[str]] = {}
    for key, name in BASELINES.items():
        for suffix, metric in (("mpjpe_mm", "MPJPE"), ("pa_mm", "PA-MPJPE")):
            if (value := baselines.get(f"{key}_{suffix}")) is not None:
                parts.setdefault(name, []).append(f"{metric} {value:.3f} mm")
    return "; ".join(f"{name} {', '.join(scores)}" for name, scores in parts.items())


def summary_lines(scored: Mapping[str, Scored]) -> list[str]:
    """Short lines for the log: intervals, palms turned over, joints in view, worst finger, worst sequence.

    Args:
        scored: name of a modality (`RGB-D`, `RGB-only`) -> its rows, all of one split. The first is taken
            apart.
    """
    lines, broken = [], []
    for name, rows in scored.items():
        mpjpe, pa = rows.estimate(rows.mpjpe_mm), rows.estimate(rows.pa_mpjpe_mm)
        lines.append(f"  {name}: MPJPE {mpjpe} mm, PA-MPJPE {pa} mm over {rows.extent}")
        if rows.nonfinite:
            broken.append(f"  Non-finite predictions ({name}): {rows.nonfinite}; means with them are nan")
    name, rows = next(iter(scored.items()))
    lines += broken
    if (flipped := flipped_text(scored)) is not None:
        lines.append(f"  {flipped}")
    if rows.joints is not None:
        (count, seen), (others, hidden) = (rows.joints.of_view(kind, NOT_WRIST) for kind in (IN_VIEW, HIDDEN))
        if count and others:
            lines.append(
                f"  Joints in view ({name}): {seen:.3f} mm, n={count}; hidden: {hidden:.3f} mm, n={others}"
            )
        errors = [rows.joints.of(joints)[0] for joints in FINGER_JOINTS.values()]
        worst = int(np.argmax(errors))  # nan counts as the largest
        lines.append(f"  Worst finger ({name}): {FINGERS[worst]}, {errors[worst]:.3f} mm wrist-relative")
    for sequence, (count, mpjpe_mm, _) in list(rows.by_sequence().items())[:1]:
        lines.append(f"  Worst sequence ({name}): {sequence}, MPJPE {mpjpe_mm:.3f} mm, n={count}")
    return lines
