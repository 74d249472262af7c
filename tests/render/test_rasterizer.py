"""The rasteriser against a ray caster that looks at every pixel and every triangle."""

from __future__ import annotations

import numpy as np
import pytest

from src.errors import ShapeError
from src.render.rasterizer import rasterize

K = np.array([[60.0, 0.0, 31.3], [0.0, 58.0, 23.9], [0.0, 0.0, 1.0]])
WIDTH, HEIGHT, NEAR = 64, 48, 0.1


def test_equals_ray_casting() -> None:
    """Triangles inside, across the borders, across the near plane and behind the camera cover the right
    pixels: those where ray = a + u (b - a) + v (c - a) has a solution.
    """
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(40, 1, 3)) * [0.5, 0.4, 0.6] + [0, 0, 1.0]
    vertices = (middle + rng.normal(size=(40, 3, 3)) * 0.35).reshape(-1, 3)
    faces = np.arange(120).reshape(40, 3)
    vertices[::9, 2] = -0.4  # every third triangle reaches behind the camera
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ np.linalg.inv(K).T
    depth = np.full((len(faces), len(rays)), np.inf)
    for number, (a, b, c) in enumerate(vertices[faces]):
        system = np.stack(np.broadcast_arrays(rays, a - b, a - c), -1)
        z, u, v = np.linalg.solve(system, np.broadcast_to(a[:, None], (len(rays), 3, 1)))[..., 0].T
        covered = (u >= 0) & (v >= 0) & (u + v <= 1) & (z > NEAR)
        depth[number, covered] = z[covered]
    got = rasterize(vertices, faces, K, WIDTH, HEIGHT, near_m=NEAR)
    seen = np.flatnonzero(np.isfinite(depth.min(0)))
    assert len(seen) > 1000
    np.testing.assert_array_equal(got.pixel, seen)
    np.testing.assert_array_equal(got.triangle, depth.argmin(0)[seen])
    np.testing.assert_allclose(got.depth_m, depth.min(0)[seen], rtol=1e-5)


def test_weights_give_back_the_point_under_the_pixel() -> None:
    """Attributes mixed with the weights are right in perspective: mixed positions project onto their own
    pixel."""
    vertices = np.array([[-0.5, -0.3, 0.6], [0.6, -0.2, 2.5], [0.0, 0.5, 1.0]])
    got = rasterize(vertices, np.array([[0, 1, 2]]), K, WIDTH, HEIGHT)
    points = got.barycentric.astype(np.float64) @ vertices
    np.testing.assert_allclose(got.barycentric.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(points[:, 2], got.depth_m, rtol=1e-5)
    pixels = points @ K.T
    y, x = np.divmod(got.pixel, WIDTH)
    np.testing.assert_allclose(pixels[:, 0] / pixels[:, 2], x, atol=1e-3)  # float32 weights on 64 pixels
    np.testing.assert_allclose(pixels[:, 1] / pixels[:, 2], y, atol=1e-3)


def test_neighbours_leave_no_seam() -> None:
    """A plane cut along pixel centres covers every pixel; a seam would show the background through a hand."""
    x, y = np.meshgrid(np.arange(0, WIDTH + 1, 8.0), np.arange(0, HEIGHT + 1, 8.0))
    points = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ np.linalg.inv(K).T
    columns = x.shape[1]
    first = (np.arange(x.shape[0] - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    halves = np.array([[0, 1, columns + 1], [0, columns + 1, columns]])
    faces = np.concatenate([first + halves[0], first + halves[1]])
    got = rasterize(points, faces, K, WIDTH, HEIGHT)
    np.testing.assert_array_equal(got.pixel, np.arange(WIDTH * HEIGHT))


def test_one_sided_triangles_are_seen_from_outside_only() -> None:
    """Counter-clockwise from outside.

    The far side of a closed hand must not cover its near side.
    """
    # Counter-clockwise as seen, with y down.
    towards = np.array([[-0.2, -0.2, 1.0], [-0.2, 0.2, 1.0], [0.2, 0.2, 1.0]])
    normal = np.cross(towards[1] - towards[0], towards[2] - towards[0])
    assert normal[2] < 0, "the outside looks at the camera"
    one, face = np.array([True]), np.array([[0, 1, 2]])
    for order, sides, seen in ((face, one, True), (face[:, ::-1], one, False), (face[:, ::-1], None, True)):
        found = rasterize(towards, order, K, WIDTH, HEIGHT, one_sided=sides).pixel
        assert (len(found) > 50, len(found) > 0) == (seen, seen)


def test_nothing_to_see_and_wrong_shapes() -> None:
    """An empty picture is empty, not an error; a transposed array is an error, not an empty picture."""
    behind = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    assert len(rasterize(behind, np.array([[0, 1, 2]]), K, WIDTH, HEIGHT).pixel) == 0
    with pytest.raises(ShapeError, match="rasterize"):
        rasterize(behind[:, :2], np.array([[0, 1, 2]]), K, WIDTH, HEIGHT)
