"""One frame as one camera sees it: hand, forearm, object and surroundings, shaded, with depth.

Frame: OpenCV camera, metres. `Stage` holds what stays the same while one camera films one motion.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dataloader.synthetic.common import Array, Image, Index, smooth_step, unit
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.motion.rig import Anatomy, Rig
from dataloader.synthetic.scene.appearance import (
    Person,
    Window,
    rest_coordinates,
    surroundings,
)
from dataloader.synthetic.scene.cameras import HEIGHT, MORE_PX, WIDTH, Camera, any_part
from dataloader.synthetic.scene.look import Look
from dataloader.synthetic.scene.web import web_backness, web_faces
from src.hand.joints import MANO16
from src.render.rasterizer import Fragments, rasterize
from src.runtime.seed import stream

_HAND, _OBJECT, _FOREARM, _SLEEVE, _WEB = range(1, 6)
"""Labels of what is drawn; 0 is the room."""

_ARM_M = np.array([0.006, 0.014, 0.024, 0.036, 0.052, 0.075, 0.11, 0.16, 0.22, 0.30, 0.46, 0.461])
"""Distances of the forearm's rings from the wrist's edge; it leaves the picture, the last ring closes it."""

_ARM_WIDER = np.array([0.0] * 11 + [-1.4])
_SLEEVE_RINGS = 5
_SLEEVE_WIDER = np.full(_SLEEVE_RINGS, 0.16)


class Stage:
    """One camera's view of one motion: draws its frames."""

    def __init__(
        self, rig: Rig, motion: Motion, person: Person, camera: Camera, look: Look, seed: int, digit: int
    ) -> None:
        """Draw the looks of the room and its light; the person is the same for all cameras of a motion."""
        self._rig, self._motion, self._camera, self._look = rig, motion, camera, look
        self._seed, self._digit, self.jpeg_quality = seed, digit, look.jpeg_quality
        rng = stream(seed, "stage", motion.number, digit)
        self._atlas, self._sleeve_from_m = person.atlas, person.sleeve_from_m
        self._web, self._joints_cam_m = person.web, camera.to_camera(motion.in_world(motion.joints_m))
        self._textures = {_SLEEVE: person.cloth, _OBJECT: person.held}
        self._draw_light(rng)
        room, self._room_depth = surroundings(rng, camera, look.farther_m)
        look.furnish(room, self._room_depth)
        self._room = (room * self._tone).clip(0, 255).astype(np.uint8)
        self._sensor = look.sensor(rng)
        self._build_mesh()

    def _draw_light(self, rng: np.random.Generator) -> None:
        """Random light of the room, tone and grain of the camera."""
        light = self._look.lamp(rng)
        size = (HEIGHT + MORE_PX, WIDTH + MORE_PX, 1)
        grain = rng.standard_normal(size, np.float32) * np.float32(rng.uniform(1.2, 4.5))
        tint = 1.0 + rng.normal(size=3) * 0.05
        self._light = (light / np.linalg.norm(light)).astype(np.float32)
        self._ambient, self._gloss = rng.uniform(0.34, 0.62), rng.uniform(0.0, 0.14)
        self._tone = (tint * rng.uniform(0.75, 1.1)).astype(np.float32)
        self._blur = rng.uniform(0.5, 0.9)
        self._grain = np.repeat(grain.round().clip(-40, 40).astype(np.int16), 3, axis=2)

    def _build_mesh(self) -> None:
        """Faces, labels and the attributes that never change.

        Attributes a, b: atlas coordinates of skin, texture coordinates of cloth and object; c: how far skin
        looks to the back.
        """
        loop, anatomy = self._rig.wrist_loop, self._motion.anatomy
        skin = np.column_stack([rest_coordinates(anatomy.vertices_m, anatomy), _backness(self._rig, anatomy)])
        arm = np.tile(skin[loop], (len(_ARM_M), 1))
        arm[:, 0] += np.repeat(_ARM_M, len(loop))
        count = len(skin) + len(arm)
        rings = np.arange(len(skin), count).reshape(len(_ARM_M), -1)
        parts = [(_HAND, self._rig.faces, skin), (_FOREARM, _tube(np.vstack([loop, rings])), arm)]
        if self._sleeve_from_m is not None:
            around, along = np.meshgrid(np.linspace(0, 1, len(loop)), np.linspace(0, 1, _SLEEVE_RINGS))
            cloth = np.stack([np.abs(2 * around - 1), along, 0 * along], -1).reshape(-1, 3)
            rings = np.arange(count, count + len(cloth)).reshape(_SLEEVE_RINGS, -1)
            parts.append((_SLEEVE, _tube(rings), cloth))
            count += len(cloth)
        if self._web is not None:
            web = rest_coordinates(self._web.points_m(anatomy.joints_m), anatomy)
            parts.append((_WEB, count + web_faces(), np.column_stack([web, web_backness()])))
            count += len(web)
        self._object_vertices, object_faces, uv = self._motion.held.mesh()
        parts.append((_OBJECT, count + object_faces, np.column_stack([uv, np.zeros(len(uv))])))
        self._label = np.concatenate([np.full(len(faces), label, np.uint8) for label, faces, _ in parts])
        self._faces = np.concatenate([faces for _, faces, _ in parts])
        self._static = np.concatenate([static for _, _, static in parts]).astype(np.float32)
        corner = self._faces.ravel()
        self._gather = csr_matrix(
            (np.ones(len(corner)), (corner, np.repeat(np.arange(len(self._faces)), 3))),
            (len(self._static), len(self._faces)),
        )

    def draw(self, row: int, hand_vertices_cam_m: Array) -> tuple[NDArray[np.uint8], Image]:
        """Draw frame `row` of the motion.

        Args:
            row: 0-based.
            hand_vertices_cam_m: (778, 3) of this frame, this camera.

        Returns:
            (480, 640, 3) RGB and (480, 640) measured z, metres, 0 where nothing came back.
        """
        camera, motion = self._camera, self._motion
        rng = stream(self._seed, "frame", motion.number, self._digit, int(motion.frame_ids[row]))
        held = camera.to_camera(self._object_vertices @ motion.object_rotation[row].T + motion.object_m[row])
        web = [] if self._web is None else [self._web.points_m(self._joints_cam_m[row])]
        vertices = np.concatenate([hand_vertices_cam_m, *self._arm(row, hand_vertices_cam_m), *web, held])
        k, one_sided = camera.intrinsics_px, self._label == _HAND
        seen = rasterize(vertices, self._faces, k, WIDTH, HEIGHT, near_m=0.08, one_sided=one_sided)
        front = seen.depth_m < self._room_depth.ravel()[seen.pixel]
        seen = Fragments(
            seen.pixel[front], seen.triangle[front], seen.barycentric[front], seen.depth_m[front]
        )
        label = self._label[seen.triangle]
        depth, cosine = self._room_depth.copy(), np.ones((HEIGHT, WIDTH), np.float32)
        drawn = np.zeros((HEIGHT, WIDTH), np.float32)
        depth.ravel()[seen.pixel], drawn.ravel()[seen.pixel] = seen.depth_m, 1
        normal, view, static = self._surface(seen, vertices)
        cosine.ravel()[seen.pixel] = np.einsum("pi,pi->p", normal, view)
        box = _box_around(seen.pixel)
        occluded = _crevices(depth, drawn, box).ravel()[seen.pixel]
        colour = self._shade(self._albedo(label, static), normal, view, occluded)
        rgb = self._room.copy()
        rgb.reshape(-1, 3)[seen.pixel] = colour.clip(0, 255)
        rgb = self._lens(rng, rgb, box)
        measured = self._sensor.measure(rng, depth, cosine)
        self._look.align(rgb, measured)
        return rgb, measured

    def _arm(self, row: int, hand: Array) -> list[Array]:
        """Rings of the forearm and the sleeve: the wrist's edge carried along a curve towards the elbow."""
        loop = hand[self._rig.wrist_loop]
        start = self._camera.rotation @ self._motion.wrist_rotation[row] @ -self._motion.anatomy.distal
        elbow = self._camera.rotation @ self._motion.elbow_direction[row]
        rings = [_carry(loop, start, elbow, _ARM_M, _ARM_WIDER)]
        if self._sleeve_from_m is not None:
            cuff = np.linspace(self._sleeve_from_m, _ARM_M[-1] + 0.01, _SLEEVE_RINGS)
            rings.append(_carry(loop, start, elbow, cuff, _SLEEVE_WIDER))
        return rings

    def _surface(self, seen: Fragments, vertices: Array) -> tuple[Image, Image, Image]:
        """(P, 3) unit normal, (P, 3) unit direction to the camera, (P, 3) static attributes at the pixels."""
        corners = vertices[self._faces]
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        face_normal = a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]
        packed = np.concatenate([(self._gather @ face_normal).astype(np.float32), self._static], 1)
        packed[:, :3] /= np.linalg.norm(packed[:, :3], axis=1, keepdims=True) + np.float32(1e-20)
        index, weight = self._faces[seen.triangle], seen.barycentric
        mixed = packed[index[:, 0]] * weight[:, :1]
        mixed += packed[index[:, 1]] * weight[:, 1:2]
        mixed += packed[index[:, 2]] * weight[:, 2:]
        normal = _unit_rows(mixed[:, :3])
        k = self._camera.intrinsics_px
        y, x = np.divmod(seen.pixel, WIDTH)
        view = np.stack([(k[0, 2] - x) / k[0, 0], (k[1, 2] - y) / k[1, 1], np.full(len(x), -1.0)], 1)
        view = _unit_rows(view.astype(np.float32))
        # A normal looks to the side from which its triangle is seen; smoothing may carry it beyond the
        # silhouette.
        seen_from_behind = np.einsum("pi,pi->p", face_normal.astype(np.float32)[seen.triangle], view) < 0
        normal[seen_from_behind] *= -1
        facing = np.einsum("pi,pi->p", normal, view)
        normal -= np.minimum(facing - np.float32(0.02), 0)[:, None] * view
        normal = _unit_rows(normal)
        return normal, view, mixed[:, 3:]

    def _albedo(self, label: NDArray[np.uint8], static: Image) -> Image:
        """(P, 3) colour before light."""
        colour = np.empty((len(label), 3), np.float32)
        skin = np.isin(label, (_HAND, _FOREARM, _WEB))
        colour[skin] = self._atlas.sample(static[skin, :2], static[skin, 2])
        for part, picture in self._textures.items():
            h, w = picture.shape[:2]
            x, y = (static[label == part, :2] % 1.0).T
            colour[label == part] = picture[(y * (h - 1)).astype(int), (x * (w - 1)).astype(int)]
        return colour

    def _shade(self, albedo: Image, normal: Image, view: Image, occluded: Image) -> Image:
        """(P, 3) lit colour: soft sky, one lamp with wrapped falloff, a little gloss, darker crevices."""
        lamp = normal @ self._light
        diffuse = ((lamp + np.float32(0.2)) / np.float32(1.2)).clip(0)
        sky = np.float32(0.72) + np.float32(0.28) * (normal @ self._look.up)
        half = _unit_rows(self._light + view)
        gloss = np.einsum("pi,pi->p", normal, half).clip(0) ** 24
        open_sky = 1 - occluded
        strength = self._ambient * sky * open_sky
        strength += (1.12 - self._ambient) * diffuse * (1 - 0.6 * occluded)
        shine = np.float32(255 * self._gloss) * gloss * open_sky
        return np.asarray((albedo * strength[:, None] + shine[:, None]) * self._tone, np.float32)

    def _lens(self, rng: np.random.Generator, rgb: NDArray[np.uint8], box: Window) -> NDArray[np.uint8]:
        """Soft edges around what was drawn, and sensor grain."""
        rgb[box] = cv2.GaussianBlur(rgb[box], (0, 0), self._blur)
        grainy = cv2.add(rgb, any_part(rng, self._grain), dtype=cv2.CV_8U)
        return self._look.lens(rng, np.asarray(grainy, np.uint8))


def _carry(loop: Array, start: Array, elbow: Array, distances: Array, wider: Array) -> Array:
    """(R * b, 3) copies of the wrist's edge along a curve that leaves along `start` and bends towards
    `elbow`."""
    centre = loop.mean(0)
    fine = np.linspace(0, distances[-1], 40)
    share = smooth_step(fine / 0.05)
    direction = (1 - share)[:, None] * start + share[:, None] * elbow
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(direction[:-1] * np.diff(fine)[:, None], axis=0)])
    at, towards = (
        np.stack([np.interp(distances, fine, curve[:, i]) for i in range(3)], axis=1)
        for curve in (path, direction)
    )
    grown = 1.0 + 0.42 * smooth_step(distances / 0.20) + wider
    turns = [_smallest_rotation(start, unit(way)) for way in towards]
    rings = [
        centre + place + ((loop - centre) @ turn.T) * size
        for place, turn, size in zip(at, turns, grown, strict=True)
    ]
    return np.concatenate(rings)


def _smallest_rotation(source: Array, target: Array) -> Array:
    """(3, 3) rotation that takes one unit vector to another less than a half turn away."""
    (ax, ay, az), (bx, by, bz) = source.tolist(), target.tolist()
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + skew + skew @ skew / max(1.0 + float(source @ target), 1e-6))


def _tube(numbers: Index) -> Index:
    """Faces between neighbouring rings of vertices (R, b)."""
    b, a = numbers[:-1], np.roll(numbers[:-1], -1, axis=1)
    d, c = numbers[1:], np.roll(numbers[1:], -1, axis=1)
    return np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])


def _backness(rig: Rig, anatomy: Anatomy) -> Image:
    """(V,) 1 on the back of the hand and the nail's side of the thumb, 0 on the palm, between them on the
    edges."""
    corners = anatomy.vertices_m[rig.faces]
    face_normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = np.zeros_like(anatomy.vertices_m)
    np.add.at(normal, rig.faces.ravel(), np.repeat(face_normal, 3, axis=0))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    thumb = np.isin(rig.owner, [MANO16.index(f"thumb_{k}") for k in (2, 3)])
    up = np.where(thumb, normal @ -anatomy.thumb_pad, normal @ anatomy.dorsal)
    return np.clip(0.5 + 1.6 * up, 0, 1).astype(np.float32)


def _crevices(depth: Image, drawn: Image, box: Window) -> Image:
    """(480, 640) in [0, 0.5]: how far a surface lies behind its neighbourhood, at two sizes, inside `box`."""
    here, drawn = depth[box], drawn[box]
    near = here * drawn
    out = np.zeros_like(depth)
    for size in (9, 25):
        share = cv2.blur(drawn, (size, size))
        mean = cv2.blur(near, (size, size)) / np.maximum(share, np.float32(1e-3))
        behind = (here - mean - np.float32(0.002)) / np.float32(0.0008 * size + 0.008)
        out[box] += behind.clip(0, 1) * np.float32(0.25)
    return out


def _unit_rows(vectors: Image) -> Image:
    """(P, 3) rows of length one."""
    length = np.sqrt(np.einsum("pi,pi->p", vectors, vectors) + np.float32(1e-20))
    return np.asarray(vectors / length[:, None])


def _box_around(pixel: Index) -> Window:
    """Rows and columns that hold these pixels, with a margin."""
    columns = pixel % WIDTH
    top, bottom = int(pixel[0] // WIDTH), int(pixel[-1] // WIDTH)
    return slice(max(top - 4, 0), bottom + 5), slice(max(int(columns.min()) - 4, 0), int(columns.max()) + 5)
