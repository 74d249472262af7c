"""Pixels: is there a picture, is the hand in it, in which colours, how deep; do labels lie on it?

Thresholds beside what healthy batches of 4 to 8 embedded samples at 64 to 128 px show, with and without
augmentation. Labels were found sound before. Legend: B batch, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from src.geometry.camera import project
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, IMAGENET_MEAN, IMAGENET_STD
from src.training.diagnosis.labels import AXES, DATA, LOADER
from src.training.diagnosis.samples import Samples, mirrors, reversed_axes, rolls, turned, under
from src.training.diagnosis.table import Seen

__all__ = ["DATA"]
BLANK_STD = 0.05
"""Standard deviation over a normalised crop; healthy ones are above 0.2."""
RED_SAMPLES = 6
"""Samples below which colours are not judged: an object may cover a few hands."""
Z_RATIO = (0.75, 1.33)
"""Reference depth over the labelled wrist's depth, median; healthy 0.96 to 1.07 with depth."""
BEHIND_M = 0.02
"""How far behind its joint a measurement must be to have missed the hand."""
THROUGH = 0.08
"""Share of joints, which are inside the hand, that the camera sees through: from here on it is asked whether
a known mistake explains it. Labels that were mirrored, rolled or exchanged show 0.11 to 0.7."""
APART = 0.13
"""Share from which labels are apart though nothing explains it. Healthy frames of a clean sensor show 0 to
0.02 (fingers' edges); with holes, flying pixels and depth beside the colours (`--domain wide`) 0.05, of 120
batches of 16 samples 0.12 at most."""
LEAST_JOINTS, FEW_JOINTS = 40, 10
"""Measured joints to judge the labels by, and those that a transform must leave inside the crops."""
AUGMENTED = "label and picture augmented apart"
_DECODE = "dataloader/pictures/decode.py"
_AUGMENT = f"dataloader/crop/augment.py, {LOADER}"


@DATA.row("blank crops", below=1e-6, fails=0.1, where=f"dataloader/crop/camera.py, {_DECODE}")
def crops_show_something(s: Samples) -> Seen:
    """One hand before a white wall is worth a word; a tenth of the crops are a loader that reads nothing."""
    spread = s.batch.rgb.float().std(dim=(2, 3)).mean(dim=1)
    blank = int((spread < BLANK_STD).sum())
    text = f"{blank} of {len(spread)} crops constant, least standard deviation {float(spread.min()):.3f}"
    return Seen(blank / len(spread), text)


@DATA.row("joints outside the crop", above=0.9, where="dataloader/crop/camera.py, dataset.box_scale")
def joints_inside_the_crop(s: Samples) -> Seen:
    """Share of labelled joints; healthy 0.99 to 1."""
    share = float(under(s.batch.depth, s.batch.joints_unit)[1][s.labelled].float().mean())
    return Seen(share, f"{share:.1%} of labelled joints project into their crop")


@DATA.row("BGR", above=-0.03, why=": skin is redder than blue", where=f"{_DECODE} (read_rgb)")
def rgb_order(s: Samples) -> Seen | None:
    """Skin of every tone: healthy 0.12 to 0.34, channels exchanged -0.12 to -0.34, random texture about 0."""
    red, inside = under(s.batch.rgb[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0], s.batch.joints_unit)
    blue, _ = under(s.batch.rgb[:, 2:] * IMAGENET_STD[2] + IMAGENET_MEAN[2], s.batch.joints_unit)
    redness = (red - blue) / (red + blue + 0.05).clamp_min(0.05) * inside
    mean = float((redness.sum(dim=1) / inside.sum(dim=1).clamp_min(1)).mean())
    seen = Seen(mean, f"(R - B) / (R + B) under the joints {mean:+.3f}")
    return seen if len(s.batch.rgb) >= RED_SAMPLES else None


@DATA.row("depth all invalid", above=0.2, where=f"{_DECODE} (combine_depth), dataloader/crop/prepare.py")
def depth_measured(s: Samples) -> Seen | None:
    """Share of pixels where depth is shown; healthy 0.87 to 0.95."""
    valid = s.batch.depth_valid[s.batch.depth_present]
    share = float(valid.sum()) / max(1, valid.numel())
    return Seen(share, f"{share:.1%} of pixels valid where depth is shown") if valid.numel() else None


@DATA.row("depth digits mixed", "depth constant", below=40, why=" mm", where=f"{_DECODE} (combine_depth)")
def depth_smooth(s: Samples) -> Seen | None:
    """Steps between neighbours that are not both clipped: healthy 1 to 3 mm, exchanged bytes above 100 mm."""
    depth, valid = s.batch.depth, s.batch.depth_valid
    inner = depth.abs() < 0.99 * DEPTH_CLIP
    both = (valid[..., 1:] > 0) & (valid[..., :-1] > 0) & (inner[..., 1:] | inner[..., :-1])
    steps = (depth[..., 1:] - depth[..., :-1]).abs()[both] * DEPTH_RANGE_M * 1000
    if steps.numel() <= 100:
        return None
    step, largest = float(steps.median()), float(steps.max())
    text = f"neighbouring pixels differ by {step:.1f} mm in the median, {largest:.1f} mm at most"
    return Seen(step, text, None if largest > 1 else "depth constant")


@DATA.row(
    *("label and picture apart", "axis flip", AUGMENTED),
    below=APART,
    why=": joints inside the hand that the picture shows",
    where=f"{LOADER}, dataloader/crop/camera.py",
)
def labels_on_the_hand(s: Samples) -> Seen | None:
    """What the camera sees far behind a joint misses the hand; if it does, where would joints have to be?"""
    tried: list[tuple[float, Seen]] = []
    share, count = _seen_through(s, s.batch.joints_cam_m)
    text = f"the camera sees through {share:.1%} of {count} joints"
    if count < LEAST_JOINTS or share < THROUGH:
        return Seen(share, text) if count >= LEAST_JOINTS else None
    for joints, cause, words, where in _places(s):
        left, measured = _seen_through(s, joints)
        if measured >= max(FEW_JOINTS, 0.1 * count) and left < max(0.35 * share, 0.02):
            tried.append((left, Seen(share, f"{text}; {words} leaves {left:.1%}", cause, where)))
    if tried:
        return min(tried, key=lambda one: one[0])[1]
    if s.depth_ratio is not None and not Z_RATIO[0] < s.depth_ratio < Z_RATIO[1]:
        return None  # depth is wrong, and will be named
    return Seen(share, f"{text}; no axis or roll explains it: another frame, another crop, or depth")


@DATA.row("depth scale", above=Z_RATIO[0], below=Z_RATIO[1], where=f"src/schema.py (DEPTH_UNIT_M), {_DECODE}")
def depth_in_metres(s: Samples) -> Seen | None:
    """Labels on another place have another place's depth: that is told before."""
    ratio = s.depth_ratio
    return None if ratio is None else Seen(ratio, f"reference depth is {ratio:.4g} x the labelled wrist's")


def _seen_through(s: Samples, joints_cam_m: Tensor) -> tuple[float, int]:
    """Share of the measured joints (B, J, 3) that the camera sees through, and how many are measured."""
    batch, z = s.batch, joints_cam_m[..., 2]
    height, width = batch.rgb.shape[-2:]
    unit = project(joints_cam_m, batch.intrinsics_crop_px) / torch.tensor([width, height]) - 0.5
    depth, inside = under(batch.depth, unit)
    known = inside & batch.depth_present[:, None] & (under(batch.depth_valid, unit)[0] > 0)
    known &= (depth > -0.99 * DEPTH_CLIP) & s.labelled & (z > 0.01)  # clipped far: at least so far
    behind = (depth * DEPTH_RANGE_M + batch.z_ref_m[:, None] - z > BEHIND_M) & known
    return int(behind.sum()) / max(1, int(known.sum())), int(known.sum())


def _places(s: Samples) -> Iterator[tuple[Tensor, str, str, str]]:
    """Joints (B, J, 3) under each transform that a known mistake makes, its cause, words and place."""
    joints, wrist_z = s.batch.joints_cam_m, s.batch.joints_cam_m[:, :1, 2:]
    for signs in ((-1, 1, 1), (1, -1, 1), (-1, -1, 1)):
        words = reversed_axes(signs)
        yield joints * torch.tensor(signs), "axis flip", f"{words} in the crop", _AUGMENT
        mirrored = turned(joints, mirrors(s.batch, signs))
        yield mirrored, "axis flip", f"{words} in the image camera", AXES
    nearer = torch.cat([joints[..., :2], 2 * wrist_z - joints[..., 2:]], dim=-1)
    yield nearer, "axis flip", "z reversed about the wrist", AXES
    for times, words in (
        (-1, "taking the augmentation's roll off the labels"),
        (-2, "rolling the labels the other way"),
        (1, "rolling the labels as the augmentation says"),
    ):
        yield turned(joints, rolls(s.batch, times)), AUGMENTED, words, _AUGMENT
