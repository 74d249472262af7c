"""Pixels of a batch: is there a picture, in which colours, and depth in which unit?

Thresholds beside what healthy batches of 4 to 8 embedded samples at 64 to 128 px show, with and without
augmentation. Legend: B batch, J joints, H W crop.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, HandBatch
from src.training.diagnosis.batches import under
from src.training.diagnosis.finding import Finding, judge

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BLANK_STD = 0.05
"""Standard deviation over a normalised crop; healthy ones are above 0.2."""
INSIDE = 0.9
"""Share of joints inside the crop; healthy 0.99 to 1."""
RED = -0.03
"""Mean of (R - B) / (R + B) under joints. Skin of every tone is redder than blue: healthy 0.12 to 0.34, the
same with channels exchanged -0.12 to -0.34, random texture about 0."""
RED_SAMPLES = 6
"""Samples below which colours are not judged: an object may cover a few hands."""
LEAST_JOINTS = 40
"""Measured joints below which depth is not judged."""
VALID = 0.2
"""Share of measured pixels in crops whose depth is shown; healthy 0.87 to 0.95."""
Z_RATIO = (0.75, 1.33)
"""Reference depth over the labelled wrist's depth, median; healthy 0.96 to 1.07 with depth."""
SCALES = (0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
"""Factors tried on the depth input."""
SURFACE_M = (0.01, 0.012)
"""Skin over a joint that is not hidden: mean and half width, metres."""
SCALE_GAIN = 1.3
"""A factor that puts skin over this many times more joints is the better one; healthy below 1.1."""
CLIPPED = 0.4
"""Share of joints whose depth is clipped that is too much; healthy below 0.1."""
ROUGH_MM = 40.0
"""Median step between neighbouring depth pixels; healthy 1 to 3 mm, exchanged bytes above 100 mm."""


def natural_rgb(batch: HandBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: ImageNet's normalisation taken back."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return batch.rgb.float() * std[:, None, None] + mean[:, None, None]


def measured_z(batch: HandBatch, points_unit: Tensor, *, far: bool = False) -> tuple[Tensor, Tensor]:
    """Depth under points, back in metres.

    Args:
        batch: on the CPU.
        points_unit: (B, P, 2).
        far: count what is clipped at the far end as measured: it is at least so far.

    Returns:
        (B, P) m along the crop camera's axis; (B, P) bool, measured, not clipped, inside and shown.
    """
    depth, inside = under(batch.depth.float(), points_unit)
    valid, _ = under(batch.depth_valid.float(), points_unit)
    end = 0.99 * DEPTH_CLIP
    known = inside & (valid[..., 0] > 0) & (depth[..., 0] > -end) & (far | (depth[..., 0] < end))
    known &= batch.depth_present[:, None]
    return depth[..., 0] * DEPTH_RANGE_M + batch.z_ref_m[:, None], known


def check_pictures(batch: HandBatch, *, labels_sound: bool = True) -> Iterator[Finding]:
    """All checks of pixels.

    Args:
        batch: on the CPU.
        labels_sound: false leaves out what looks under the joints.
    """
    yield from _rgb(batch, labels_sound)
    if not labels_sound:
        return
    labelled = batch.joints_conf > 0
    _, inside = under(batch.rgb, batch.joints_unit)
    share = float(inside[labelled].float().mean()) if labelled.any() else 1.0
    yield judge(
        share >= INSIDE,
        "joints inside the crop" if share >= INSIDE else "joints outside the crop",
        f"{share:.1%} of labelled joints project into their crop",
        f"at least {INSIDE:.0%}",
        "dataloader/crop/camera.py, dataset.box_scale, augmentation.shift",
    )
    if batch.depth_present.any() and share >= INSIDE:
        yield from _depth(batch)


def redness_map(batch: HandBatch) -> Tensor:
    """(B, 1, H, W) of (R - B) / (R + B) of the picture."""
    rgb = natural_rgb(batch)
    red, blue = rgb[:, :1], rgb[:, 2:]
    return (red - blue) / (red + blue + 0.05).clamp_min(0.05)


def mean_under(image: Tensor, points_unit: Tensor) -> Tensor:
    """(B,) mean of a (B, 1, H, W) image under points inside the crop; 0 where none is."""
    value, inside = under(image, points_unit)
    return (value[..., 0] * inside).sum(dim=1) / inside.sum(dim=1).clamp_min(1)


def _rgb(batch: HandBatch, labels_sound: bool) -> Iterator[Finding]:
    """Range, contrast and channel order."""
    rgb = batch.rgb.float()
    finite = bool(torch.isfinite(rgb).all())
    low, high = float(rgb.min()), float(rgb.max())
    good = finite and low > -2.3 and high < 2.8 and not (low >= 0 and high <= 1)
    yield judge(
        good,
        "RGB range" if good else "RGB normalisation",
        f"[{low:.3f}, {high:.3f}]" + ("" if finite else ", not finite"),
        "inside [-2.118, 2.640], and below 0 somewhere",
        "dataloader/crop/prepare.py (normalise_rgb)",
    )
    spread = rgb.std(dim=(2, 3)).mean(dim=1)
    blank = int((spread < BLANK_STD).sum())
    yield judge(
        blank == 0,
        "crops show something" if blank == 0 else "blank crops",
        f"{blank} of {len(rgb)} crops constant, least standard deviation {float(spread.min()):.3f}",
        f"none below {BLANK_STD}",
        "dataloader/crop/camera.py, dataloader/pictures/decode.py",
        worse="FAIL" if blank > 0.1 * len(rgb) else "WARN",
    )
    if len(rgb) > 1:
        differ = float((rgb[1:] - rgb[:1]).abs().mean())
        yield judge(
            differ > 1e-3,
            "pictures differ" if differ > 1e-3 else "same picture for every sample",
            f"mean difference to the first crop {differ:.3f}",
            "above 0.001",
            "dataloader/ho3d_dataset.py (_pixels)",
        )
    if len(rgb) >= RED_SAMPLES and good and labels_sound:
        red = float(mean_under(redness_map(batch), batch.joints_unit).mean())
        yield judge(
            red > RED,
            "RGB order" if red > RED else "BGR",
            f"(R - B) / (R + B) under the joints {red:+.3f}",
            f"above {RED}: skin is redder than blue",
            "dataloader/pictures/decode.py (read_rgb)",
        )


def _depth(batch: HandBatch) -> Iterator[Finding]:
    """Validity, unit, encoding and scale of the depth that is shown."""
    shown = batch.depth_present
    valid = float(batch.depth_valid[shown].mean())
    yield judge(
        valid > VALID,
        "depth measured" if valid > VALID else "depth all invalid",
        f"{valid:.1%} of pixels valid where depth is shown",
        f"above {VALID:.0%}",
        "dataloader/pictures/decode.py (combine_depth), dataloader/crop/prepare.py (normalise_depth)",
    )
    labelled = shown & (batch.joints_conf[:, 0] > 0) & (batch.root_cam_m[:, 2] > 0)
    if valid <= VALID or not labelled.any():
        return
    step = _roughness_mm(batch.depth[shown], batch.depth_valid[shown])
    if step >= ROUGH_MM:
        where = "dataloader/pictures/decode.py (combine_depth), dataloader/crop/camera.py (nearest)"
        seen = f"neighbouring pixels differ by {step:.0f} mm in the median"
        yield Finding("FAIL", "depth digits mixed", seen, f"below {ROUGH_MM:.0f} mm", where)
        return
    seen = f"neighbouring pixels differ by {step:.1f} mm in the median"
    yield Finding("OK", "depth smooth", seen, f"below {ROUGH_MM:.0f} mm", "dataloader/pictures/decode.py")
    ratio = float((batch.z_ref_m[labelled] / batch.root_cam_m[labelled, 2]).median())
    near = Z_RATIO[0] < ratio < Z_RATIO[1]
    yield judge(
        near,
        "depth in metres" if near else "depth scale",
        f"reference depth is {ratio:.4g} x the labelled wrist's",
        f"{Z_RATIO[0]} to {Z_RATIO[1]}",
        "src/schema.py (DEPTH_UNIT_M), dataloader/pictures/decode.py (combine_depth)",
    )
    if near:
        yield from _input_scale(batch)


def _input_scale(batch: HandBatch) -> Iterator[Finding]:
    """Factor between depth differences as the network sees them and as they are labelled."""
    where = "src/schema.py (DEPTH_RANGE_M), dataloader/crop/prepare.py (normalise_depth)"
    z, known = measured_z(batch, batch.joints_unit)
    valid, inside = under(batch.depth_valid.float(), batch.joints_unit)
    there = inside & (valid[..., 0] > 0) & batch.depth_present[:, None]
    clipped = float((there & ~known).sum() / there.sum().clamp_min(1))
    if clipped > CLIPPED:
        seen = f"{clipped:.0%} of depths under joints are clipped at +-{DEPTH_CLIP}"
        yield Finding("FAIL", "depth scale", seen, f"below {CLIPPED:.0%}", where)
        return
    if int(known.sum()) < LEAST_JOINTS:
        return
    step, label = z - batch.z_ref_m[:, None], batch.joints_cam_m[..., 2] - batch.z_ref_m[:, None]
    middle, width = SURFACE_M
    skin = {s: float((((label - s * step)[known] - middle).abs() < width).float().mean()) for s in SCALES}
    best = max(skin, key=lambda s: (skin[s], s == 1.0))
    good = skin[best] < SCALE_GAIN * skin[1.0] or 0.6 < best < 1.6
    yield judge(
        good,
        "depth input scale" if good else "depth scale",
        f"{skin[1.0]:.0%} of {int(known.sum())} joints have skin over them"
        + ("" if good else f", {skin[best]:.0%} if depth differences were {best:g} x as large"),
        f"most at factor 1, within {SCALE_GAIN} times",
        where,
    )


def _roughness_mm(depth: Tensor, valid: Tensor) -> float:
    """Median of |step| to the right neighbour where both are measured and one is not clipped."""
    inner = depth.abs() < 0.99 * DEPTH_CLIP
    both = (valid[..., 1:] > 0) & (valid[..., :-1] > 0) & (inner[..., 1:] | inner[..., :-1])
    steps = (depth[..., 1:] - depth[..., :-1]).abs()[both]
    return float(steps.median()) * DEPTH_RANGE_M * 1000 if steps.numel() > 100 else 0.0
