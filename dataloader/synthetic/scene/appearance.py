"""What things look like: textures, a skin atlas, the table and the wall.

Colours are RGB, 0-255, float32. The skin atlas is a picture of the flat hand seen from its back and one seen
from its palm, in coordinates (proximal, radial) of the rest hand, so it fits any hand in MANO's format.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dataloader.synthetic.common import Array, Image, unit
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.motion.rig import Anatomy
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, Camera
from dataloader.synthetic.scene.web import Web
from src.hand.joints import FINGERS, MANO16
from src.runtime.seed import stream

Window = tuple[slice, slice]

NEAREST_UPRIGHT_M = 0.95
"""Nothing of HO3D's rooms that stands upright is nearer to the camera."""

ATLAS_PX_PER_M = 1600.0
_ATLAS_MARGIN_M = 0.03
_ATLAS_ARM_M = 0.34
"""The atlas goes on behind the wrist for the forearm."""

_SKIN_TONES = np.array(
    [[241, 206, 184], [228, 183, 152], [206, 154, 121], [172, 119, 88], [128, 84, 60], [88, 58, 43]],
    np.float32,
)
"""Light to dark; colours between neighbours are mixed."""


@dataclass(frozen=True)
class SkinAtlas:
    """Skin of one person."""

    back: Image
    """(A, B, 3) back of the hand."""
    palm: Image
    """(A, B, 3) palm side."""
    origin_m: Array
    """(2,) (proximal, radial) of pixel (0, 0)."""

    def sample(self, proximal_radial_m: Image, backness: Image) -> Image:
        """(P, 3) colours at rest coordinates (P, 2), mixed by how far the skin looks to the back (P,) in [0,
        1]."""
        offset = proximal_radial_m - self.origin_m.astype(np.float32)
        cell = (offset * np.float32(ATLAS_PX_PER_M)).astype(np.int32)
        row = cell[:, 0].clip(0, self.back.shape[0] - 1)
        column = cell[:, 1].clip(0, self.back.shape[1] - 1)
        share = backness[:, None]
        mixed: Image = self.back[row, column] * share + self.palm[row, column] * (1 - share)
        return mixed


def rest_coordinates(points_m: Array, anatomy: Anatomy) -> Array:
    """(..., 2) (proximal, radial) of points of the flat hand."""
    return np.stack([-(points_m @ anatomy.distal), points_m @ anatomy.radial], -1)


def place_on_atlas(point_m: Array, anatomy: Anatomy, origin_m: Array) -> Array:
    """(2,) row and column, in pixels of an atlas with that origin, of a point (3,) of the flat hand."""
    return np.asarray((rest_coordinates(point_m, anatomy) - origin_m) * ATLAS_PX_PER_M)


def noise(
    rng: np.random.Generator, height: int, width: int, *, cells: int, octaves: int, channels: int = 3
) -> Image:
    """(height, width, channels) smooth random field, about -0.5..0.5, `cells` blobs across at the coarsest
    octave."""
    out = np.zeros((height, width, channels), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        grid = rng.random((max(2, n * height // width), n, channels), np.float32) - np.float32(0.5)
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        out += np.float32(0.55**octave) * field.reshape(out.shape)
    return out


def texture(rng: np.random.Generator, height: int, width: int) -> Image:
    """(height, width, 3) a made surface: plain, wood, cloth or a printed pattern."""
    base = rng.uniform(45, 225, 3).astype(np.float32)
    if rng.random() < 0.75:
        base = base.mean() + (base - base.mean()) * np.float32(0.3)
    blotches = noise(rng, height, width, cells=int(rng.integers(2, 6)), octaves=4)
    blotches = 0.75 * blotches.mean(-1, keepdims=True) + 0.25 * blotches
    image = base + blotches * rng.uniform(10, 70)
    style = rng.integers(4)
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    if style == 0:
        bent = yy + 18 * noise(rng, height, width, cells=2, octaves=2, channels=1)[..., 0]
        image += (np.sin(bent * rng.uniform(0.15, 0.5)) * rng.uniform(5, 16))[..., None]
    elif style == 1:
        step = rng.uniform(8, 40)
        check = ((xx // step) + (yy // step)) % 2 if rng.random() < 0.5 else (xx // step) % 2
        image += check[..., None] * (rng.uniform(-60, 60) + rng.uniform(-20, 20, 3)).astype(np.float32)
    elif style == 2:
        image = _print_shapes(rng, np.ascontiguousarray(image))
    return np.asarray(image.clip(0, 255), np.float32)


def surroundings(rng: np.random.Generator, camera: Camera, farther_m: float) -> tuple[Image, Image]:
    """A table under the hand, a wall behind it and some clutter that stands on the table.

    Args:
        rng: of this room.
        camera: which sees it.
        farther_m: wall and clutter stand farther away by this.

    Returns:
        (480, 640, 3) RGB and (480, 640) z in metres.
    """
    yy, xx = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    k = camera.intrinsics_px
    rays = np.stack([(xx - k[0, 2]) / k[0, 0], (yy - k[1, 2]) / k[1, 1], np.ones_like(xx)], -1)
    world = rays @ camera.rotation
    wall_z = rng.uniform(1.15, 1.8) + farther_m + (xx - WIDTH / 2) * rng.normal() * 2e-4
    with np.errstate(divide="ignore"):
        table_z = np.where(world[..., 2] < -1e-3, -camera.centre_m[2] / world[..., 2], np.inf)
    on_table = table_z < wall_z
    depth = np.where(on_table, table_z, wall_z).astype(np.float32)
    spot = camera.centre_m[:2] + world[..., :2] * depth[..., None]
    table, wall = texture(rng, 400, 400), texture(rng, HEIGHT, WIDTH)
    # The table's pattern is laid out back and forth, so that it has no seams.
    cell = 399 - np.abs((spot * 330.0).astype(np.int32) % 798 - 399)
    wall = wall * np.float32(rng.uniform(0.5, 1.0))
    rgb = np.where(on_table[..., None], table[cell[..., 1], cell[..., 0]], wall)
    for _ in range(rng.integers(1, 5)):
        _stand_clutter(rng, rgb, depth, NEAREST_UPRIGHT_M + farther_m)
    soft = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
    return np.asarray(soft, np.float32), depth


@dataclass(frozen=True)
class Person:
    """Who is filmed, with what they hold."""

    atlas: SkinAtlas
    sleeve_from_m: float | None
    """Where the sleeve begins behind the wrist; None: none."""
    cloth: Image
    """(96, 96, 3) of the sleeve."""
    held: Image
    """(128, 256, 3) of the object."""
    web: Web | None = None
    """Flesh between thumb and index finger; None: what the hand model has there."""

    @classmethod
    def of(cls, seed: int, motion: Motion) -> Person:
        """The person of a motion of the data set `seed`."""
        rng = stream(seed, "person", motion.number)
        atlas = skin_atlas(rng, motion.anatomy)
        sleeve_from_m = float(rng.uniform(0.02, 0.11)) if rng.random() < 0.6 else None
        cloth = texture(rng, 96, 96) * (1 + 0.2 * noise(rng, 96, 96, cells=24, octaves=1, channels=1))
        return cls(atlas, sleeve_from_m, cloth, texture(rng, 128, 256))


def skin_atlas(rng: np.random.Generator, anatomy: Anatomy) -> SkinAtlas:
    """Skin of one person: tone, mottling, knuckles, creases, nails."""
    plane = rest_coordinates(anatomy.vertices_m, anatomy)
    low = plane.min(0) - _ATLAS_MARGIN_M
    size = ((plane.max(0) + np.array([_ATLAS_ARM_M, _ATLAS_MARGIN_M]) - low) * ATLAS_PX_PER_M).astype(int)
    tone = rng.uniform(0, len(_SKIN_TONES) - 1.001)
    i = int(tone)
    colour = _SKIN_TONES[i] * (1 - tone + i) + _SKIN_TONES[i + 1] * (tone - i)
    blotches = noise(rng, size[0], size[1], cells=6, octaves=4, channels=2)
    mottle = blotches[..., :1] * _f32([0.10, 0.12, 0.12]) + blotches[..., 1:] * _f32([0.05, -0.03, -0.03])
    pores = np.float32(0.025) * rng.standard_normal((size[0], size[1], 1), np.float32)
    dark = float(np.clip((150.0 - colour.mean()) / 90.0, 0, 1))
    palm_colour = colour * np.float32(1.05 + 0.30 * dark) + _f32([10, 0, -2])
    back = colour * (1 + mottle + pores)
    palm = palm_colour * (1 + 0.8 * mottle + pores)
    places_m = dict(zip(MANO16, anatomy.joints_m, strict=True))
    places_m |= {f"{finger}_4": tip for finger, tip in anatomy.tips_m.items()}
    places = {name: place_on_atlas(p, anatomy, low) for name, p in places_m.items()}
    for finger in FINGERS:
        _draw_finger(rng, [places[f"{finger}_{k}"] for k in (1, 2, 3, 4)], back, palm, finger, colour)
    _draw_palm_lines(rng, places, palm)
    return SkinAtlas(back.clip(0, 255).astype(np.float32), palm.clip(0, 255).astype(np.float32), low)


def _draw_finger(
    rng: np.random.Generator, points: list[Array], back: Image, palm: Image, finger: str, colour: Image
) -> None:
    """Knuckle folds, joint creases, a rosy finger pad and a nail; `points` are its joints and its tip."""
    for k in (0, 1, 2):
        along = unit(points[k + 1] - points[k])
        if k:
            _glow(back, points[k], 0.008, _f32([0.90, 0.84, 0.84]))
            for shift in (-0.0022, 0.0, 0.0022):
                place = points[k] + along * (shift + rng.normal() * 0.0003) * ATLAS_PX_PER_M
                _stroke(back, place, along, 0.0055, 0.86, bow=rng.normal() * 0.2 + shift * 150)
        elif finger != "thumb":
            _glow(back, points[0], 0.010, _f32([0.97, 0.90, 0.90]))
        if finger != "thumb" or k:
            shift = 0.010 if k == 0 else 0.0
            for more, half, factor in ((0.0, 0.009, 0.80), (0.002, 0.008, 0.87)):
                place = points[k] + along * (shift + more) * ATLAS_PX_PER_M
                _stroke(palm, place, along, half, factor, bow=0.1)
    _glow(palm, points[3] - along * 0.008 * ATLAS_PX_PER_M, 0.008, _f32([1.07, 0.96, 0.97]))
    inwards = 0.0062 if finger != "thumb" else 0.0080
    _draw_nail(back, points[3] - along * inwards * ATLAS_PX_PER_M, along, finger, colour)


def _draw_nail(back: Image, centre: Array, along: Array, finger: str, colour: Image) -> None:
    """A lighter rounded plate with a pale rim and a thin dark fold around it."""
    long_m, wide_m = {"thumb": (0.0072, 0.0052), "pinky": (0.0048, 0.0036)}.get(finger, (0.0058, 0.0045))
    u, v, box = local_metres(back, centre, along, 0.014)
    inside = (np.abs(u) / long_m) ** 2.6 + (np.abs(v) / wide_m) ** 2.6
    plate = np.clip(1.6 - 1.6 * inside, 0, 1)[..., None]
    fold = np.exp(-(((inside - 1.15) / 0.22) ** 2))[..., None]
    bed = _f32([236, 190, 180]) * np.float32(0.42 + 0.58 * colour.mean() / 200)
    shade = bed * (1.0 + 0.10 * np.clip(u / long_m, -1, 1)[..., None])
    rim = np.clip((u / long_m - 0.70) * 8, 0, 1)[..., None]
    shade = shade * (1 - rim) + rim * (bed * np.float32(0.5) + np.float32(0.5) * _f32([240, 232, 222]))
    patch = back[box]
    back[box] = (patch * (1 - 0.22 * fold)) * (1 - 0.85 * plate) + shade * 0.85 * plate


def _draw_palm_lines(rng: np.random.Generator, places: dict[str, Array], palm: Image) -> None:
    """The thenar, the proximal and the distal crease."""
    names = ("index_1", "middle_1", "pinky_1", "wrist", "thumb_1")
    index, middle, pinky, wrist, thumb = (places[name] for name in names)
    lines = (
        (0.8 * index + 0.2 * thumb, 0.45 * middle + 0.25 * wrist + 0.3 * thumb, 0.85 * wrist + 0.15 * middle),
        (0.8 * index + 0.2 * thumb, 0.7 * middle + 0.3 * wrist, 0.65 * pinky + 0.35 * wrist),
        (0.5 * index + 0.5 * middle, 0.84 * middle + 0.16 * wrist, 0.9 * pinky + 0.1 * wrist),
    )
    mask = np.zeros(palm.shape[:2], np.float32)
    t = np.linspace(0, 1, 24)[:, None]
    for a, b, c in lines:
        pull = 2 * b - 0.5 * (a + c)
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * pull + t**2 * c + rng.normal(size=2) * 1.5
        cv2.polylines(mask, [np.round(curve[:, ::-1] * 8).astype(np.int32)], False, 1.0, 2, cv2.LINE_AA, 3)
    palm *= 1 - np.float32(0.26) * cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None]


def _f32(values: list[float]) -> Image:
    """A short float32 array."""
    return np.array(values, np.float32)


def local_metres(image: Image, centre: Array, along: Array, reach_m: float) -> tuple[Array, Array, Window]:
    """Metres along and across a direction around `centre`, and the window of the atlas that they cover."""
    reach = int(reach_m * ATLAS_PX_PER_M)
    low = np.maximum(np.round(centre).astype(int) - reach, 0)
    high = np.minimum(np.round(centre).astype(int) + reach + 1, image.shape[:2])
    rr, cc = np.mgrid[low[0] : high[0], low[1] : high[1]]
    d = (np.stack([rr, cc], -1) - centre) / ATLAS_PX_PER_M
    return d @ along, d @ np.array([-along[1], along[0]]), (slice(low[0], high[0]), slice(low[1], high[1]))


def _glow(image: Image, centre: Array, radius_m: float, factor: Image) -> None:
    """Tint a soft round spot."""
    u, v, box = local_metres(image, centre, np.array([1.0, 0.0]), 2.5 * radius_m)
    share = np.exp(-(u**2 + v**2) / radius_m**2)[..., None]
    image[box] *= (1 + share * (factor - 1)).astype(np.float32)


def _stroke(image: Image, centre: Array, along: Array, half_m: float, factor: float, *, bow: float) -> None:
    """Darken a short line across a finger, bowed along it."""
    u, v, box = local_metres(image, centre, along, half_m + 0.003)
    line = np.exp(-(((u - bow * v * v / half_m) / 0.0006) ** 2)) * np.clip(2 - 2 * np.abs(v) / half_m, 0, 1)
    image[box] *= (1 - line * (1 - np.float32(factor))).astype(np.float32)[..., None]


def _print_shapes(rng: np.random.Generator, image: Image) -> Image:
    """Random polygons, discs and lines in random colours."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(4, 16)):
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        points = (rng.random((int(rng.integers(3, 6)), 2)) * [width, height]).astype(np.int32)
        shape = rng.integers(3)
        centre = tuple(int(c) for c in points[0])
        if shape == 0:
            near = points[0] + (points - points[0]) * rng.uniform(0.1, 0.5)
            cv2.fillPoly(image, [near.astype(np.int32)], colour, cv2.LINE_AA)
        elif shape == 1:
            cv2.circle(image, centre, int(rng.uniform(0.03, 0.15) * width), colour, -1, cv2.LINE_AA)
        else:
            end = tuple(int(c) for c in points[1])
            cv2.line(image, centre, end, colour, int(rng.integers(2, 9)), cv2.LINE_AA)
    return image


def _stand_clutter(rng: np.random.Generator, rgb: Image, depth_m: Image, nearest_m: float) -> None:
    """Paint an upright box whose foot stands on what is there, `nearest_m` away or farther."""
    x, y = int(rng.integers(0, WIDTH - 60)), int(rng.integers(0, HEIGHT - 60))
    w, h = int(rng.integers(40, 170)), int(rng.integers(40, 170))
    window = (slice(y, min(y + h, HEIGHT)), slice(x, min(x + w, WIDTH)))
    foot = depth_m[window][-1].min()
    if foot < nearest_m:
        return
    rgb[window] = texture(rng, 64, 64)[:1, :1] + texture(rng, *depth_m[window].shape) * 0.3
    depth_m[window] = np.minimum(depth_m[window], foot)
