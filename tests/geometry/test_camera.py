"""Projection: pixels and metres, once each; and the shapes that this room refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, zeros

from src.errors import ShapeError
from src.geometry.camera import project, unproject
from src.geometry.procrustes import fit_rotation, fit_similarity
from src.geometry.rotation import rotation_from_6d, rotation_from_aa, sixd_from_rotation

K = torch.tensor([[600.0, 2.0, 320.0], [0.0, 610.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_a_hand_spans_pixels_not_fractions_and_comes_back() -> None:
    """Divided by the picture's size twice, a whole hand spans 0.0004: a 10 cm hand at 0.6 m spans 100 px. The
    predicted wrist is back-projected from crop pixels: it must be the point that projects there.
    """
    pixels = project(torch.tensor([[0.0, 0.0, 0.6], [0.1, 0.0, 0.6]], dtype=torch.float64), K)
    assert pixels.flatten().tolist() == pytest.approx([320, 240, 420, 240])
    drawn = torch.randn(50, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, cameras = drawn * 0.2 + torch.tensor([0, 0, 1.2]), K.expand(50, 3, 3)
    assert (unproject(project(points, cameras), points[..., 2], cameras) - points).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(project, zeros(4, 2), K), "points_cam_m"),
        (partial(project, zeros(4, 3), zeros(3, 4)), "intrinsics_px"),
        (partial(unproject, zeros(4, 3), zeros(4), K), "points_px"),
        (partial(fit_similarity, zeros(2, 21, 3), zeros(2, 20, 3)), r"\(2, 21, 3\) and \(2, 20, 3\)"),
        (partial(fit_rotation, zeros(21, 3), zeros(21, 3)), r"\(21, 3\)"),
        (partial(rotation_from_6d, zeros(2, 5)), r"\(2, 5\)"),
        (partial(rotation_from_aa, zeros(4)), r"\(4,\)"),
        (partial(sixd_from_rotation, zeros(3, 2)), r"\(3, 2\)"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[[], Tensor], message: str) -> None:
    """Broadcast, two sets of different sizes, or a (2,)-vector as a point, would give numbers."""
    with pytest.raises(ShapeError, match=message):
        call()
