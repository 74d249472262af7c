"""Validation from shards to numbers: collect, score on rank 0, tell every rank the same result.

Per-sample numbers are float64 and averaged once, at the end, with an exact sum: the result has the same bits
for any number of ranks and any order of arrival.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import CollectError, DataError
from src.evaluation import metrics
from src.evaluation.collect import Receipt, Rows, collect
from src.evaluation.shard import FILE_FACTS, MESH_USABLE, ROW_FIELDS, EvaluationShard, Guard
from src.hand.joints import OPENPOSE21
from src.runtime.files.disk import atomic_write
from src.runtime.ranks.link import Link
from src.schema import EvalResult

__all__ = ["CheckedResult", "EvaluationShard", "SampleRows", "evaluate", "report_lines", "write_per_sample"]

_FIRST_INDICES = 10

COLUMN_UNITS: Mapping[str, str] = {
    MESH_USABLE: "1 where the mesh is labelled, else 0",
    "mpvpe_mm": "mm, mean over vertices, wrist-relative",
    "pa_mpvpe_mm": "mm, mean over vertices, after the best similarity, det R = +1",
    "coarse_mpjpe_mm": "mm, mean over joints, wrist-relative, of the hand before refinement",
    "coarse_pa_mpjpe_mm": "mm, of the hand before refinement, after the best similarity, det R = +1",
}
"""Units of the columns that this project computes."""
_UNIT_ENDINGS = {"_mm": "mm", "_mean3d": "cm", "_auc3d": "1", "_px": "px", "_deg": "degrees", "_m": "m"}
_UNIT_STARTS = {"f_score_": "1", "f_al_score_": "1"}


@dataclass(frozen=True)
class SampleRows:
    """What each sample scored, row i = sample i of the split; on rank 0 only."""

    mpjpe_mm: NDArray[np.float64]
    """(N,) nan where the prediction is not finite or the label incomplete."""
    pa_mpjpe_mm: NDArray[np.float64]
    """(N,)."""
    loss: NDArray[np.float64]
    """(N,)."""
    usable: NDArray[np.bool_]
    """(N,) the label is complete."""
    pred_joints_cam_m: NDArray[np.floating[Any]]
    """(N, J, 3) image camera, metres."""
    target_joints_cam_m: NDArray[np.floating[Any]]
    """(N, J, 3) image camera, metres."""
    columns: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """name -> (N,) what the ranks computed per sample; nan where there is no label."""

    @property
    def mesh_labelled(self) -> NDArray[np.bool_]:
        """(N,) the columns have a label to be computed from."""
        return self.columns[MESH_USABLE] == 1.0 if MESH_USABLE in self.columns else self.usable

    @property
    def broken(self) -> NDArray[np.bool_]:
        """(N,) something that was predicted is not finite, whether or not there is a label to score it."""
        broken = ~np.isfinite(self.pred_joints_cam_m).all(axis=(1, 2))
        broken |= self.usable & ~np.isfinite(self.loss)
        for values in self.columns.values():  # a mesh leaves its mark in the mesh's numbers
            broken |= self.mesh_labelled & ~np.isfinite(values)
        return np.asarray(broken)


@dataclass(frozen=True)
class CheckedResult(EvalResult):
    """An `EvalResult` whose samples were counted one by one; made by `evaluate` alone."""

    receipt: Receipt = dataclasses.field(compare=False, kw_only=True)
    """Says that each of N samples was there exactly once, and from how many ranks; how long it took."""
    rows: SampleRows | None = dataclasses.field(compare=False, repr=False, kw_only=True)
    """Per-sample numbers on rank 0; None on the others."""

    @property
    def is_finite(self) -> bool:
        """Whether the score may decide about a checkpoint."""
        numbers = (self.mpjpe_mm, self.pa_mpjpe_mm, self.loss)
        return all(math.isfinite(number) for number in numbers) and self.nonfinite_count == 0


def evaluate(
    shard: EvaluationShard,
    *,
    num_samples: int,
    split_hash: str,
    group: Any = None,
    timeout_s: float = 600.0,
    baselines: Mapping[str, float] | None = None,
    device_label: str = "ranks",
    meet: Callable[[str], None] | None = None,
) -> CheckedResult:
    """Score a split over every sample exactly once.

    Every rank calls it, also one whose loop raised (inside `shard.guard()`) and one without rows.

    Args:
        shard: this rank's rows; they are handed over, a shard serves one evaluation.
        num_samples: N of the split.
        split_hash: fingerprint of the split; must be equal on every rank.
        group: gloo group of all ranks, or None in a run of one process.
        timeout_s: longest wait for one message, seconds; without `meet`, at least the longest time by which
            one rank's loop may end before another's. The group's own timeout should not be longer.
        baselines: scores of constant predictors on this split (`src.evaluation.baselines`); rank 0's count.
        device_label: what the ranks are, for messages: `GPUs` or `CPU ranks`.
        meet: `DistContext.barrier`, called before messages that a rank at work may be late for.

    Returns:
        the same result on every rank; `rows` on rank 0. Means are nan if any prediction is not finite, or if
        nothing could be scored.

    Raises:
        CollectError: on every rank; see `collect`.
    """
    link = Link(group, timeout_s=timeout_s, where="Validation")
    link.where = f"Validation over {link.world} {device_label}"
    if meet is not None:
        meet("predicting validation samples")
    rows, receipt = collect(shard, link, num_samples=num_samples, split_hash=split_hash)
    scored: SampleRows | None = None
    message = None
    if rows is not None:
        guard = Guard()
        with guard, link.step("metrics"):
            scored = _score(rows, shard.columns)
            message = json.dumps({"result": _summary(scored, dict(baselines or {}))})
        if guard.error is not None:
            message = json.dumps({"error": f"{type(guard.error).__name__}: {guard.error}"})
    if meet is not None:
        meet("scoring the validation")
    with link.step("broadcast"):
        answer = json.loads(link.broadcast(message, "result"))
    if "error" in answer:
        raise CollectError(f"{link.where}: rank 0 failed while scoring: {answer['error']}")
    fields = answer["result"]
    fields["nonfinite_indices"] = tuple(fields["nonfinite_indices"])
    receipt = dataclasses.replace(receipt, seconds=dict(link.seconds))
    return CheckedResult(**fields, receipt=receipt, rows=scored)


def _score(rows: Rows, columns: Sequence[str]) -> SampleRows:
    """Per-sample numbers of the collected rows."""
    usable = metrics.usable_rows(rows.target, rows.conf)
    mpjpe = metrics.mpjpe_mm(rows.pred, rows.target)
    pa_mpjpe = metrics.pa_mpjpe_mm(rows.pred, rows.target)
    mpjpe[~usable] = math.nan
    pa_mpjpe[~usable] = math.nan
    return SampleRows(
        mpjpe_mm=mpjpe,
        pa_mpjpe_mm=pa_mpjpe,
        loss=rows.loss.numpy(),
        usable=usable,
        pred_joints_cam_m=rows.pred.numpy(),
        target_joints_cam_m=rows.target.numpy(),
        columns={name: np.ascontiguousarray(rows.columns[:, k].numpy()) for k, name in enumerate(columns)},
    )


def _summary(rows: SampleRows, baselines: dict[str, float]) -> dict[str, Any]:
    """Fields of `EvalResult`; JSON keeps every bit of a float64."""
    labelled = rows.mesh_labelled
    nonfinite = np.flatnonzero(rows.broken)
    spoiled = nonfinite.size > 0  # also where the label is unusable: such a network must not win
    columns = {
        name: math.nan if spoiled else metrics.mean(values[labelled]) for name, values in rows.columns.items()
    }
    if MESH_USABLE in columns:
        columns[MESH_USABLE] = float(labelled.sum())
    return {
        "num_samples": int(rows.usable.sum()),
        "mpjpe_mm": math.nan if spoiled else metrics.mean(rows.mpjpe_mm[rows.usable]),
        "pa_mpjpe_mm": math.nan if spoiled else metrics.mean(rows.pa_mpjpe_mm[rows.usable]),
        "loss": metrics.mean(rows.loss[rows.usable]),
        "nonfinite_count": int(nonfinite.size),
        "nonfinite_indices": nonfinite[:_FIRST_INDICES].tolist(),
        "unusable_labels": int((~rows.usable).sum()),
        "baselines": {name: float(value) for name, value in baselines.items()},
        "columns": columns,
    }


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
    mpjpe, pa_mpjpe = result.mpjpe_mm, result.pa_mpjpe_mm
    lines = [
        f"  Val Loss: {result.loss:.3f}, MPJPE: {mpjpe:.3f} mm, PA-MPJPE: {pa_mpjpe:.3f} mm",
        f"  Evaluated on {result.num_samples} samples from all {world} {device_label}",
    ]
    if {"mpvpe_mm", "pa_mpvpe_mm"} <= set(result.columns):
        lines.append(_vertices_line(result.columns, receipt.num_samples))
    if {"coarse_mpjpe_mm", "coarse_pa_mpjpe_mm"} <= set(result.columns):
        coarse, aligned = (result.columns[f"coarse_{name}mpjpe_mm"] for name in ("", "pa_"))
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
    names = {"zero": "zero pose", "mean_pose": "mean pose", "nearest_pose": "nearest training pose"}
    parts = []
    for key, name in names.items():
        scores = [
            f"{label} {baselines[f'{key}_{suffix}']:.3f} mm"
            for suffix, label in (("mpjpe_mm", "MPJPE"), ("pa_mm", "PA-MPJPE"))
            if f"{key}_{suffix}" in baselines
        ]
        if scores:
            parts.append(f"{name} {', '.join(scores)}")
    return "; ".join(parts)


def _vertices_line(columns: Mapping[str, float], total: int) -> str:
    """The mesh's scores, and over how many samples if not over all."""
    line = f"  Vertices: MPVPE {columns['mpvpe_mm']:.3f} mm, PA-MPVPE {columns['pa_mpvpe_mm']:.3f} mm"
    labelled = int(columns.get(MESH_USABLE, total))
    return line if labelled == total else f"{line} ({labelled} of {total} meshes labelled)"


def write_per_sample(
    path: Path,
    result: CheckedResult,
    frames: Sequence[str],
    *,
    split: str = "",
    units: Mapping[str, str] | None = None,
) -> None:
    """Write what each sample scored, on rank 0; the same bytes for any number of ranks.

    The file's arrays, each with its name in `columns` and its unit in `units`: sample_index, frame, mpjpe_mm,
    pa_mpjpe_mm, loss, label_usable, pred_joints_cam_m (N, 21, 3) in the image camera (OpenCV), metres, in the
    order of `joint_names`, and (N,) for each column of the ranks. `split` and `split_hash` say of which
    samples. Labels are not in it, nor is an error per joint, from which a few files would reveal them:
    whoever shares predictions must not thereby share a data set.

    Args:
        path: the .npz.
        result: from `evaluate`.
        frames: N names `<sequence>/<frame>`, row i = sample i.
        split: the split's name.
        units: unit of each column that `COLUMN_UNITS` does not know and whose name does not end in one.

    Raises:
        DataError: this rank has no rows, there are not N frames, or a column's unit is not known.
    """
    rows = result.rows
    if rows is None:
        raise DataError(f"{path}: per-sample rows are on rank 0; write the file there")
    count = len(rows.mpjpe_mm)
    if len(frames) != count:
        raise DataError(f"{path}: got {len(frames)} frame names for {count} samples")
    joints = rows.pred_joints_cam_m
    values: tuple[tuple[NDArray[Any], str], ...] = (
        (np.arange(count, dtype=np.int64), "row of the split"),
        (np.array(list(frames), dtype=np.str_), "sequence/frame"),
        (rows.mpjpe_mm, "mm, wrist-relative"),
        (rows.pa_mpjpe_mm, "mm, after the best similarity, det R = +1"),
        (rows.loss, "1"),
        (rows.usable, "bool"),
        (joints, "m, image camera, OpenCV axes (x right, y down, z forward)"),
    )
    columns = dict(zip(ROW_FIELDS, values, strict=True))
    for name, column in rows.columns.items():
        columns[name] = (column, _unit(path, name, units or {}))
    names = OPENPOSE21 if joints.shape[1] == len(OPENPOSE21) else tuple(map(str, range(joints.shape[1])))
    texts = (
        list(columns),
        [unit for _, unit in columns.values()],
        list(names),
        split,
        result.receipt.split_hash,
    )
    arrays = {name: np.ascontiguousarray(array) for name, (array, _) in columns.items()}
    arrays |= {name: np.array(text, dtype=np.str_) for name, text in zip(FILE_FACTS, texts, strict=True)}
    with atomic_write(Path(path)) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _unit(path: Path, name: str, units: Mapping[str, str]) -> str:
    """What a column is measured in."""
    known = {**COLUMN_UNITS, **units}
    if name in known:
        return known[name]
    for end, unit in _UNIT_ENDINGS.items():
        if name.endswith(end):
            return unit
    for start, unit in _UNIT_STARTS.items():
        if name.startswith(start):
            return unit
    raise DataError(f"{path}: nobody says in what unit column {name!r} is; give it in `units`")
