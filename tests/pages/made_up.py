"""Made-up validations for pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from src.evaluation.evaluator import CheckedResult
from src.evaluation.scored import Scored
from src.evaluation.seeded import Samples
from src.geometry.in_view import HIDDEN, IN_VIEW
from src.pages.samples import Crop, Hand, Sample
from src.pages.validation import Validation
from src.runtime.seed import stream
from tests.evaluation.ranks import score_alone

SIDE = 32


def names(count: int, sequences: Sequence[str]) -> list[str]:
    """Frames, one sequence after the other."""
    return [f"{sequences[i * len(sequences) // count]}/{i:04d}" for i in range(count)]


def result(count: int, noise_m: float = 0.01, *, seed: int = 0, broken: Sequence[int] = ()) -> CheckedResult:
    """Hands whose joints are off by chance; predictions of `broken` rows are nan."""
    random = stream(seed, "page")
    target = random.normal(0.0, 0.05, (count, 21, 3)) + np.array([0.0, 0.0, 0.6])
    pred = target + random.normal(0.0, noise_m, target.shape)
    pred[list(broken)] = np.nan
    ones, losses = np.ones((count, 21)), random.gamma(2.0, 1.0, count)
    return score_alone(Samples(*(torch.from_numpy(part).float() for part in (pred, target, ones, losses))))


def sample(
    row: int, name: str, *, depth: bool = True, hands: Sequence[str] = ("RGB-D", "RGB-only")
) -> Sample:
    """A crop of noise with a truth and predictions 1, 2, ... cm to the right."""
    random = stream(row, "page sample")
    joints = random.normal(0.0, 0.03, (21, 3)) + np.array([0.0, 0.0, 0.5])
    vertices = random.normal(0.0, 0.03, (50, 3)) + np.array([0.0, 0.0, 0.5])
    faces = random.integers(0, 50, (60, 3))
    shown = {"truth": Hand(joints, vertices)}
    for k, title in enumerate(hands, 1):
        move = np.array([0.01 * k, 0.0, 0.0])
        shown[title] = Hand(joints + move, vertices + move)
    crop = Crop(
        rgb=random.integers(0, 255, (SIDE, SIDE, 3), np.uint8),
        depth=random.normal(0.0, 0.5, (SIDE, SIDE)).astype(np.float32),
        depth_valid=(random.uniform(size=(SIDE, SIDE)) > 0.1) & depth,
        intrinsics_crop_px=np.array([[60.0, 0, SIDE / 2], [0, 60.0, SIDE / 2], [0, 0, 1]]),
        rot_crop_from_img=np.eye(3),
    )
    return Sample(row, name, f"row {row}.", shown, crop, faces=faces)


def validation(
    count: int = 60, sequences: Sequence[str] = ("train/ABF10", "train/MC1", "train/SS2"), *,
    broken: Sequence[int] = (), shown: int = 2, depth: bool = True,
) -> Validation:  # fmt: skip
    """A validation with both modalities, some joints hidden, curves and samples."""
    frames = names(count, sequences)
    scored = {
        name: Scored.of(result(count, noise, seed=1, broken=broken), frames)
        for name, noise in (("RGB-D", 0.01), ("RGB-only", 0.02))
    }
    for rows in scored.values():
        assert rows.joints is not None
        rows.joints.in_view[:] = IN_VIEW
        rows.joints.in_view[:, ::3] = HIDDEN
    scalars = [{"step": 10 * k, "Train/loss": 5.0 / k, "Train/epoch": k - 1, "Val/loss": 4.0 / k,
                "Val/MPJPE": 50.0 / k, "Val/PA-MPJPE": 20.0 / k} for k in range(1, 4)]  # fmt: skip
    chosen = {"worst": [sample(k, frames[k], depth=depth) for k in range(min(shown, count))]}
    return Validation(
        "made up", [("Split", "val"), ("Checkpoint", "best.pt")], scored, count,
        baselines={"mean_pose_mpjpe_mm": np.full(count, 40.0)}, box_side_px=np.linspace(50, 150, count),
        scalars=scalars, chosen=chosen,
    )  # fmt: skip
