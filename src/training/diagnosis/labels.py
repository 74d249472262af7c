"""Labels of a batch against each other: what the hand model decodes must be the labelled joints, and the
wrist must be where the independent path puts it. Where it is not, `causes.py` names the transform that
explains it. Legend: B batch, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from src.geometry.procrustes import fit_similarity
from src.hand.joints import OPENPOSE21
from src.hand.mano import ManoLayer
from src.schema import HandBatch
from src.training.diagnosis.batches import turned
from src.training.diagnosis.causes import (
    EXPLAINS,
    LOADER,
    Rows,
    causes,
    factor,
    residual,
    scale_between,
    turns,
)
from src.training.diagnosis.finding import Finding, judge

FITS = 0.0056
"""Residual below which decoded and labelled joints are the same hand: 1 mm of 180."""
RELATIVE = "labels already relative"
GAP_MM = 1.0
"""Labelled wrist against the independent path; MANO reproduces HO3D's to 0.0002 mm."""
BONE_MM = (55.0, 130.0)
"""Wrist to middle knuckle: 70-110 mm of grown hands, and some room."""


def check_labels(batch: HandBatch, hand: ManoLayer) -> Iterator[Finding]:
    """All checks of labels.

    Args:
        batch: on the CPU.
        hand: that of the configuration, on any device.
    """
    labelled = batch.joints_conf > 0
    share = float(labelled.float().mean())
    finite = bool(torch.isfinite(batch.joints_cam_m[labelled]).all())
    yield judge(
        share > 0 and finite,
        "labels exist",
        f"{share:.0%} of joints labelled, {'all finite' if finite else 'some not finite'}",
        "finite labels with joints_conf > 0",
        LOADER,
    )
    if not (share > 0 and finite):
        return
    rows = batch.mano_valid & labelled.all(dim=1)
    if rows.any():
        absolute = wrist_path(batch, hand, rows)
        if absolute.what == RELATIVE:  # signs, projections and units of such labels mean nothing
            yield absolute
            return
        proper = _proper(batch, rows)
        yield proper
        if proper.status == "OK":
            yield decoded(batch, hand, rows)
        yield absolute
    yield from _places(batch, labelled)
    yield from _consistent(batch)


def _places(batch: HandBatch, labelled: Tensor) -> Iterator[Finding]:
    """Sign, size and variety of the labels alone."""
    joints = batch.joints_cam_m
    behind = float((joints[..., 2][labelled] <= 0).float().mean())
    yield judge(
        behind == 0,
        "hand in front of the camera" if behind == 0 else "axis flip",
        f"{behind:.1%} of labelled joints at z <= 0",
        "0: OpenCV axes, z forward",
        f"{LOADER} (CV_FROM_GL)",
    )
    bone = (joints[:, OPENPOSE21.index("middle_1")] - joints[:, 0]).norm(dim=-1)
    both = labelled[:, OPENPOSE21.index("middle_1")] & labelled[:, 0]
    if both.any():
        size = float(bone[both].median()) * 1000
        mean = float(joints[labelled].abs().mean()) * 1000
        yield judge(
            BONE_MM[0] <= size <= BONE_MM[1],
            "unit of labels",
            f"wrist to middle knuckle {size:.4g} mm, joints' mean |x| {mean:.4g} mm"
            + ("" if BONE_MM[0] <= size <= BONE_MM[1] else f": {factor(size / 90)}"),
            "70-110 mm, mean below 1000 mm",
            LOADER,
        )
    if len(joints) > 1 and labelled.all():
        spread = float(batch.joints_root_m.std(dim=0).norm(dim=-1).mean()) * 1000
        repeats = len(batch.sample_index) - len(set(batch.sample_index.tolist()))
        yield judge(
            spread > 1.0 and repeats == 0,
            "labels vary" if spread > 1.0 and repeats == 0 else "same sample again and again",
            f"joints spread {spread:.2f} mm over samples, {repeats} of {len(joints)} sample indices repeated",
            "above 1 mm, each sample once",
            f"dataloader/batches/samplers.py, {LOADER}",
        )


def _consistent(batch: HandBatch) -> Iterator[Finding]:
    """Fields that are computed from each other."""
    height, width = batch.rgb.shape[-2:]
    joints, k = batch.joints_cam_m, batch.intrinsics_crop_px
    rays = turned(joints, k)
    pixels = rays[..., :2] / rays[..., 2:]
    unit = pixels / torch.tensor([width, height]) - 0.5
    seen = (joints[..., 2] > 0.01) & (batch.joints_conf > 0)
    gap_px = _largest((pixels - batch.joints_crop_px)[seen])
    gap_unit = _largest((unit - batch.joints_unit)[seen]) * max(height, width)
    gap_mm = _largest(joints - joints[:, :1] - batch.joints_root_m) * 1000
    good = gap_px < 0.5 and gap_unit < 0.5 and gap_mm < 0.1
    yield judge(
        good,
        "derived labels" if good else "projection of labels",
        f"joints_crop_px {gap_px:.2g} px and joints_unit {gap_unit:.2g} px from the projection, "
        f"joints_root_m {gap_mm:.2g} mm from joints minus wrist",
        "below 0.5 px and 0.1 mm",
        "dataloader/crop/prepare.py",
    )
    made = k @ batch.rot_crop_from_img @ torch.linalg.inv_ex(batch.intrinsics_img_px)[0]
    corners = torch.tensor([[0.0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
    back = corners @ torch.linalg.inv_ex(batch.crop_from_img)[0].transpose(1, 2)
    again = back @ made.transpose(1, 2)
    moved = _largest(again[..., :2] / again[..., 2:] - corners[:, :2])
    yield judge(
        moved < 0.5,
        "crop camera" if moved < 0.5 else "crop and its camera differ",
        f"crop_from_img moves the crop's corners {moved:.2g} px from K_crop R K_img^-1",
        "below 0.5 px: pixels and labels go through one camera",
        "dataloader/crop/camera.py",
    )


def _proper(batch: HandBatch, rows: Tensor) -> Finding:
    """Rotation matrices are rotations."""
    rotations = torch.cat([batch.global_orient[rows][:, None], batch.hand_pose[rows]], dim=1)
    off = _largest(rotations @ rotations.transpose(-1, -2) - torch.eye(3))
    least = float(torch.linalg.det(rotations).min())
    if least < 0 and off < 1e-2:
        text = f"a rotation has determinant {least:.3f}: an odd number of axes was mirrored"
        return Finding("FAIL", "axis flip", text, "+1", f"{LOADER} (CV_FROM_GL)")
    seen = f"|R R^T - 1| at most {off:.2g}, determinant at least {least:.3f}"
    where = f"{LOADER}, dataloader/ho3d/index.py"
    return judge(off < 1e-2, "rotations of labels", seen, "below 0.01, +1", where)


@torch.no_grad()
def decoded(batch: HandBatch, hand: ManoLayer, rows: Tensor) -> Finding:
    """Decoded parameters against labelled joints, and the cause where they differ.

    Args:
        batch: on the CPU.
        hand: on any device.
        rows: (B,) bool, samples with MANO parameters and all joints.
    """
    b = Rows.of(batch, rows)
    made, labels = b.decode(hand), b.labels
    scale = scale_between(made, labels)
    off_by = residual(made, labels)
    reach = float(labels.norm(dim=-1).amax(dim=1).median())
    expected = f"below {FITS * 180:.0f} mm"
    if off_by < FITS:
        seen = f"labelled joints {off_by * reach * 1000:.3f} mm from what the hand model decodes"
        return Finding("OK", "labels decode", seen, expected, LOADER)
    normal = labels / scale
    best = min(causes(b, hand, made, normal), key=lambda c: c.residual, default=None)
    off = f"labelled joints {off_by * reach * 1000:.4g} mm from what the hand model decodes"
    if scale != 1.0:
        times = factor(scale)
        if residual(made, normal) < EXPLAINS:
            return Finding("FAIL", "unit of labels", f"{off}; {times} explains them", expected, LOADER)
        off = f"{off}; {times}"
    if best is not None and best.residual < EXPLAINS:
        left = best.residual * reach / scale * 1000
        seen = f"{off}; {best.text} leaves {left:.2f} mm"
        return Finding("FAIL", best.what, seen, expected, best.where)
    aligned = fit_similarity(made, normal).apply(made)
    rigid = float((aligned - normal).norm(dim=-1).mean()) * 1000
    seen = (
        f"{off}; no order, axis, side or rotation explains it ({rigid:.1f} mm mean after the best similarity)"
    )
    return Finding("FAIL", "hand model is not the labels'", seen, expected, f"mano.model_path, {LOADER}")


@torch.no_grad()
def wrist_path(batch: HandBatch, hand: ManoLayer, rows: Tensor) -> Finding:
    """The labelled wrist against hand translation + J0(betas), and the cause where they differ."""
    b = Rows.of(batch, rows)
    wrist, root = batch.joints_cam_m[rows, 0], batch.root_cam_m[rows]
    gap = float((wrist - root).norm(dim=-1).mean()) * 1000
    seen = f"labelled wrist {gap:.4g} mm from hand translation + J0(betas)"
    expected = f"below {GAP_MM:.1f} mm"
    if gap < GAP_MM:
        return Finding("OK", "labels absolute", seen, expected, LOADER)
    ratio = float((wrist.norm(dim=-1) / root.norm(dim=-1).clamp_min(1e-9)).median())
    if ratio < 0.01:
        text = f"{seen}, and {float(wrist.norm(dim=-1).median()) * 1000:.3f} mm from the camera's centre"
        return Finding("FAIL", RELATIVE, text, expected, LOADER)
    if not 0.8 < ratio < 1.25 and _close(wrist / ratio, root):
        text = f"{seen}; {factor(ratio)} explains it"
        return Finding("FAIL", "unit of labels", text, expected, LOADER)
    for what, text, rotation, where in turns(b.batch):
        if _close(turned(root[:, None], rotation)[:, 0], wrist):
            return Finding("FAIL", what, f"{seen}; {text} explains it", expected, where)
    rest = hand.rest_root_m(b.batch.betas.to(hand.faces.device)).cpu().norm(dim=-1)
    if float(((wrist - root).norm(dim=-1) - rest).abs().median()) < 1e-3:
        text = f"{seen}, as far as J0(betas) is long: the translation was taken for the wrist"
        return Finding("FAIL", "wrist without J0(betas)", text, expected, LOADER)
    where = f"{LOADER} (assemble), dataloader/crop/augment.py"
    return Finding(
        "FAIL", "joints and wrist moved apart", f"{seen}; no axis or roll explains it", expected, where
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Points (B, 3) agree to 1 % of their distance, in the median."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-9)).median()) < 0.01


def _largest(values: Tensor) -> float:
    """Largest absolute value; 0 of none."""
    return float(values.abs().max()) if values.numel() else 0.0
