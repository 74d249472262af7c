"""Boxes in a video: around the last prediction while that is plausible, else from another finder.

A prediction is plausible if its joints are in front of the camera, half of them in the picture, a hand's size
apart and, where depth is measured, not far from what is seen; if its box overlaps the one that it was
predicted from; and if the box has neither grown nor shrunk since the finder gave it: a network that sees a
smaller hand in a smaller box would else close in on a finger. Frames are given in their order: `find`, then
`tell` what came.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.labels import joint_boxes
from src.predict.boxes.finder import BoxFinder, iou
from src.predict.frame import Frame, HandBox
from src.predict.hands import Hands

EVERY = 30
"""Frames after which the finder is asked anyway: a new hand is seen, and a box that drifted is put right."""

SAME_HAND = 0.3
"""Boxes that share more than this (area in common over area of both) are of one hand."""

EXTENT_M = (0.06, 0.28)
"""Largest distance between two joints: a small fist, and a large hand stretched out, with some error."""

GROWTH = 1.3
"""Largest change of a box's longer side since the finder gave it, in either direction."""

OFF_M = 0.12
"""How far the depth that is seen at the joints may be from them: objects stand before a hand."""


class TrackedBoxes:
    """A `BoxFinder` for the frames of one video, in their order.

    Args:
        finder: is asked for the first frame, every `EVERY` frames, after a frame in which a hand was lost,
            and as long as there is none.
    """

    def __init__(self, finder: BoxFinder) -> None:
        self._finder = finder
        self._kept: list[HandBox] = []
        self._sides: list[float] = []
        """Longer side of each box when the finder gave it; of the boxes that are kept, or given last."""
        self._before = 0
        """Hands of the frame before."""
        self._frames = EVERY
        """Since the finder was asked."""
        self._doubted = False
        """The finder did not see all that were kept when it was asked last."""

    def find(self, frame: Frame) -> list[HandBox]:
        """Boxes of the next frame.

        A hand that the finder does not see is kept once more, but not beside one that it sees instead.

        Raises:
            DataError: as the finder.
        """
        self._frames += 1
        if self._kept and len(self._kept) == self._before and self._frames < EVERY:
            return list(self._kept)
        self._frames = 0
        found = self._finder.find(frame)
        unseen = [k for k, box in enumerate(self._kept) if not _among(box, found)]
        more = unseen[: 0 if self._doubted else max(0, self._before - len(found))]
        self._doubted = bool(more)
        self._sides = [_side(box) for box in found] + [self._sides[k] for k in more]
        return found + [self._kept[k] for k in more]

    def tell(self, frame: Frame, boxes: list[HandBox], hands: Hands) -> None:
        """Take what was predicted for the boxes of a frame, hand by hand, NumPy arrays.

        Args:
            frame: the one that `find` was asked for.
            boxes: N, as they were predicted.
            hands: N.
        """
        kept: list[HandBox] = []
        sides: list[float] = []
        joints = np.asarray(hands.joints_m, np.float64)
        for box, side, hand in zip(boxes, self._sides, joints, strict=True):
            around = _box_around(frame, box, hand)
            if around is None or _among(around, kept) or not 1 / GROWTH <= _side(around) / side <= GROWTH:
                continue
            kept.append(around)
            sides.append(side)
        self._kept, self._sides, self._before = kept, sides, len(boxes)


def _side(box: HandBox) -> float:
    """Longer side, pixels."""
    x0, y0, x1, y1 = box.box_px
    return max(x1 - x0, y1 - y0)


def _among(box: HandBox, others: list[HandBox]) -> bool:
    """Whether one of the other boxes is of the same hand."""
    return any(iou(box.box_px, other.box_px) > SAME_HAND for other in others)


def _box_around(frame: Frame, box: HandBox, joints_m: NDArray[np.float64]) -> HandBox | None:
    """Box around the projected joints (J, 3) of a prediction; None if it is not plausible."""
    if not np.isfinite(joints_m).all() or (joints_m[:, 2] <= 0).any():
        return None
    extent = np.linalg.norm(joints_m[:, None] - joints_m, axis=-1).max()
    if not EXTENT_M[0] <= extent <= EXTENT_M[1]:
        return None
    pixels = joints_m @ frame.intrinsics_px.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    x, y = np.rint(pixels).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < frame.rgb.shape[1]) & (y < frame.rgb.shape[0])
    if inside.mean() < 0.5:
        return None
    if frame.depth_m is not None:
        seen = frame.depth_m[y[inside], x[inside]]
        measured = np.isfinite(seen) & (seen > 0)
        off = np.abs(seen - joints_m[inside, 2])[measured]
        if off.size and np.median(off) > OFF_M:
            return None
    x0, y0, x1, y1 = joint_boxes(joints_m[None], frame.intrinsics_px[None])[0].tolist()
    around = dataclasses.replace(box, box_px=(x0, y0, x1, y1))
    return around if _among(around, [box]) else None
