"""What becomes of a validation's result: the log lines, the files, and whether it is the best so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.errors import TrainingError
from src.evaluation.baselines.scores import BaselineRows
from src.evaluation.evaluator import FILE_ENDS, MODALITY_NAMES, CheckedResult, write_per_sample
from src.evaluation.official import MESH_SCORES, official_joint_rows
from src.evaluation.report import (
    beside_labels,
    boxes_line,
    nonfinite_text,
    report_lines,
    summary_lines,
)
from src.evaluation.scored import Scored
from src.evaluation.statistics import mean
from src.evaluation.submission import joints_to_official
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.schema import Shown
from src.training.checkpoints.checkpoint import Progress

_log = get_logger("validation")


def is_best(results: Mapping[Shown, CheckedResult], position: Progress) -> bool:
    """Remember the result if it is the best; True if it is. RGB-D decides, if nothing is broken RGB-only.

    Raises:
        TrainingError: predictions of either modality are not finite; on every rank, because results are the
            same on every rank.
    """
    broken = _broken(results)
    seen = [f"{MODALITY_NAMES[k]}: {nonfinite_text(r)}" for k, r in broken.items() if r.nonfinite_count]
    if seen:
        raise TrainingError(
            f"validation of epoch {position.epoch}: predictions are not finite: {'; '.join(seen)}. Resume "
            "from an earlier checkpoint with a lower optimizer.lr"
        )
    judge = results["rgbd"]
    if broken or judge.mpjpe_mm >= position.best_mpjpe_mm:
        return False
    position.best_mpjpe_mm, position.best_epoch = judge.mpjpe_mm, position.epoch
    return True


def require_finite(results: Mapping[Shown, CheckedResult], folder: Path) -> None:
    """Refuse to call an evaluation a success whose score is not a number.

    Args:
        results: of every modality that was scored.
        folder: where its files are, for the message.

    Raises:
        TrainingError: a score is not finite; on every rank, because results are the same on every rank.
    """
    if not (broken := _broken(results)):
        return
    texts = []
    for shown, result in broken.items():
        text = f"{MODALITY_NAMES[shown]} MPJPE {result.mpjpe_mm:.3f} mm, PA-MPJPE {result.pa_mpjpe_mm:.3f} mm"
        cause = "not finite are predictions or losses of " + nonfinite_text(result)
        texts.append(f"{text}: {cause if result.nonfinite_count else 'no sample could be scored'}")
    raise TrainingError(
        f"the score is not a finite number. {'; '.join(texts)}. The weights are finite: look at these frames "
        f"({folder}), or evaluate with training.precision=fp32"
    )


def _broken(results: Mapping[Shown, CheckedResult]) -> dict[Shown, CheckedResult]:
    """Results that are no score."""
    return {shown: result for shown, result in results.items() if not result.is_finite}


def report(results: Mapping[Shown, CheckedResult], split_line: str, context: DistContext) -> None:
    """Log a validation: the lines of the contract for RGB-D, by which split, and one line without depth."""
    for line in report_lines(results["rgbd"], context.world, context.devices_label):
        _log.info(line)
    _log.info(f"  Split: {split_line}")
    result = results["rgb"]
    _log.info(
        f"  Without depth: Loss: {result.loss:.3f}, MPJPE: {result.mpjpe_mm:.3f} mm, "
        f"PA-MPJPE: {result.pa_mpjpe_mm:.3f} mm ({result.num_samples} samples)"
    )
    if result.nonfinite_count:
        _log.info(f"  Non-finite predictions without depth: {nonfinite_text(result)}")


def official_scores(
    results: Mapping[Shown, CheckedResult], truth_joints_m: NDArray[np.float64] | None
) -> dict[str, dict[str, float]]:
    """Official HO3D scores of a validation of the official split.

    Args:
        results: with per-sample rows (rank 0), whose columns hold the meshes' official rows.
        truth_joints_m: (N, 21, 3) `OPENPOSE21`, image camera, metres; None: another split, no such scores.

    Returns:
        name of how samples were shown -> scores as of `official_ho3d`.
    """
    scores: dict[str, dict[str, float]] = {}
    for shown, result in results.items():
        if truth_joints_m is None or result.rows is None:
            continue
        truth = joints_to_official(truth_joints_m)
        rows = official_joint_rows(joints_to_official(result.rows.pred_joints_cam_m), truth)
        rows |= {name: v for name, v in result.rows.columns.items() if name in MESH_SCORES}
        scores[MODALITY_NAMES[shown]] = {name: mean(values) for name, values in rows.items()}
    return scores


@dataclass(frozen=True)
class Outcome:
    """Results of one validation and what is needed to write them down; on rank 0."""

    results: Mapping[Shown, CheckedResult]
    """RGB-D first."""
    frames: Sequence[str]
    """(N,) `<list>/<sequence>/<frame>`."""
    split: str
    """Name of the split, for the files."""
    baselines: BaselineRows
    """What predictors that learned nothing score, row by row."""
    official: Mapping[str, Mapping[str, float]]
    """How samples were shown, as the report calls it -> official scores; empty but on the official split."""
    boxes: str = "labels"
    """Where the boxes of `boxed` are from."""
    boxed: Mapping[Shown, CheckedResult] = field(default_factory=dict)
    """Results with other boxes than the labels'; a sample without a box is not scored."""

    def beside_labels(self) -> dict[Shown, dict[str, float]]:
        """Scores with the other boxes and the labels', see `src.evaluation.report.beside_labels`."""
        return {shown: beside_labels(self.results[shown], result) for shown, result in self.boxed.items()}

    def boxes_lines(self) -> list[str]:
        """These scores in a line for each modality."""
        scores = self.beside_labels()
        return [boxes_line(scores[shown], self.boxes, MODALITY_NAMES[shown]) for shown in scores]

    @cached_property
    def scored(self) -> dict[str, Scored]:
        """The results taken apart, by what reports call them."""
        scored = {MODALITY_NAMES[k]: Scored.of(result, self.frames) for k, result in self.results.items()}
        first = next(iter(scored.values())).joints
        for name, rows in scored.items():
            if rows.joints is not None and first is not None:  # what is in view is seen with depth alone
                joints = dataclasses.replace(rows.joints, in_view=first.in_view)
                scored[name] = dataclasses.replace(rows, joints=joints)
        return scored

    def write(self, folder: Path, stem: str) -> dict[Shown, Path]:
        """Write `<stem>.npz` (and `<stem>_rgb.npz`) with a row per sample.

        With other boxes as well, their rows go to `<stem>_boxes.npz` (and `<stem>_boxes_rgb.npz`).

        Returns:
            the per-sample file of each modality.
        """
        paths: dict[Shown, Path] = {}
        for modality, result in self.results.items():
            paths[modality] = folder / f"{stem}{FILE_ENDS[modality]}.npz"
            write_per_sample(paths[modality], result, self.frames, split=self.split)
        for modality, result in self.boxed.items():
            path = folder / f"{stem}_boxes{FILE_ENDS[modality]}.npz"
            write_per_sample(path, result, self.frames, split=self.split)
        return paths

    def log_summary(self) -> None:
        """Log intervals, the worst parts, and the official scores where there are any."""
        for line in summary_lines(self.scored):
            _log.info(line)
        for name, scores in self.official.items():
            _log.info(f"  Official HO3D scores ({name}; *_mean3d in cm):")
            for key, value in scores.items():
                _log.info(f"    {key}: {value:.6f}")
