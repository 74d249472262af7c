"""What finds hands, and how boxes are compared.

A box is what the network was trained with: x0, y0, x1, y1 around the 21 projected joints, without a margin,
in pixels of the picture; the crop is `box_scale` times its longer side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from src.predict.frame import Frame, HandBox


class BoxFinder(Protocol):
    """Finds the hands of a frame."""

    def find(self, frame: Frame) -> list[HandBox]:
        """Boxes of the hands that are seen; none where there is no hand.

        Raises:
            DataError: this frame lacks what the finder needs; names the frame.
        """


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes x0, y0, x1, y1 share, over the area that they cover together."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    covered = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / covered if covered > 0 else 0.0
