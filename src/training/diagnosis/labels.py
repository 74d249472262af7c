"""Labels: what the hand model decodes must be the labelled joints, and the wrist where the independent path
puts it. Where it is not, the transform that explains it is named. Legend: B batch, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from src.geometry.procrustes import fit_rotation
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.schema import HandBatch
from src.training.diagnosis.samples import Samples, mirrors, reversed_axes, turned
from src.training.diagnosis.table import Seen, Table

DATA = Table()
"""Checks of samples; `pictures.py` goes on with it."""
LOADER = "dataloader/ho3d/labels.py"
AXES = f"{LOADER} (CV_FROM_GL)"
FITS_MM = 1.0
EXPLAINS_MM = 3.6
"""What a transform that explains the labels may leave: far above rounding, far below another finger."""
BONE_MM = (55, 130)
"""Wrist to middle knuckle: 70-110 mm of grown hands, and some room."""
_ORDERS = {
    permutation(OPENPOSE21, HO3D21): "the labels are in HO3D's order",
    permutation(HO3D21, OPENPOSE21): "HO3D's permutation applied the wrong way round",
}


@DATA.row("labels exist", above=0, why=": finite labels with joints_conf > 0", where=LOADER)
def labels_exist(s: Samples) -> Seen:
    """A label that is not finite is none."""
    share = float(s.labelled.float().mean())
    finite = bool(torch.isfinite(s.batch.joints_cam_m[s.labelled]).all())
    return Seen(
        share * finite, f"{share:.0%} of joints labelled, {'all finite' if finite else 'some not finite'}"
    )


@DATA.row(
    *("hand model is not the labels'", "unit of labels", "joint order", "axis flip", "left hand"),
    "joints and pose turned apart",
    below=FITS_MM,
    why=" mm",
    where=f"mano.model_path, {LOADER}",
)
def labels_decode(s: Samples) -> Seen | None:
    """Labelled joints against what the labelled parameters decode to, wrist-relative."""
    if s.posed is None:
        return None
    labels, made = s.posed.joints_cam_m, _decode(s.posed, s.hand)
    labels = labels - labels[:, :1]
    off = _gap_mm(made, labels)
    text = f"labelled joints {off:.4g} mm from what the hand model decodes"
    if off < FITS_MM:
        return Seen(off, text)
    size, made_size = ((x - x.mean(dim=1, keepdim=True)).norm(dim=(1, 2)).median() for x in (labels, made))
    scale = float(size / made_size.clamp_min(1e-9))
    if not 0.7 < scale < 1.4:
        return Seen(off, f"{text}; the labels are {scale:.4g} times as large", "unit of labels", LOADER)
    for joints, cause, words, where in _explanations(s.posed, s.hand, made, labels):
        if (left := _gap_mm(joints, labels)) < EXPLAINS_MM:
            return Seen(off, f"{text}; {words} leaves {left:.2f} mm", cause, where)
    return Seen(off, f"{text}; no order, axis, side or rotation explains it")


@DATA.row(
    *("joints and wrist moved apart", "labels already relative"),
    below=1,
    why=" mm",
    where=f"{LOADER} (wrist = translation + J0(betas)), dataloader/crop/augment.py",
)
def labels_absolute(s: Samples) -> Seen | None:
    """The labelled wrist against the independent path; MANO reproduces HO3D's to 0.0002 mm."""
    if s.posed is None:
        return None
    wrist, root = s.posed.joints_cam_m[:, 0], s.posed.root_cam_m
    gap = float((wrist - root).norm(dim=-1).mean()) * 1000
    text = f"labelled wrist {gap:.4g} mm from hand translation + J0(betas)"
    from_camera = float(wrist.norm(dim=-1).median())
    if gap > 1 and from_camera < 0.01 * float(root.norm(dim=-1).median()):
        text = f"{text}, and {from_camera * 1000:.3f} mm from the camera's centre"
        return Seen(gap, text, "labels already relative", LOADER)
    return Seen(gap, text)


@DATA.row("axis flip", below=1, why=": OpenCV axes, z forward", where=AXES)
def hand_in_front_of_the_camera(s: Samples) -> Seen:
    """No label lies behind the camera."""
    behind = int((s.batch.joints_cam_m[..., 2][s.labelled] <= 0).sum())
    return Seen(behind, f"{behind} of {int(s.labelled.sum())} labelled joints at z <= 0")


@DATA.row("unit of labels", above=BONE_MM[0], below=BONE_MM[1], why=" mm, mean below 1000 mm", where=LOADER)
def unit_of_labels(s: Samples) -> Seen | None:
    """Wrist to middle knuckle, where both are labelled."""
    knuckle = OPENPOSE21.index("middle_1")
    both = s.labelled[:, 0] & s.labelled[:, knuckle]
    if not both.any():
        return None
    joints = s.batch.joints_cam_m
    size = float((joints[:, knuckle] - joints[:, 0]).norm(dim=-1)[both].median()) * 1000
    mean = float(joints[s.labelled].abs().mean()) * 1000
    return Seen(size, f"wrist to middle knuckle {size:.4g} mm, joints' mean |x| {mean:.4g} mm")


def _explanations(
    batch: HandBatch, hand: ManoLayer, made: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, str, str, str]]:
    """Joints (B, J, 3) as they would be decoded if one thing were otherwise, its cause, words and place."""
    middle, centre = (x - x.mean(dim=1, keepdim=True) for x in (made, labels))
    order = torch.cdist(centre, middle).mean(dim=0).argmin(dim=1).tolist()
    words = f"the permutation {order} ({_ORDERS.get(tuple(order), 'an order of no name here')})"
    yield made[:, order], "joint order", words, f"{LOADER} (TO_OPENPOSE)"
    for signs in list(product((1, -1), repeat=3))[1:]:
        words = f"{reversed_axes(signs)} in the image camera"
        yield turned(made, mirrors(batch, signs)), "axis flip", words, AXES
    # The mirrored hand is the right one decoded with conjugate rotations, mirrored in its own frame.
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    left = _decode(batch, hand, mirror @ batch.hand_pose @ mirror)
    turn = batch.global_orient @ mirror @ batch.global_orient.mT
    words = "a left hand (the model mirrored in its own x)"
    yield turned(left, turn), "left hand", words, f"{LOADER}, mano.model_path"
    # A rotation of its own for each sample explains whatever one rotation explains: it comes last.
    turn = fit_rotation(made, labels).float()
    words, where = "a rotation of its own for each sample", f"{LOADER}, dataloader/crop/augment.py"
    yield turned(made, turn), "joints and pose turned apart", words, where


@torch.no_grad()
def _decode(batch: HandBatch, hand: ManoLayer, hand_pose: Tensor | None = None) -> Tensor:
    """(B, J, 3) wrist-relative joints, on the CPU, of the labelled parameters or of another pose."""
    pose = batch.hand_pose if hand_pose is None else hand_pose
    given = (batch.global_orient, pose, batch.betas, torch.zeros_like(batch.root_cam_m))
    joints: Tensor = hand(*(value.to(hand.faces.device) for value in given)).joints_m.cpu()
    return joints - joints[:, :1]


def _gap_mm(made: Tensor, labels: Tensor) -> float:
    """Median over samples of the largest joint distance, about each hand's middle: any joint may be first."""
    gap = (made - made.mean(dim=1, keepdim=True)) - (labels - labels.mean(dim=1, keepdim=True))
    return float(gap.norm(dim=-1).amax(dim=1).median()) * 1000
