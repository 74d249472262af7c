"""A validation in words: log lines, and a Markdown report with intervals, joints, fingers and sequences.

Legend: N samples, J 21 joints (`OPENPOSE21`). Numbers are millimetres unless a table says otherwise. What has
no complete label is left out and counted. A prediction that is not finite makes every mean it belongs to nan,
and is counted. Intervals are over whole sequences (`src.evaluation.statistics`), 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import CollectError, DataError
from src.evaluation.collect import MESH_USABLE
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
_FINGERS = {finger: [OPENPOSE21.index(f"{finger}_{k}") for k in range(1, 5)] for finger in FINGERS}
_MINUS = "\N{MINUS SIGN}"


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


@dataclass(frozen=True)
class _Scored:
    """The rows of one result that count: n with complete labels, the same of every result of a split."""

    sequences: NDArray[np.str_]
    """(n,) of the frames."""
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

    def scores(self) -> tuple[str, str]:
        """MPJPE and PA-MPJPE with their intervals."""
        if self.nonfinite:
            return "nan", "nan"
        return _estimate(self.mpjpe_mm, self.sequences), _estimate(self.pa_mpjpe_mm, self.sequences)

    def extent(self) -> str:
        """How many sequences there are."""
        count = len(np.unique(self.sequences))
        return f"{count} sequence" + ("" if count == 1 else "s")

    def by_sequence(self) -> dict[str, tuple[int, float, float]]:
        """Sequence -> (frames, MPJPE, PA-MPJPE); nan first, then the worst MPJPE first."""
        names, member = np.unique(self.sequences, return_inverse=True)
        own = [member == group for group in range(len(names))]
        mpjpe = [mean(self.mpjpe_mm[rows]) for rows in own]
        return {
            str(names[k]): (int(own[k].sum()), mpjpe[k], mean(self.pa_mpjpe_mm[own[k]]))
            for k in np.argsort(mpjpe, kind="stable")[::-1]
        }


def validation_report(
    results: Mapping[str, CheckedResult],
    frames: Sequence[str],
    *,
    official: Mapping[str, Mapping[str, float]],
    baseline_rows: Mapping[str, Rows],
    boxes: Sequence[str] = (),
) -> str:
    """The whole report as Markdown.

    Args:
        results: name of a modality (`RGB-D`, `RGB-only`) -> result with per-sample rows, all of one split.
            The first is the one that sequences are sorted by.
        frames: N names `<sequence>/<frame>`, row i = sample i.
        official: name of a modality -> `official_ho3d` scores.
        baseline_rows: `<baseline>_mpjpe_mm`, `<baseline>_pa_mm` -> (N,) mm, nan without a label.
        boxes: a `boxes_line` for each modality that was also scored with other boxes.

    Raises:
        DataError: a result without rows (they are on rank 0), or lengths that differ.
    """
    scored = {name: _scored(name, result, frames) for name, result in results.items()}
    usable = next(rows.usable for result in results.values() if (rows := result.rows) is not None)
    parts = [
        "# Validation",
        _counts(scored, len(frames)),
        "## Summary",
        _summary_table(scored, {name: rows[usable] for name, rows in baseline_rows.items()}),
        *(["## Boxes", "\n".join(f"- {line.strip()}." for line in boxes)] if boxes else []),
        "## Joints",
        "Mean error in mm; wrist-relative (both wrists at the origin) and aligned (best similarity, det +1).",
        _parts_table(scored, "joint", {name: [j] for j, name in enumerate(OPENPOSE21)}),
        "## Fingers",
        _parts_table(scored, "finger", {"wrist": [_WRIST], **_FINGERS}),
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
    lines, broken = [], []
    scored = {name: _scored(name, result, frames) for name, result in results.items()}
    for name, rows in scored.items():
        mpjpe, pa = rows.scores()
        lines.append(f"  {name}: MPJPE {mpjpe} mm, PA-MPJPE {pa} mm over {rows.extent()}")
        if rows.nonfinite:
            broken.append(f"  Non-finite predictions ({name}): {rows.nonfinite}; means with them are nan")
    name, rows = next(iter(scored.items()))
    errors = [_mean_of(rows.relative_mm, joints) for joints in _FINGERS.values()]
    worst = int(np.argmax(errors))  # nan counts as the largest
    lines += [*broken, f"  Worst finger ({name}): {FINGERS[worst]}, {errors[worst]:.3f} mm wrist-relative"]
    for sequence, (count, mpjpe_mm, _) in list(rows.by_sequence().items())[:1]:
        lines.append(f"  Worst sequence ({name}): {sequence}, MPJPE {mpjpe_mm:.3f} mm, n={count}")
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
    relative, aligned = [], []
    for pred, target in chunks(rows.pred_joints_cam_m[usable], rows.target_joints_cam_m[usable]):
        relative.append(_lengths_mm((pred - pred[:, _WRIST, None]) - (target - target[:, _WRIST, None])))
        aligned.append(_lengths_mm(fit_similarity(pred, target).apply(pred) - target))
    return _Scored(
        sequences=np.array([sequence_of(frame) for frame in frames], dtype=np.str_)[usable],
        mpjpe_mm=rows.mpjpe_mm[usable],
        pa_mpjpe_mm=rows.pa_mpjpe_mm[usable],
        relative_mm=np.concatenate(relative),
        aligned_mm=np.concatenate(aligned),
        unusable=int(np.count_nonzero(~usable)),
        nonfinite=int(np.count_nonzero(rows.broken)),
    )


def _lengths_mm(offsets_m: Tensor) -> NDArray[np.float64]:
    """(n, J, 3) metres -> (n, J) mm."""
    lengths: NDArray[np.float64] = torch.linalg.vector_norm(offsets_m, dim=-1).numpy() * _MM_PER_M
    return lengths


def _counts(scored: Mapping[str, _Scored], total: int) -> str:
    """What was scored and what was not."""
    lines = []
    for name, rows in scored.items():
        text = f"{name}: {len(rows.sequences)} of {total} samples scored, {rows.extent()}"
        text += f"; {rows.unusable} without a complete label, left out" if rows.unusable else ""
        text += f"; **{rows.nonfinite} predictions are not finite: nan**" if rows.nonfinite else ""
        lines.append(f"- {text}.")
    return "\n".join(lines)


def _summary_table(scored: Mapping[str, _Scored], baselines: Mapping[str, Rows]) -> str:
    """One row a modality, their difference, and one row a baseline of the scored rows."""
    lines = [[name, *rows.scores()] for name, rows in scored.items()]
    (one, a), *others = scored.items()
    for other, b in others:
        if not (a.nonfinite or b.nonfinite):
            pairs = ((b.mpjpe_mm, a.mpjpe_mm), (b.pa_mpjpe_mm, a.pa_mpjpe_mm))
            lines.append([f"{other} {_MINUS} {one}", *(_estimate(x - y, a.sequences) for x, y in pairs)])
    for key, title in BASELINES.items():
        columns = (baselines.get(f"{key}_{suffix}") for suffix in ("mpjpe_mm", "pa_mm"))
        cells = ["" if column is None else _estimate(column, a.sequences) for column in columns]
        if any(cells):
            lines.append([title, *cells])
    header = ["predictor", "MPJPE mm [95 % over sequences]", "PA-MPJPE mm [95 % over sequences]"]
    return _table(header, lines)


def _parts_table(scored: Mapping[str, _Scored], what: str, parts: Mapping[str, Sequence[int]]) -> str:
    """Wrist-relative and aligned error of groups of joints, two columns a modality."""
    header = [what, *(f"{name} {kind}" for name in scored for kind in ("wrist-relative", "aligned"))]
    errors = [error for rows in scored.values() for error in (rows.relative_mm, rows.aligned_mm)]
    return _table(
        header, ([part, *(f"{_mean_of(e, joints):.3f}" for e in errors)] for part, joints in parts.items())
    )


def _sequence_table(scored: Mapping[str, _Scored]) -> str:
    """Frames and errors of each sequence, the worst of the first modality first."""
    header = ["sequence", "n", *(f"{name} {kind}" for name in scored for kind in ("MPJPE", "PA-MPJPE"))]
    first, *others = (rows.by_sequence() for rows in scored.values())
    lines = []
    for sequence, (count, *errors) in first.items():
        errors += [error for other in others for error in other[sequence][1:]]
        lines.append([sequence, str(count), *(f"{error:.3f}" for error in errors)])
    return _table(header, lines)


def _official_table(official: Mapping[str, Mapping[str, float]]) -> str:
    """The official names as rows; scores.txt's units."""
    lines = [
        [score, official_unit(score), *(f"{scores[score]:.6f}" for scores in official.values())]
        for score in next(iter(official.values()))
    ]
    return _table(["score", "unit", *official], lines)


def _estimate(values: Rows, sequences: NDArray[np.str_]) -> str:
    """Mean and interval as text."""
    interval = bootstrap_mean(values, sequences, seed=0)
    if interval.exists:
        return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.mean:.3f} (one sequence: no interval)" if len(values) else "nan"


def _mean_of(errors_mm: NDArray[np.float64], joints: Sequence[int]) -> float:
    """Mean over samples and some joints; nan if one is not finite."""
    return mean(errors_mm[:, list(joints)].ravel())


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
