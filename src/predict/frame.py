"""What prediction starts from: one frame of a camera, and boxes around the hands in it.

Legend: H W picture size. Pixel coordinates are OpenCV's: a pixel's centre has whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, its depth and its camera."""

    name: str
    """Unlike that of any other frame of a run."""
    rgb: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    depth_m: NDArray[np.float32] | None
    """(H, W) z of the camera that took the picture, metres; 0, nan or inf where nothing was measured. None:
    there is no depth."""
    intrinsics_px: NDArray[np.float64]
    """(3, 3) K of the picture."""


@dataclass(frozen=True)
class HandBox:
    """Where one hand is in a frame."""

    box_px: tuple[float, float, float, float]
    """x0, y0, x1, y1 around the hand's 21 joints, pixels of the picture."""
    left: bool = False
    """It is a left hand."""
    score: float = 1.0
    """How sure a detector is, 0 to 1; 1 for a box that was given."""
    exact: bool = False
    """It is as large as the hand. False: where depth is measured, that says how large the hand is seen."""
