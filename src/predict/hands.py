"""Predicted hands: what a `Predictor` answers.

Frame: the image camera, OpenCV (x right, y down, z forward), metres. Legend: N hands, J 21 joints in
`OPENPOSE21`, V 778 vertices, F 1538 faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

Array = Any
"""NumPy array, or torch tensor where the pictures were tensors."""

PER_HAND: dict[str, tuple[int, ...]] = {
    "joints_m": (21, 3),
    "vertices_m": (778, 3),
    "global_orient": (3, 3),
    "hand_pose": (15, 3, 3),
    "betas": (10,),
    "translation_m": (3,),
}
"""What the network says of a hand, and its shape."""

_MIRROR = (-1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Hands:
    """N hands; float32 but where said otherwise.

    `ManoLayer` of the hand that the network was trained with, called with `global_orient`, `hand_pose`,
    `betas` and `translation_m`, gives `vertices_m` and `joints_m` of a right hand. A left hand is the mirror
    image of a right one: its parameters are those of the left-hand model that mirrors the right one.
    """

    joints_m: Array
    """(N, J, 3) image camera; joint 0 is the wrist."""
    vertices_m: Array
    """(N, V, 3) image camera."""
    global_orient: Array
    """(N, 3, 3) wrist rotation, model's rest frame -> image camera."""
    hand_pose: Array
    """(N, 15, 3, 3) local rotations, MANO16 order without the wrist."""
    betas: Array
    """(N, 10) shape."""
    translation_m: Array
    """(N, 3) MANO translation: wrist = translation_m + J0(betas)."""
    left: Array
    """(N,) bool."""
    faces: NDArray[np.int64]
    """(F, 3) vertex numbers of a right hand, counter-clockwise seen from outside; see `faces_of`."""

    def __len__(self) -> int:
        return len(self.left)

    def faces_of(self, hand: int) -> NDArray[np.int64]:
        """(F, 3) faces of one hand, counter-clockwise seen from outside: a mirror image turns them round."""
        return self.faces[:, ::-1] if bool(self.left[hand]) else self.faces

    def rows(self, start: int, end: int) -> Self:
        """Hands start <= i < end."""
        return replace(self, **{name: getattr(self, name)[start:end] for name in (*PER_HAND, "left")})

    def numpy(self) -> Self:
        """The same as NumPy arrays on the CPU."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: a.cpu().numpy() if torch.is_tensor(a) else a for name, a in arrays.items()}
        return type(self)(**kept)

    @classmethod
    def join(cls, parts: Sequence[Hands], faces: NDArray[np.int64]) -> Self:
        """Hands of several parts in one, NumPy arrays; no part gives no hand."""
        arrays = [part.numpy() for part in parts]
        joined = {
            name: np.concatenate([np.zeros((0, *shape), np.float32), *(getattr(a, name) for a in arrays)])
            for name, shape in PER_HAND.items()
        }
        left = np.concatenate([np.zeros(0, bool), *(a.left for a in arrays)])
        return cls(**joined, left=left, faces=faces)


def mirrored(name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
    """One of `PER_HAND`, (N, ...), of the hand that a mirror across x = 0 shows."""
    mirror = np.array(_MIRROR, np.float32)
    if name == "betas":
        return value
    if value.shape[-2:] == (3, 3) and name in ("global_orient", "hand_pose"):
        return value * mirror[:, None] * mirror
    return value * mirror
