"""Why decoded parameters are not the labelled joints: transforms under which they would be.

A residual is the median over samples of the largest joint distance, over the hand's reach: a share, so that
it means the same in any unit. Legend: B batch, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from src.geometry.procrustes import fit_rotation
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.schema import HandBatch
from src.training.diagnosis.batches import mirrors, rolls, turned

LOADER = "dataloader/ho3d/labels.py"
EXPLAINS = 0.02
"""Residual below which a transform explains the labels: far above rounding, far below another finger."""
_AXES = {
    (-1.0, 1.0, 1.0): "x mirrored",
    (1.0, -1.0, 1.0): "y mirrored",
    (1.0, 1.0, -1.0): "z mirrored",
    (-1.0, -1.0, 1.0): "x and y reversed",
    (1.0, -1.0, -1.0): "y and z reversed, as OpenGL against OpenCV",
    (-1.0, 1.0, -1.0): "x and z reversed",
    (-1.0, -1.0, -1.0): "all three reversed",
}
_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
_ORDERS = {
    "the labels are in HO3D's order": permutation(OPENPOSE21, HO3D21),
    "HO3D's permutation applied the wrong way round": permutation(HO3D21, OPENPOSE21),
}


_FACTORS = (
    (1000.0, "millimetres where metres belong"),
    (100.0, "centimetres where metres belong"),
    (10.0, "decimetres where metres belong"),
    (0.001, "divided by 1000 once too often"),
)


@dataclass(frozen=True)
class Cause:
    """A transform under which decoded and labelled joints agree."""

    what: str
    text: str
    where: str
    residual: float


@dataclass(frozen=True)
class Rows:
    """Samples that can be decoded."""

    batch: HandBatch
    labels: Tensor
    """(B, J, 3) labelled, wrist-relative."""

    @classmethod
    def of(cls, batch: HandBatch, rows: Tensor) -> Rows:
        """Rows (B,) bool of a batch on the CPU."""
        part = HandBatch(**{name: value[rows] for name, value in vars(batch).items()})
        return cls(part, part.joints_cam_m - part.joints_cam_m[:, :1])

    def decode(
        self,
        hand: ManoLayer,
        *,
        orient: Tensor | None = None,
        pose: Tensor | None = None,
        betas: Tensor | None = None,
    ) -> Tensor:
        """(B, J, 3) wrist-relative, on the CPU, of the labelled parameters or others in their place."""
        b = self.batch
        given = (
            b.global_orient if orient is None else orient,
            b.hand_pose if pose is None else pose,
            b.betas if betas is None else betas,
            torch.zeros_like(b.root_cam_m),
        )
        joints: Tensor = hand(*(value.to(hand.faces.device) for value in given)).joints_m.cpu()
        return joints - joints[:, :1]


def causes(b: Rows, hand: ManoLayer, made: Tensor, labels: Tensor) -> Iterator[Cause]:
    """What could explain labels that are not the decoded joints, each with the residual that it leaves."""
    order = _best_order(made, labels)
    if order is not None:
        known = next((name for name, p in _ORDERS.items() if tuple(p) == order), "an order of no name here")
        text = f"the permutation {list(order)} ({known})"
        yield Cause(
            "joint order", text, f"{LOADER} (TO_OPENPOSE)", residual(made[:, list(order)], labels, "mean")
        )
    for what, text, rotation, where in turns(b.batch):
        yield Cause(what, text, where, residual(turned(made, rotation), labels))
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    left = b.decode(hand, pose=mirror @ b.batch.hand_pose @ mirror)
    # The mirrored hand is the right one decoded with conjugate rotations, mirrored in its own frame.
    turn = b.batch.global_orient @ mirror @ b.batch.global_orient.transpose(1, 2)
    text = "a left hand (the model mirrored in its own x)"
    yield Cause("left hand", text, f"{LOADER}, mano.model_path", residual(turned(left, turn), labels))
    for name, other in _conventions(b, hand):
        yield Cause("pose convention", name, f"{LOADER}, dataloader/ho3d/index.py", residual(other, labels))
    rotation = fit_rotation(made, labels).float()
    text = "a rotation of its own for each sample"
    where = f"{LOADER} (assemble), dataloader/crop/augment.py"
    left_over = residual(turned(made, rotation), labels)
    # A rotation of its own for each sample explains whatever one rotation explains: it comes last.
    yield Cause("joints and pose turned apart", text, where, max(left_over, 0.9 * EXPLAINS))


def turns(batch: HandBatch) -> Iterator[tuple[str, str, Tensor, str]]:
    """(cause, text, (B, 3, 3) map of the crop camera, where): axes reversed, rolls that one side lacks."""
    for signs, name in _AXES.items():
        yield "axis flip", f"{name} in the image camera", mirrors(batch, signs), f"{LOADER} (CV_FROM_GL)"
        turn = torch.diag(torch.tensor(signs)).expand(len(batch.rgb), 3, 3)
        yield "axis flip", f"{name} in the crop camera", turn, f"{LOADER}, dataloader/crop/camera.py"
    where = f"{LOADER} (assemble), dataloader/crop/augment.py"
    apart = "joints and pose turned apart"
    yield apart, "the crop's rotation, which joints lack,", batch.rot_crop_from_img.transpose(1, 2), where
    yield apart, "the crop's rotation, which joints have twice,", batch.rot_crop_from_img, where
    yield apart, "the augmentation's roll, which joints lack,", rolls(batch, -1.0), where
    yield apart, "the augmentation's roll the other way round", rolls(batch, -2.0), where
    yield apart, "the augmentation's roll, which joints have twice,", rolls(batch, 1.0), where


def _conventions(b: Rows, hand: ManoLayer) -> Iterator[tuple[str, Tensor]]:
    """Other readings of the labelled pose and what they decode to."""
    orient, pose = b.batch.global_orient, b.batch.hand_pose
    yield "hand_pose transposed", b.decode(hand, pose=pose.transpose(-1, -2))
    yield "global_orient transposed", b.decode(hand, orient=orient.transpose(-1, -2))
    yield "shape left out (betas 0)", b.decode(hand, betas=torch.zeros_like(b.batch.betas))
    mean = rotation_from_aa(hand.hands_mean.cpu().reshape(15, 3))
    yield "hands_mean added (flat_hand_mean is true)", b.decode(hand, pose=pose @ mean)
    yield "hands_mean taken off (flat_hand_mean is true)", b.decode(hand, pose=pose @ mean.transpose(-1, -2))
    fingers = pose.reshape(-1, 5, 3, 3, 3)
    few = Rows(HandBatch(**{n: v[:4] for n, v in vars(b.batch).items()}), b.labels[:4])
    for order in permutations(range(5)):
        if order == tuple(range(5)):
            continue
        shuffled = fingers[:, list(order)].flatten(1, 2)
        trial = few.decode(hand, pose=shuffled[:4])
        if residual(trial, few.labels) < EXPLAINS:
            names = ", ".join(_FINGERS[k] for k in order)
            yield f"hand_pose with its fingers as {names}", b.decode(hand, pose=shuffled)


def _best_order(made: Tensor, labels: Tensor) -> tuple[int, ...] | None:
    """p with labels[:, j] = made[:, p[j]], about each hand's own middle; None where it is no permutation."""
    a, c = made - made.mean(dim=1, keepdim=True), labels - labels.mean(dim=1, keepdim=True)
    cost = torch.cdist(c, a).mean(dim=0)
    order = tuple(cost.argmin(dim=1).tolist())
    return order if len(set(order)) == len(order) and order != tuple(range(len(order))) else None


def residual(made: Tensor, labels: Tensor, about: str = "wrist") -> float:
    """Share of the hand's reach; `mean`: about each hand's middle, where another joint stands as wrist."""
    if about == "mean":
        made, labels = made - made.mean(dim=1, keepdim=True), labels - labels.mean(dim=1, keepdim=True)
    reach = labels.norm(dim=-1).amax(dim=1).median().clamp_min(1e-9)
    return float((made - labels).norm(dim=-1).amax(dim=1).median() / reach)


def scale_between(made: Tensor, labels: Tensor) -> float:
    """Labels over decoded, from centred sizes; 1 unless they are far apart."""
    sizes = [(x - x.mean(dim=1, keepdim=True)).norm(dim=(1, 2)).median() for x in (made, labels)]
    ratio = float(sizes[1] / sizes[0].clamp_min(1e-9))
    return 1.0 if 0.7 < ratio < 1.4 or ratio == 0 else ratio


def factor(ratio: float) -> str:
    """A factor in words."""
    for exact, name in _FACTORS:
        if 0.6 < ratio / exact < 1.6:
            return f"factor {exact:g} ({name})"
    return f"factor {ratio:.3g}"
