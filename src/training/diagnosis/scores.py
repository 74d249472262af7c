"""A validation: predictors that learned nothing beside it, and the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from src.evaluation.evaluator import CheckedResult
from src.schema import Shown
from src.training.diagnosis.finding import Finding, judge
from src.training.diagnosis.network import ENOUGH_SAMPLES, ENOUGH_STEPS

SAME_MM = 0.05
"""Both metrics this near to the zero pose's are the zero pose's."""
SAME_SHARE = 0.01
"""Both metrics this near, relatively, to the mean pose's are a constant hand's."""
FROZEN_MM = 1e-3
"""Mean movement of a predicted joint between two validations that counts as none."""
KEPT_ROWS = 1024
UNUSABLE = 0.05
"""Share of samples without complete ground truth that is worth a word."""
_WHERE = "src/models/utnet.py, src/models/heads.py, optimizer.lr"


def check_scores(
    results: Mapping[Shown, CheckedResult],
    before: NDArray[np.floating] | None,
    *,
    steps: int,
    samples: int,
) -> Iterator[Finding]:
    """What a validation says.

    Args:
        results: RGB-D, and without depth where that was asked for; with rows (rank 0).
        before: `kept_rows` of the validation before; None at the first.
        steps: optimiser steps done.
        samples: how many samples they saw.
    """
    result = results["rgbd"]
    total = result.num_samples + result.unusable_labels
    yield judge(
        result.num_samples > 0,
        "validation split" if result.num_samples > 0 else "empty validation split",
        f"{result.num_samples} samples scored",
        "above 0",
        "validation.split, split section",
    )
    lost = result.unusable_labels / max(1, total)
    yield judge(
        lost <= UNUSABLE,
        "validation labels" if lost <= UNUSABLE else "validation labels incomplete",
        f"{result.unusable_labels} of {total} samples have no complete ground truth",
        f"at most {UNUSABLE:.0%}",
        "dataloader/ho3d_dataset.py, dataloader/ho3d/truth.py",
        worse="WARN",
    )
    yield judge(
        result.nonfinite_count == 0,
        "finite predictions" if result.nonfinite_count == 0 else "predictions not finite",
        f"{result.nonfinite_count} of {total} predictions not finite",
        "0",
        "optimizer.lr, src/models",
    )
    if not result.is_finite or result.num_samples == 0:
        return
    constant = list(_baselines(result, steps >= ENOUGH_STEPS and samples >= ENOUGH_SAMPLES))
    yield from constant
    if any(finding.status == "FAIL" for finding in constant):
        return  # that such predictions stand still and ignore depth is no news
    now = kept_rows(result)
    if before is not None and now is not None and before.shape == now.shape:
        moved = float(np.linalg.norm(now - before, axis=-1).mean()) * 1000
        yield judge(
            moved > FROZEN_MM,
            "metric moves" if moved > FROZEN_MM else "metric frozen",
            f"predictions moved {moved:.4g} mm since the last validation (MPJPE {result.mpjpe_mm:.3f} mm)",
            f"above {FROZEN_MM:g} mm",
            "src/training/optim.py (optimiser, EMA), optimizer.lr",
        )
    yield from _without_depth(results)


def kept_rows(result: CheckedResult) -> NDArray[np.floating] | None:
    """(n, J, 3) wrist-relative predictions of the first scored samples, metres; None without rows."""
    if result.rows is None:
        return None
    joints = result.rows.pred_joints_cam_m[:KEPT_ROWS]
    return np.asarray(joints - joints[:, :1])


def _baselines(result: CheckedResult, enough: bool) -> Iterator[Finding]:
    """Whether the score is that of a predictor which learned nothing."""
    known = result.baselines
    seen = f"MPJPE {result.mpjpe_mm:.3f} / PA {result.pa_mpjpe_mm:.3f} mm"
    for key, name, room in (
        ("zero", "zero pose", (SAME_MM, SAME_MM)),
        ("mean_pose", "mean pose", tuple(SAME_SHARE * s for s in (result.mpjpe_mm, result.pa_mpjpe_mm))),
    ):
        if f"{key}_mpjpe_mm" not in known or f"{key}_pa_mm" not in known:
            continue
        mpjpe, pa = known[f"{key}_mpjpe_mm"], known[f"{key}_pa_mm"]
        same = abs(result.mpjpe_mm - mpjpe) < room[0] and abs(result.pa_mpjpe_mm - pa) < room[1]
        text = f"{seen}, {name} {mpjpe:.3f} / {pa:.3f} mm"
        what = f"metric equals the {name}" if same else f"not the {name}"
        yield judge(not same, what, text, f"not the score of the {name}", f"{_WHERE}: predictions constant")
    zero = known.get("zero_mpjpe_mm")
    if enough and zero is not None:
        good = result.mpjpe_mm < zero
        what = "better than nothing" if good else "metric no better than the zero pose"
        yield judge(good, what, f"{seen}, zero pose {zero:.3f} mm", "below it", _WHERE, worse="WARN")


def _without_depth(results: Mapping[Shown, CheckedResult]) -> Iterator[Finding]:
    """Whether hiding depth changes anything at all."""
    rgb = results.get("rgb")
    if rgb is None or not rgb.is_finite:
        return
    with_depth, without = kept_rows(results["rgbd"]), kept_rows(rgb)
    if with_depth is None or without is None:
        return
    moved = float(np.linalg.norm(with_depth - without, axis=-1).mean()) * 1000
    yield judge(
        moved > FROZEN_MM,
        "depth matters" if moved > FROZEN_MM else "dead depth branch",
        f"hiding depth moves predictions {moved:.4g} mm",
        f"above {FROZEN_MM:g} mm",
        "src/models/tokens.py, dataloader/crop/augment.py",
    )
