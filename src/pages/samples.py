"""Samples to look at: a crop with its hands, drawn as pictures, and kept so that they can be turned in 3D.

Legend: J 21 joints (`OPENPOSE21`), V vertices, H W crop.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from src.pages.figures import colour, tint
from src.pages.page import Json
from src.render.overlay import depth_picture, draw_meshes
from src.render.pictures import draw_skeleton, encoded, resized

STEPS_PER_MM = 20
"""Vertices are kept as whole numbers of this part of a millimetre."""
_QUALITY = 80
_PICTURE_PX = 256
"""Height that crops are shown in."""
_OPACITY = 0.55


@dataclass(frozen=True, eq=False)
class Hand:
    """A hand of a sample, image camera (OpenCV), metres."""

    joints_m: NDArray[np.floating]
    """(J, 3)."""
    vertices_m: NDArray[np.floating] | None = None
    """(V, 3); None: the joints alone are known."""


@dataclass(frozen=True, eq=False)
class Crop:
    """What the network saw of a sample."""

    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    depth: NDArray[np.float32]
    """(H, W) the network's depth input."""
    depth_valid: NDArray[np.bool_]
    """(H, W) where it was measured; nowhere: without depth."""
    intrinsics_crop_px: NDArray[np.float64]
    """(3, 3) K of the crop."""
    rot_crop_from_img: NDArray[np.float64]
    """(3, 3) image camera -> crop camera."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is shown of one sample."""

    index: int
    """Row of its split."""
    name: str
    """Of its frame, as files have it."""
    text: str
    """Its scores in words."""
    hands: Mapping[str, Hand]
    """By what they are called: `truth`, then predictions."""
    crop: Crop | None = None
    """None: no picture is at hand."""
    others: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Pictures to show in place of a crop, by title."""
    faces: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    """(F, 3) of a right hand's mesh."""

    @cached_property
    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """The crop, its depth, and the crop with each hand drawn over it; by title, all of one size, RGB."""
        if self.crop is None:
            return dict(self.others)
        crop, turn = self.crop, self.crop.rot_crop_from_img.T
        scale = _PICTURE_PX / crop.rgb.shape[0]
        shown = {"crop": resized(crop.rgb, scale)}
        if crop.depth_valid.any():
            coloured = depth_picture(crop.depth, crop.depth_valid, near=-1.0, far=1.0)
            shown["depth: near red, far violet, grey unknown"] = resized(coloured, scale)
        # Pixel p of the crop is drawn at (p + 0.5) * scale - 0.5.
        k_px = crop.intrinsics_crop_px * np.array([[scale], [scale], [1.0]])
        k_px[:2, 2] += (scale - 1) / 2
        for name, hand in self.hands.items():
            picture = shown["crop"].copy()
            if hand.vertices_m is not None:
                vertices = (hand.vertices_m @ turn)[None]
                draw_meshes(picture, k_px, vertices, [self.faces], [tint(name)], opacity=_OPACITY, finer=1)
            seen = hand.joints_m.astype(np.float64) @ turn @ k_px.T
            with np.errstate(divide="ignore", invalid="ignore"):
                joints_px = np.where(seen[:, 2:] > 0, seen[:, :2] / seen[:, 2:], np.nan)
            shown[name] = draw_skeleton(picture, joints_px)
        return shown


def corners(samples: Mapping[str, Sequence[Sample]]) -> list[int]:
    """(3 F,) vertex numbers of the meshes of some samples; of those without a picture there is none."""
    faces = (sample.faces.ravel().tolist() for own in samples.values() for sample in own)
    return max(faces, key=len, default=[])


def sample_json(sample: Sample) -> dict[str, Json]:
    """A sample as a page keeps it.

    Returns:
        `index`, `name`, `text`; `pictures`: title and JPEG (base64); `hands`: `name`, `colour`, `joints_mm`
        (J, 3) image camera, and `mesh`: (V, 3) little-endian int16 in base64, vertex minus wrist, in steps of
        1 / `steps_per_mm` mm, or None. A hand that is not finite is left out.
    """
    return {
        "index": sample.index,
        "name": sample.name,
        "text": sample.text,
        "pictures": [
            {"title": title, "jpeg": base64.b64encode(encoded(picture, ".jpg", _QUALITY)).decode()}
            for title, picture in sample.pictures.items()
        ],
        "hands": [
            {
                "name": name,
                "colour": colour(name),
                "joints_mm": np.round(hand.joints_m.astype(np.float64) * 1000.0, 3).tolist(),
                "mesh": None if hand.vertices_m is None else _steps(hand),
                "steps_per_mm": STEPS_PER_MM,
            }
            for name, hand in sample.hands.items()
            if np.isfinite(hand.joints_m).all()
        ],
    }


def _steps(hand: Hand) -> str:
    """Vertices minus the wrist as text."""
    assert hand.vertices_m is not None
    offsets_mm = (hand.vertices_m.astype(np.float64) - hand.joints_m[0].astype(np.float64)) * 1000.0
    steps = np.nan_to_num(offsets_mm * STEPS_PER_MM).round().clip(-32767, 32767)
    return base64.b64encode(steps.astype("<i2").tobytes()).decode()
