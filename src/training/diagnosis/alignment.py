"""Do labels lie on the hand that the picture shows? And if not, under which transform would they?

Evidence of depth: a joint is inside the hand, so what the camera measures under it is never far behind it.
The share of joints that the camera sees *through* is 0 to 0.02 in healthy batches (fingers' edges) and 0.13
to 0.7 when labels were mirrored, rolled or exchanged. Evidence of colour: skin is redder than what is near.
Legend: B batch, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from src.geometry.camera import project
from src.schema import HandBatch
from src.training.diagnosis.batches import mirrors, rolls, turned
from src.training.diagnosis.finding import Finding
from src.training.diagnosis.pictures import LEAST_JOINTS, RED, measured_z, natural_rgb, redness

BEHIND_M = 0.02
"""How far behind its joint a measurement must be to have missed the hand."""
THROUGH = 0.08
"""Share of joints seen through that is too much; see above."""
REDDER = 0.035
"""A transform whose joints lie on redder ground than the labelled ones by this much is the better one.

In healthy batches the labelled place is the reddest, by 0.06 to 0.1 on the mean of 12 samples.
"""
LEAST_SAMPLES = 12
"""Samples below which colour is not judged."""
_LOADER = "dataloader/ho3d_dataset.py"


@dataclass(frozen=True)
class _Place:
    """Where joints would be if one thing were otherwise."""

    cause: str
    text: str
    where: str
    joints_cam_m: Tensor


def check_alignment(batch: HandBatch, *, depth_usable: bool = True) -> Iterator[Finding]:
    """Whether labels and pixels show one hand.

    Args:
        batch: on the CPU, labels in front of the camera.
        depth_usable: false where another check has found depth itself wrong.
    """
    if not bool((batch.joints_cam_m[..., 2] > 0.01).all()):
        return
    labelled = _through(batch, batch.joints_cam_m) if depth_usable else None
    colour = _redness(batch, batch.joints_cam_m)
    if labelled is not None:
        yield _by_depth(batch, *labelled)
    elif len(batch.rgb) >= LEAST_SAMPLES and colour > RED:
        yield _by_colour(batch, colour)


def _by_depth(batch: HandBatch, share: float, count: int) -> Finding:
    """Verdict from what the camera sees through."""
    seen = f"the camera sees through {share:.1%} of {count} joints"
    expected = f"below {THROUGH:.0%}: joints are inside the hand"
    if share < THROUGH:
        return Finding("OK", "labels on the hand", seen, expected, _LOADER)
    trials = []
    for place in _places(batch):
        other = _through(batch, place.joints_cam_m)
        if other is not None and other[1] > 0.3 * count:
            trials.append((other[0], place))
    best = min(trials, key=lambda trial: trial[0], default=None)
    if best is not None and best[0] < max(0.35 * share, 0.02):
        other_share, place = best
        if place.cause == "axis flip" and _colour_prefers_labels(batch, place):
            text = f"{seen}; {place.text} leaves {other_share:.1%}, yet the skin is where the labels are"
            where = f"{_LOADER} (_pixels), dataloader/augment.py"
            return Finding("FAIL", "picture and depth apart", text, expected, where)
        text = f"{seen}; {place.text} leaves {other_share:.1%}"
        return Finding("FAIL", place.cause, text, expected, place.where)
    text = f"{seen}; no axis or roll explains it: other frame, other crop, or depth and picture apart"
    return Finding("FAIL", "label and picture apart", text, expected, f"{_LOADER}, dataloader/crop.py")


def _by_colour(batch: HandBatch, colour: float) -> Finding:
    """Verdict from skin, where no depth is shown."""
    seen = f"skin under the joints: redness {colour:+.3f}"
    expected = f"no other place redder by {REDDER}"
    trials = [(_redness(batch, place.joints_cam_m), place) for place in _places(batch, inside_only=True)]
    best = max(trials, key=lambda trial: trial[0], default=None)
    if best is None or best[0] < colour + REDDER:
        return Finding("OK", "labels on the hand", seen, expected, _LOADER)
    text = f"{seen}; {best[1].text} has {best[0]:+.3f}"
    return Finding("FAIL", best[1].cause, text, expected, best[1].where)


def _places(batch: HandBatch, *, inside_only: bool = False) -> Iterator[_Place]:
    """Joints under each transform that a known mistake makes.

    Args:
        inside_only: leave out transforms that move hands out of their crops.
    """
    joints, wrist = batch.joints_cam_m, batch.joints_cam_m[:, :1]
    where = f"{_LOADER}, dataloader/crop.py"
    for name, signs in (
        ("x mirrored in the crop", (-1.0, 1.0, 1.0)),
        ("y mirrored in the crop", (1.0, -1.0, 1.0)),
        ("x and y reversed in the crop", (-1.0, -1.0, 1.0)),
    ):
        yield _Place("axis flip", name, where, joints * torch.tensor(signs))
    yield _Place("axis flip", "x and y exchanged", where, joints[..., [1, 0, 2]])
    z = torch.cat([joints[..., :2], 2 * wrist[..., 2:] - joints[..., 2:]], dim=-1)
    yield _Place("axis flip", "z reversed about the wrist", f"{_LOADER} (CV_FROM_GL)", z)
    if not inside_only:
        for name, signs in (
            ("x mirrored in the image camera", (-1.0, 1.0, 1.0)),
            ("y mirrored in the image camera", (1.0, -1.0, 1.0)),
            ("x and y reversed in the image camera", (-1.0, -1.0, 1.0)),
        ):
            moved = turned(joints, mirrors(batch, signs))
            yield _Place("axis flip", name, f"{_LOADER} (CV_FROM_GL)", moved)
    where = "dataloader/augment.py, dataloader/ho3d_dataset.py (_assemble)"
    for name, times in (
        ("labels without the augmentation's roll", -1.0),
        ("labels rolled the other way", -2.0),
        ("labels rolled twice", 1.0),
    ):
        yield _Place("label and picture augmented apart", name, where, turned(joints, rolls(batch, times)))


def _unit(batch: HandBatch, joints_cam_m: Tensor) -> Tensor:
    """(B, J, 2) projections, crop = [-0.5, 0.5]."""
    height, width = batch.rgb.shape[-2:]
    return project(joints_cam_m, batch.intrinsics_crop_px) / torch.tensor([width, height]) - 0.5


def _through(batch: HandBatch, joints_cam_m: Tensor) -> tuple[float, int] | None:
    """(share of measured joints that the camera sees through, how many); None if they are too few."""
    z, known = measured_z(batch, _unit(batch, joints_cam_m))
    known = known & (batch.joints_conf > 0) & (joints_cam_m[..., 2] > 0.01)
    count = int(known.sum())
    if count < LEAST_JOINTS:
        return None
    return float((z - joints_cam_m[..., 2] > BEHIND_M)[known].float().mean()), count


def _redness(batch: HandBatch, joints_cam_m: Tensor) -> float:
    """Mean redness under joints over that of the whole crops."""
    rgb = natural_rgb(batch)
    whole = ((rgb[:, 0] - rgb[:, 2]) / (rgb[:, 0] + rgb[:, 2] + 0.05).clamp_min(0.05)).mean()
    return float(redness(batch, _unit(batch, joints_cam_m)).mean() - whole)


def _colour_prefers_labels(batch: HandBatch, place: _Place) -> bool:
    """Skin lies under the labelled joints rather than under the transformed ones."""
    return _redness(batch, batch.joints_cam_m) > _redness(batch, place.joints_cam_m) + REDDER
