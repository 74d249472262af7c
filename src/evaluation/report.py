"""A validation in words: log lines, and a Markdown report with intervals, joints, fingers and sequences.

Legend: N samples, J 21 joints (`OPENPOSE21`). Numbers are millimetres unless a table says otherwise. What has
no complete label is left out and counted. A prediction that is not finite makes every mean it belongs to nan,
and is counted. Intervals are over whole sequences (`src.evaluation.statistics`), 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.errors import CollectError, DataError
from src.evaluation.collect import MESH_USABLE, Receipt
from src.evaluation.evaluator import CheckedResult
from src.evaluation.official import official_unit
from src.evaluation.statistics import Rows, bootstrap_mean, chunks, mean
from src.geometry.procrustes import fit_similarity
from src.hand.joints import FINGERS, OPENPOSE21
from src.schema import EvalResult

BASELINES = {
    "zero": "zero pose",
    "mean_pose": "mean pose",
    "nearest_pose": "nearest training pose",
}
"""Key of a baseline in `EvalResult.baselines` and what it is called."""

_MM_PER_M = 1000.0
_WRIST = OPENPOSE21.index("wrist")
_MINUS = "\N{MINUS SIGN}"


def report_lines(result: CheckedResult, world: int, device_label: str) -> list[str]:
    """The log lines of a validation.

    Args:
        result: from `evaluate`: without its exactly-once check there is no 'Evaluated on' line.
        world: ranks of the run; must be the number that the rows came from.
        device_label: `GPUs` or `CPU ranks`.

    Raises:
        CollectError: the result was not checked, or came from another number of ranks.
    """
    receipt = getattr(result, "receipt", None)
    if not isinstance(receipt, Receipt):
        raise CollectError("report_lines: this result is not from evaluate(); its samples were never counted")
    if receipt.world != world or receipt.num_samples != result.num_samples + result.unusable_labels:
        raise CollectError(
            f"report_lines: {result.num_samples} scored + {result.unusable_labels} unusable samples from "
            f"{world} ranks, but {receipt.num_samples} samples from {receipt.world} ranks were counted"
        )
    mpjpe, pa_mpjpe, columns = result.mpjpe_mm, result.pa_mpjpe_mm, result.columns
    lines = [
        f"  Val Loss: {result.loss:.3f}, MPJPE: {mpjpe:.3f} mm, PA-MPJPE: {pa_mpjpe:.3f} mm",
        f"  Evaluated on {result.num_samples} samples from all {world} {device_label}",
    ]
    if "mpvpe_mm" in columns:
        line = f"  Vertices: MPVPE {columns['mpvpe_mm']:.3f} mm, PA-MPVPE {columns['pa_mpvpe_mm']:.3f} mm"
        labelled = int(columns[MESH_USABLE])
        some = f" ({labelled} of {receipt.num_samples} meshes labelled)"
        lines.append(line if labelled == receipt.num_samples else line + some)
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


def nonfinite_text(result: EvalResult) -> str:
    """How many predictions are not finite, and the first of them."""
    shown = ", ".join(map(str, result.nonfinite_indices))
    more = ", ..." if result.nonfinite_count > len(result.nonfinite_indices) else ""
    return f"{result.nonfinite_count} (samples {shown}{more})"


def _baseline_text(baselines: Mapping[str, float]) -> str:
    """The constant predictors' scores in one line."""
    parts = []
    for key, name in BASELINES.items():
        scores = [
            f"{label} {baselines[f'{key}_{suffix}']:.3f} mm"
            for suffix, label in (("mpjpe_mm", "MPJPE"), ("pa_mm", "PA-MPJPE"))
            if f"{key}_{suffix}" in baselines
        ]
        if scores:
            parts.append(f"{name} {', '.join(scores)}")
    return "; ".join(parts)


@dataclass(frozen=True)
class _Scored:
    """The rows of one result that count."""

    sequences: NDArray[np.str_]
    """(n,) of the frames with complete labels."""
    mpjpe_mm: Rows
    """(n,)."""
    pa_mpjpe_mm: Rows
    """(n,)."""
    relative_mm: NDArray[np.float64]
    """(n, J) wrist-relative error of each joint."""
    aligned_mm: NDArray[np.float64]
    """(n, J) error of each joint after the best similarity."""
    unusable: int
    """Rows left out."""
    nonfinite: int
    """Predictions of all N samples that are not finite: one makes the means of the result nan."""


def validation_report(
    results: Mapping[str, CheckedResult],
    frames: Sequence[str],
    *,
    official: Mapping[str, Mapping[str, float]],
    baseline_rows: Mapping[str, Rows],
) -> str:
    """The whole report as Markdown.

    Args:
        results: name of a modality (`RGB-D`, `RGB-only`) -> result with per-sample rows, all of one split.
            The first is the one that sequences are sorted by.
        frames: N names `<sequence>/<frame>`, row i = sample i.
        official: name of a modality -> `official_ho3d` scores.
        baseline_rows: `<baseline>_mpjpe_mm`, `<baseline>_pa_mm` -> (N,) mm, nan without a label.

    Raises:
        DataError: no result, a result without rows (they are on rank 0), or lengths that differ.
    """
    scored = {name: _scored(name, result, frames) for name, result in results.items()}
    if not scored:
        raise DataError("validation_report: got no result")
    first = next(iter(results.values()))
    parts = [
        "# Validation",
        _counts(scored, len(frames)),
        "## Summary",
        _summary_table(scored, first, baseline_rows),
        "## Joints",
        "Mean error in mm; wrist-relative (both wrists at the origin) and aligned (best similarity, det +1).",
        _parts_table(scored, "joint", {name: [j] for j, name in enumerate(OPENPOSE21)}),
        "## Fingers",
        _parts_table(scored, "finger", _finger_joints()),
        "## Sequences",
        _sequence_table(scored),
    ]
    if official:
        parts += ["## Official HO3D scores", _official_table(official)]
    return "\n\n".join(parts) + "\n"


def summary_lines(results: Mapping[str, CheckedResult], frames: Sequence[str]) -> list[str]:
    """Three to eight short lines for the log: intervals, worst finger, worst sequence; arguments as above.

    Raises:
        DataError: as `validation_report`.
    """
    lines = []
    scored = {name: _scored(name, result, frames) for name, result in results.items()}
    for name, rows in scored.items():
        mpjpe, pa = _scores(rows)
        lines.append(f"  {name}: MPJPE {mpjpe} mm, PA-MPJPE {pa} mm over {_sequences(rows)}")
    for name, rows in scored.items():
        if rows.nonfinite:
            lines.append(f"  Non-finite predictions ({name}): {rows.nonfinite}; means with them are nan")
    for name, rows in list(scored.items())[:1]:
        fingers = [(_mean_of(rows.relative_mm, joints), f) for f, joints in _finger_joints().items()]
        value, finger = max((pair for pair in fingers if pair[1] != "wrist"), key=_badness)
        lines.append(f"  Worst finger ({name}): {finger}, {value:.3f} mm wrist-relative")
        worst = _by_sequence(rows)[:1]
        lines += [f"  Worst sequence ({name}): {s}, MPJPE {m:.3f} mm, n={n}" for s, n, m, _ in worst]
    return lines


def sequence_of(frame: str) -> str:
    """Sequence of a frame: `train/ABF10/0042` -> `train/ABF10`."""
    return frame.rpartition("/")[0]


def _scored(name: str, result: CheckedResult, frames: Sequence[str]) -> _Scored:
    """Rows with complete labels, and the error of each of their joints."""
    rows = result.rows
    if rows is None:
        raise DataError(f"report of {name}: this rank has no per-sample rows; write the report on rank 0")
    if len(frames) != len(rows.usable):
        raise DataError(f"report of {name}: got {len(frames)} frame names for {len(rows.usable)} samples")
    usable = rows.usable
    pred, target = rows.pred_joints_cam_m[usable], rows.target_joints_cam_m[usable]
    relative, aligned = _joint_errors(pred, target)
    return _Scored(
        sequences=np.array([sequence_of(frame) for frame in frames], dtype=np.str_)[usable],
        mpjpe_mm=rows.mpjpe_mm[usable],
        pa_mpjpe_mm=rows.pa_mpjpe_mm[usable],
        relative_mm=relative,
        aligned_mm=aligned,
        unusable=int(np.count_nonzero(~usable)),
        nonfinite=int(np.count_nonzero(rows.broken)),
    )


def _joint_errors(
    pred_m: NDArray[np.floating[Any]], target_m: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, J) mm of each joint: wrist-relative, and after the best similarity."""
    relative, aligned = [np.empty((0, pred_m.shape[1]))], [np.empty((0, pred_m.shape[1]))]
    for pred, target in chunks(pred_m, target_m):
        offset = (pred - pred[:, _WRIST, None]) - (target - target[:, _WRIST, None])
        relative.append(torch.linalg.vector_norm(offset, dim=-1).numpy() * _MM_PER_M)
        offset = fit_similarity(pred, target).apply(pred) - target
        aligned.append(torch.linalg.vector_norm(offset, dim=-1).numpy() * _MM_PER_M)
    return np.concatenate(relative), np.concatenate(aligned)


def _counts(scored: Mapping[str, _Scored], total: int) -> str:
    """What was scored and what was not."""
    lines = []
    for name, rows in scored.items():
        text = f"{name}: {len(rows.sequences)} of {total} samples scored, {_sequences(rows)}"
        text += f"; {rows.unusable} without a complete label, left out" if rows.unusable else ""
        text += f"; **{rows.nonfinite} predictions are not finite: nan**" if rows.nonfinite else ""
        lines.append(f"- {text}.")
    return "\n".join(lines)


def _summary_table(
    scored: Mapping[str, _Scored], first: CheckedResult, baseline_rows: Mapping[str, Rows]
) -> str:
    """One row a modality, their difference, and one row a baseline."""
    assert first.rows is not None
    lines = [[name, *_scores(rows)] for name, rows in scored.items()]
    (one, a), *others = scored.items()
    for other, b in others:
        if np.array_equal(a.sequences, b.sequences) and not (a.nonfinite or b.nonfinite):
            pairs = ((b.mpjpe_mm, a.mpjpe_mm), (b.pa_mpjpe_mm, a.pa_mpjpe_mm))
            lines.append([f"{other} {_MINUS} {one}", *(_estimate(x - y, a.sequences) for x, y in pairs)])
    for key, title in BASELINES.items():
        cells = [
            _estimate(baseline_rows[column][first.rows.usable], a.sequences)
            if column in baseline_rows
            else ""
            for column in (f"{key}_mpjpe_mm", f"{key}_pa_mm")
        ]
        if any(cells):
            lines.append([title, *cells])
    header = ["predictor", "MPJPE mm [95 % over sequences]", "PA-MPJPE mm [95 % over sequences]"]
    return _table(header, lines)


def _parts_table(scored: Mapping[str, _Scored], what: str, parts: Mapping[str, Sequence[int]]) -> str:
    """Wrist-relative and aligned error of groups of joints, two columns a modality."""
    header = [what, *(f"{name} {kind}" for name in scored for kind in ("wrist-relative", "aligned"))]
    lines = []
    for part, joints in parts.items():
        errors = (e for rows in scored.values() for e in (rows.relative_mm, rows.aligned_mm))
        lines.append([part, *(f"{_mean_of(error, joints):.3f}" for error in errors)])
    return _table(header, lines)


def _sequence_table(scored: Mapping[str, _Scored]) -> str:
    """Frames and errors of each sequence, the worst of the first modality first."""
    header = ["sequence", "n", *(f"{name} {kind}" for name in scored for kind in ("MPJPE", "PA-MPJPE"))]
    found = {name: {row[0]: row for row in _by_sequence(rows)} for name, rows in scored.items()}
    lines = []
    for sequence, first in next(iter(found.values())).items():
        cells = [sequence, str(first[1])]
        for rows in found.values():
            _, _, mpjpe, pa = rows.get(sequence, (sequence, 0, math.nan, math.nan))
            cells += [f"{mpjpe:.3f}", f"{pa:.3f}"]
        lines.append(cells)
    return _table(header, lines)


def _by_sequence(rows: _Scored) -> list[tuple[str, int, float, float]]:
    """(sequence, n, MPJPE, PA-MPJPE), nan first, then the worst MPJPE first."""
    names, member = np.unique(rows.sequences, return_inverse=True)
    found = []
    for group, name in enumerate(names):
        own = member == group
        found.append((str(name), int(own.sum()), mean(rows.mpjpe_mm[own]), mean(rows.pa_mpjpe_mm[own])))
    return sorted(found, key=lambda row: (_badness((row[2], row[0])), row[0]), reverse=True)


def _official_table(official: Mapping[str, Mapping[str, float]]) -> str:
    """The official names as rows; scores.txt's units."""
    names = list(dict.fromkeys(score for scores in official.values() for score in scores))
    lines = []
    for score in names:
        cells = (f"{scores[score]:.6f}" if score in scores else "" for scores in official.values())
        lines.append([score, official_unit(score), *cells])
    return _table(["score", "unit", *official], lines)


def _scores(rows: _Scored) -> tuple[str, str]:
    """MPJPE and PA-MPJPE with their intervals; nan as soon as one prediction is not finite."""
    if rows.nonfinite:
        return "nan", "nan"
    return _estimate(rows.mpjpe_mm, rows.sequences), _estimate(rows.pa_mpjpe_mm, rows.sequences)


def _estimate(values: Rows, sequences: NDArray[np.str_]) -> str:
    """Mean and interval as text."""
    if not np.isfinite(values).all() or len(values) == 0:
        return "nan"
    interval = bootstrap_mean(values, sequences, seed=0)
    if not interval.exists:
        return f"{interval.mean:.3f} (one sequence: no interval)"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _finger_joints() -> dict[str, list[int]]:
    """Finger -> its joints, and the wrist."""
    fingers = {f: [OPENPOSE21.index(f"{f}_{k}") for k in range(1, 5)] for f in FINGERS}
    return {"wrist": [_WRIST], **fingers}


def _mean_of(errors_mm: NDArray[np.float64], joints: Sequence[int]) -> float:
    """Mean over samples and some joints; nan if one is not finite."""
    return mean(errors_mm[:, list(joints)].ravel())


def _badness(pair: tuple[float, str]) -> float:
    """Sorts nan above everything."""
    return math.inf if math.isnan(pair[0]) else pair[0]


def _sequences(rows: _Scored) -> str:
    count = len(np.unique(rows.sequences))
    return f"{count} sequence" + ("" if count == 1 else "s")


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
