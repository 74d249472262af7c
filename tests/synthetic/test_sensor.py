"""Depth errs like a sensor."""

from __future__ import annotations

import numpy as np
import pytest

from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH
from dataloader.synthetic.scene.depth_sensor import BASELINE_M, DepthSensor, shadow


def test_shadow_width_and_side() -> None:
    """A plate before a wall: the hole is f b (1/z_near - 1/z_far) wide, on its left, nowhere else."""
    depth = np.full((480, 640), 1.2, np.float32)
    depth[100:200, 300:400] = 0.6
    hole = shadow(depth, 600.0)
    width = 600.0 * BASELINE_M * (1 / 0.6 - 1 / 1.2)
    assert np.flatnonzero(hole.any(1)).tolist() == list(range(100, 200))
    columns = np.flatnonzero(hole[150])
    assert columns.max() == 299
    assert abs(len(columns) - width) <= 1.0


def test_the_sensor_is_right_in_the_mean_and_its_noise_grows_with_the_square_of_distance() -> None:
    """Whole millimetres, rounded: cut off, every depth would be half a millimetre too near."""
    rng = np.random.default_rng(0)
    sensor = DepthSensor(rng, 600.0)
    spread = []
    for z in (0.8, 1.6):
        clean = np.linspace(z, z + 0.002, WIDTH, dtype=np.float32) * np.ones((HEIGHT, 1), np.float32)
        measured = sensor.measure(rng, clean, np.ones_like(clean))
        there = measured > 0
        assert there.mean() > 0.9
        error = (measured - clean)[there]
        assert abs(float(error.mean())) < 2e-4
        np.testing.assert_allclose(measured * 1000, np.rint(measured * 1000), atol=1e-3)
        spread.append(float(error.std()))
    assert spread[1] / spread[0] == pytest.approx(4.0, rel=0.15)
