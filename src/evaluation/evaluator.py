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
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import CollectError, DataError
from src.evaluation import metrics
from src.evaluation.collect import MESH_USABLE, EvaluationShard, Receipt, collect
from src.evaluation.official import official_unit
from src.hand.joints import OPENPOSE21
from src.runtime.files.disk import atomic_write, read_npz
from src.runtime.outlet import Guard
from src.runtime.ranks.link import Link
from src.schema import EvalResult, Shown

__all__ = [
    "FILE_ENDS", "MODALITY_NAMES", "CheckedResult", "EvaluationShard", "SampleRows", "evaluate",
    "read_per_sample", "write_per_sample",
]  # fmt: skip

MODALITY_NAMES: Mapping[Shown, str] = {"rgbd": "RGB-D", "rgb": "RGB-only"}
"""What reports and pages call the two ways of showing a sample."""
FILE_ENDS: Mapping[Shown, str] = {"rgbd": "", "rgb": "_rgb"}
"""What the name of a per-sample file ends in."""
_FIRST_INDICES = 10

UNITS: Mapping[str, str] = {
    "sample_index": "row of the split",
    "frame": "sequence/frame",
    "mpjpe_mm": "mm, wrist-relative",
    "pa_mpjpe_mm": "mm, after the best similarity, det R = +1",
    "loss": "1",
    "label_usable": "bool",
    "pred_joints_cam_m": "m, image camera, OpenCV axes (x right, y down, z forward)",
    "joints_in_view": "1 in view, 0 hidden, -1 not known; by the depth picture",
    MESH_USABLE: "1 where the mesh is labelled, else 0",
    "mpvpe_mm": "mm, mean over vertices, wrist-relative",
    "pa_mpvpe_mm": "mm, mean over vertices, after the best similarity, det R = +1",
    "coarse_mpjpe_mm": "mm, mean over joints, wrist-relative, of the hand before refinement",
    "coarse_pa_mpjpe_mm": "mm, of the hand before refinement, after the best similarity, det R = +1",
}
"""What stands in a per-sample file, in which unit; beside it the columns of the official scores."""
_HOLDS = {
    "frame": ("U", 1), "mpjpe_mm": ("f", 1), "pa_mpjpe_mm": ("f", 1), "loss": ("f", 1),
    "label_usable": ("b", 1), "pred_joints_cam_m": ("f", 3), "columns": ("U", 1), "units": ("U", 1),
    "split": ("U", 0), "split_hash": ("U", 0),
}  # fmt: skip
"""What such a file holds whatever was scored: NumPy's kind of type, and how many axes."""


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
    pred_joints_cam_m: NDArray[np.float32]
    """(N, J, 3) image camera, metres."""
    target_joints_cam_m: NDArray[np.float32]
    """(N, J, 3) image camera, metres."""
    in_view: NDArray[np.int8]
    """(N, J) which joints the camera sees, see `src.geometry.in_view`."""
    columns: Mapping[str, NDArray[np.float64]]
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
    """Says that each of N samples was there exactly once, and from how many ranks."""
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
        shard: this rank's rows.
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
        with guard:
            scored = _score(rows, shard.columns)
            message = json.dumps({"result": _summary(scored, baselines or {})})
        if guard.error is not None:
            message = json.dumps({"error": f"{type(guard.error).__name__}: {guard.error}"})
    if meet is not None:
        meet("scoring the validation")
    answer = json.loads(link.broadcast(message, "result"))
    if "error" in answer:
        raise CollectError(f"{link.where}: rank 0 failed while scoring: {answer['error']}")
    fields = answer["result"]
    fields["nonfinite_indices"] = tuple(fields["nonfinite_indices"])
    return CheckedResult(**fields, receipt=receipt, rows=scored)


def _score(rows: Mapping[str, Tensor], columns: Sequence[str]) -> SampleRows:
    """Per-sample numbers of the collected rows."""
    pred, target = rows["pred"], rows["target"]
    usable = metrics.usable_rows(target, rows["conf"])
    return SampleRows(
        mpjpe_mm=np.where(usable, metrics.mpjpe_mm(pred, target), math.nan),
        pa_mpjpe_mm=np.where(usable, metrics.pa_mpjpe_mm(pred, target), math.nan),
        loss=rows["loss"].numpy(),
        usable=usable,
        pred_joints_cam_m=pred.numpy(),
        target_joints_cam_m=target.numpy(),
        in_view=rows["in_view"].to(torch.int8).numpy(),
        columns={name: rows[name].numpy() for name in columns},
    )


def _summary(rows: SampleRows, baselines: Mapping[str, float]) -> dict[str, Any]:
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


def write_per_sample(path: Path, result: CheckedResult, frames: Sequence[str], *, split: str) -> None:
    """Write what each sample scored, on rank 0; the same bytes for any number of ranks.

    The file's arrays, each with its name in `columns` and its unit in `units`: those of `UNITS`, of which
    pred_joints_cam_m is (N, 21, 3) and joints_in_view (N, 21) in the order of `joint_names` and the others
    are (N,), and the columns of the ranks. `split` and `split_hash` say of which samples. Labels are not in
    it, nor is an error per joint, from which a few files would reveal them: whoever shares predictions must
    not thereby share a data set.

    Args:
        path: the .npz.
        result: from `evaluate`.
        frames: N names `<sequence>/<frame>`, row i = sample i.
        split: the split's name.

    Raises:
        DataError: this rank has no rows, there are not N frames, or a column's unit is not known.
    """
    rows = result.rows
    if rows is None:
        raise DataError(f"{path}: per-sample rows are on rank 0; write the file there")
    count = len(rows.mpjpe_mm)
    if len(frames) != count:
        raise DataError(f"{path}: got {len(frames)} frame names for {count} samples")
    columns: dict[str, NDArray[Any]] = {
        "sample_index": np.arange(count, dtype=np.int64),
        "frame": np.array(list(frames), dtype=np.str_),
        "mpjpe_mm": rows.mpjpe_mm,
        "pa_mpjpe_mm": rows.pa_mpjpe_mm,
        "loss": rows.loss,
        "label_usable": rows.usable,
        "pred_joints_cam_m": rows.pred_joints_cam_m,
        "joints_in_view": rows.in_view,
        **rows.columns,
    }
    facts = {
        "columns": list(columns),
        "units": [UNITS.get(name) or official_unit(name) for name in columns],
        "joint_names": list(OPENPOSE21),
        "split": split,
        "split_hash": result.receipt.split_hash,
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in columns.items()}
    arrays |= {name: np.array(text, dtype=np.str_) for name, text in facts.items()}
    with atomic_write(Path(path)) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_per_sample(path: Path) -> dict[str, NDArray[Any]]:
    """What `write_per_sample` wrote, by name; N different frames, and N rows of each of `columns`.

    Raises:
        DataError: no such file, torn, or of another program.
    """

    def refused(why: str) -> DataError:
        return DataError(
            f"{path} is not a per-sample file (val/*.npz of a run): {why}. "
            "Name another one, or write it anew: train.py --evaluate CHECKPOINT"
        )

    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise refused("no such file") from None
    except DataError as error:
        raise refused(str(error)) from error
    found = {name: (array.dtype.kind, array.ndim) for name, array in arrays.items()}
    if missing := [name for name, form in _HOLDS.items() if found.get(name) != form]:
        raise refused(f"it holds no {', '.join(missing)}")
    frames, columns = arrays["frame"], arrays["columns"].tolist()
    rows = {
        arrays[name].shape[:1] if name in arrays else ()
        for name in {*columns, *_HOLDS} - {"columns", "units", "split", "split_hash"}
    }
    if rows != {frames.shape} or len(columns) != len(arrays["units"]):
        raise refused("its columns differ in length from its frames or units")
    if text := [name for name in columns if name != "frame" and found[name][0] not in "fbiu"]:
        raise refused(f"{', '.join(text)} are no numbers")
    if arrays["pred_joints_cam_m"].shape != (len(frames), len(OPENPOSE21), 3):
        raise refused(f"pred_joints_cam_m has the shape {arrays['pred_joints_cam_m'].shape}, want (N, 21, 3)")
    if len(frames) == 0:
        raise refused("it has no rows")
    if len(set(frames.tolist())) != len(frames):
        raise refused("a frame is there twice")
    return arrays
