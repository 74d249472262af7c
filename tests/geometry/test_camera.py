"""Projection: pixels and metres, once each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import ShapeError
from src.geometry.camera import project, unproject

K = torch.tensor([[600.0, 2.0, 320.0], [0.0, 610.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_a_hand_spans_pixels_not_fractions() -> None:
    """Divided by the picture's size twice, a whole hand spans 0.0004: a 10 cm hand at 0.6 m spans 100 px."""
    hand = torch.tensor([[0.0, 0.0, 0.6], [0.1, 0.0, 0.6]], dtype=torch.float64)
    pixels = project(hand, K)
    assert pixels[0].tolist() == [320, 240]
    assert pixels[1, 0] - pixels[0, 0] == pytest.approx(100)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_unproject_undoes_project(seed: int) -> None:
    """The predicted wrist is back-projected from crop pixels: it must be the point that projects there."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64) * 0.2 + torch.tensor([0, 0, 0.8])
    pixels = project(points, K.expand(3, 3, 3))
    assert (unproject(pixels, points[..., 2], K.expand(3, 3, 3)) - points).abs().max() < 1e-12


def test_wrong_shapes_are_named() -> None:
    """A (2,)-vector is no point, a (3, 4) matrix no K."""
    with pytest.raises(ShapeError, match="points_cam_m"):
        project(torch.zeros(4, 2), K)
    with pytest.raises(ShapeError, match="intrinsics_px"):
        project(torch.zeros(4, 3), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="points_px"):
        unproject(torch.zeros(4, 3), torch.zeros(4), K)
