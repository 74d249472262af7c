"""One motion over time: articulation, wrist and object, in the world of a table (scene/cameras.py has its
axes).

A motion either grasps an object (in segments, each with its own grip, the object taken away in between) or
gestures over an object that lies on the table. Frame numbers are time; all curves are smooth in it, but for
changes of grip that fall between frames far apart.

Wrist orientations: a person's right forearm reaching over a table, with yaw, pitch, roll (palm down to palm
up) and the wrist's own bending; seen by the cameras of scene/cameras.py.

How hard it is (stand-in hand, seed 0, 100 training and 20 held-out motions x 20 frames x 3 cameras):
wrist rotation in the camera 59 degrees from its mean on average (median 57, 95 % below 103, largest 156);
mean of the root-relative joints as predictor 78 mm MPJPE (zero pose 106 mm); mean pose 14.5 mm PA-MPJPE;
nearest training pose 7.6 mm PA-MPJPE. Hand 0.39-0.83 m from the camera, 120 pixels large (5-95 %: 80-178),
all joints in the picture. Skin enters the held object by at most 4 mm (1st percentile of frames 3.8 mm).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from dataloader.synthetic.common import Array, Index
from dataloader.synthetic.motion.grasp import clear_thumb, close_on_object, open_and_target, place_object
from dataloader.synthetic.motion.objects import HeldObject, draw_object
from dataloader.synthetic.motion.pose import DOF, gesture_path, limit, local_rotations, smooth_noise
from dataloader.synthetic.motion.rig import Anatomy, Rig
from src.runtime.seed import stream

_SEGMENT_FRAMES = 80
"""Frames between two grips."""

_TRANSITION_FRAMES = 12.0
"""A grip is opened, or taken, within about this many frames."""

_BETWEEN_FRAMES = 1e-3
"""The same, where frames are farther apart: they show no change of grip."""

_NEAR_TABLE_M = (0.005, 0.15)
"""How far above the table what is lowest stands in a motion near the table."""

_FOREARM_M = 0.3
_ARM_RADIUS_M = 0.06
"""The forearm stays above the table this far behind the wrist."""

_CLEAR_M = 0.005
"""Between a hand and what lies on the table."""

_EXCURSION_M = 0.065
"""The hand stays within this distance of the point that the cameras look at, along each axis."""


@dataclass(frozen=True)
class Habits:
    """What the motions of a domain are drawn from. Angles are yaw, pitch and roll of the forearm, degrees."""

    gestures: float
    """Share of motions without contact."""
    free_gestures: float
    """Share of their key postures whose fingers bend each on its own."""
    height_m: tuple[float, float]
    """Of the hand above the table."""
    near_table: float
    """Share of motions that are set just above it instead, as low as hand, forearm and what is held allow."""
    turn_mean_deg: tuple[float, float, float]
    turn_between_deg: tuple[float, float, float]
    """Standard deviation between motions."""
    turn_within_deg: tuple[float, float, float]
    """Standard deviation within a motion."""
    turn_low_deg: tuple[float, float, float]
    turn_high_deg: tuple[float, float, float]
    object_size: tuple[float, float]
    """Factors on what is held, drawn uniformly in their logarithm."""
    pace: int
    """Every how many frames of the motion one is written; what lies between is never drawn."""


@dataclass(frozen=True)
class Motion:
    """Everything that all cameras of a motion share; N frames, world frame, metres."""

    number: int
    frame_ids: Index
    """(N,) ascending; gaps where frames were dropped."""
    betas: Array
    """(10,)."""
    anatomy: Anatomy
    """Of the hand at rest with these betas."""
    hand_pose: Array
    """(N, 15, 3, 3) MANO16 order."""
    angles_deg: Array
    """(N, 21) the same as degrees of freedom."""
    wrist_rotation: Array
    """(N, 3, 3) world from MANO's rest frame."""
    wrist_m: Array
    """(N, 3)."""
    elbow_direction: Array
    """(N, 3) unit vector from the wrist to the elbow."""
    vertices_m: Array
    """(N, V, 3) of `Rig.decode`: the wrist's rotation and translation zero, MANO's rest frame."""
    joints_m: Array
    """(N, 21, 3) the same, HO3D21 order."""
    held: HeldObject
    object_rotation: Array
    """(N, 3, 3)."""
    object_m: Array
    """(N, 3) centre."""
    target_m: Array
    """(3,) where the cameras look."""
    grasps: bool
    """Whether the object is in the hand; otherwise it lies on the table."""

    def in_world(self, points_m: Array) -> Array:
        """(N, ..., 3) vertices or joints as this class holds them -> world frame."""
        turned = (points_m - self.anatomy.joints_m[0]) @ np.swapaxes(self.wrist_rotation, 1, 2)
        return np.asarray(turned + self.wrist_m[:, None])

    def skin_m(self) -> Array:
        """(N, V, 3) vertices of the hand, world frame."""
        return self.in_world(self.vertices_m)

    def hand_and_held_m(self) -> Array:
        """(N, P, 3) vertices of the hand and of what it holds, world frame."""
        if not self.grasps:
            return self.skin_m()
        held = self.held.mesh()[0] @ np.swapaxes(self.object_rotation, 1, 2) + self.object_m[:, None]
        return np.concatenate([self.skin_m(), held], axis=1)

    def forearm_m(self, behind_m: float) -> Array:
        """(N, 3) the middle of the forearm so far behind the wrist, world frame."""
        return self.wrist_m + behind_m * self.elbow_direction


def make_motion(rig: Rig, habits: Habits, seed: int, number: int, frames: int) -> Motion:
    """Draw motion `number` of the data set `seed`."""
    rng = stream(seed, "motion", number)
    ids = _frame_ids(rng, frames) * habits.pace
    times = ids.astype(np.float64)
    betas = rng.normal(size=10).clip(-2, 2)
    anatomy = rig.anatomy(betas)
    size = np.exp(stream(seed, "object size", number).uniform(*np.log(habits.object_size)))
    held = draw_object(rng, float(size))
    target = np.array([0.0, 0.0, rng.uniform(*habits.height_m)])
    rotation, elbow = _wrist_path(rng, times, anatomy, habits)
    middle = 0.55 * anatomy.joints_m[4] + 0.45 * anatomy.joints_m[5] - 0.012 * anatomy.dorsal
    path = target + _EXCURSION_M * np.tanh(smooth_noise(rng, times, 3, 24.0) * 0.55)
    wrist = path - rotation @ (middle - anatomy.joints_m[0])

    grasp = None
    if rng.random() >= habits.gestures:
        grasp = _grasping(rng, times, held, betas, anatomy, rig, habits)
    if grasp is not None:
        angles, rotation_in_hand, offset = grasp
        object_rotation = rotation @ rotation_in_hand
        object_m = wrist + np.einsum("nab,nb->na", rotation, offset - anatomy.joints_m[0])
    else:
        angles = clear_thumb(gesture_path(rng, times, habits.free_gestures), anatomy, habits.pace)
        object_rotation, object_m = _on_the_table(rng, held, len(times))
    hand_pose = local_rotations(angles, anatomy)
    vertices, joints = rig.decode(hand_pose, betas)
    motion = Motion(
        number=number,
        frame_ids=ids,
        betas=betas,
        anatomy=anatomy,
        hand_pose=hand_pose,
        angles_deg=angles,
        wrist_rotation=rotation,
        wrist_m=wrist,
        elbow_direction=elbow,
        vertices_m=vertices,
        joints_m=joints,
        held=held,
        object_rotation=object_rotation,
        object_m=object_m,
        target_m=target,
        grasps=grasp is not None,
    )
    low = stream(seed, "near the table", number)
    return _lowered(low, motion) if low.random() < habits.near_table else motion


def _lowered(rng: np.random.Generator, motion: Motion) -> Motion:
    """The same motion just above the table; what lies there makes room."""
    arm = motion.forearm_m(_FOREARM_M)[:, 2].min() - _ARM_RADIUS_M
    lowest = min(motion.hand_and_held_m()[..., 2].min(), arm)
    above = np.exp(rng.uniform(*np.log(_NEAR_TABLE_M)))
    move = np.array([0.0, 0.0, above - lowest])
    object_m = motion.object_m + move if motion.grasps else motion.object_m
    low = dataclasses.replace(
        motion, wrist_m=motion.wrist_m + move, target_m=motion.target_m + move, object_m=object_m
    )
    return low if motion.grasps else dataclasses.replace(low, object_m=_clear_of(low))


def _clear_of(motion: Motion) -> Array:
    """(N, 3) centre of an object on the table, moved aside until no skin touches it."""
    skin, turn, centre = motion.skin_m().reshape(-1, 3), motion.object_rotation[0], motion.object_m[0]
    while motion.held.distance((skin - centre) @ turn).min() < _CLEAR_M:
        centre = centre * [1.1, 1.1, 1.0]
    return np.repeat(centre[None], len(motion.object_m), axis=0)


def _frame_ids(rng: np.random.Generator, frames: int) -> Index:
    """(N,) 0, 1, 2, ...; now and then a few numbers are left out, as in HO3D_v3."""
    steps = 1 + np.where(rng.random(frames) < 0.04, rng.integers(1, 6, frames), 0)
    return np.asarray(np.cumsum(steps) - steps[0])


def _wrist_path(
    rng: np.random.Generator, times: Array, anatomy: Anatomy, habits: Habits
) -> tuple[Array, Array]:
    """Rotations (N, 3, 3) of the hand and directions (N, 3) to the elbow."""
    rest = np.stack([anatomy.distal, anatomy.dorsal, anatomy.radial])
    world = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    flat_forward = world.T @ rest
    bend = np.stack([14.0 * rng.normal() + 11.0 * smooth_noise(rng, times, 1, 22.0)[:, 0],
                     5.0 * rng.normal() + 4.0 * smooth_noise(rng, times, 1, 22.0)[:, 0]], 1)  # fmt: skip
    wrist = Rotation.from_euler("xz", bend.clip([-60, -20], [55, 25]), degrees=True)
    mean, between, within = (
        np.array(turns) for turns in (habits.turn_mean_deg, habits.turn_between_deg, habits.turn_within_deg)
    )
    angles = mean + between * rng.normal(size=3) + within * smooth_noise(rng, times, 3, 24.0)
    angles = angles.clip(habits.turn_low_deg, habits.turn_high_deg)
    forearm = Rotation.from_euler("ZXY", angles, degrees=True)
    hand = forearm * wrist
    return hand.as_matrix() @ flat_forward, -forearm.as_matrix()[:, :, 1]


def _grasping(
    rng: np.random.Generator,
    times: Array,
    held: HeldObject,
    betas: Array,
    anatomy: Anatomy,
    rig: Rig,
    habits: Habits,
) -> tuple[Array, Array, Array] | None:
    """Angles (N, 21) and the object in the hand, rotation (N, 3, 3), offset (N, 3); None if the hand is too
    small."""
    count = max(1, round((times[-1] + 1) / _SEGMENT_FRAMES))
    edges = np.linspace(0, times[-1] + 1, count + 1)
    grips = []
    for _ in range(count):
        for _ in range(6):
            start, end = open_and_target(rng)
            wobble = 3.0 * rng.normal(size=(4, len(DOF)))
            postures = local_rotations(limit(np.vstack([start, start + wobble])), anatomy)
            skin = rig.decode(postures, betas)[0].reshape(-1, 3)
            placement = place_object(rng, held, anatomy, skin)
            if placement is not None:
                break
        else:
            return None
        grips.append((start, end, *placement))
    opens, targets, rotations, offsets = (np.stack(values) for values in zip(*grips, strict=True))
    centre = 0.5 * (edges[:-1] + edges[1:])
    lasts = _TRANSITION_FRAMES if habits.pace < _TRANSITION_FRAMES else _BETWEEN_FRAMES
    open_deg = limit(_blend(centre, opens, times, lasts))
    target_deg = limit(_blend(centre, targets, times, lasts) + 7.0 * smooth_noise(rng, times, len(DOF), 18.0))
    rotation, offset = _turn(centre, rotations, times, lasts), _blend(centre, offsets, times, lasts)
    # Away from the hand, and the hand open, around each change of grip.
    change = np.abs(times[:, None] - edges[1:-1]).min(1, initial=np.inf)
    away = np.exp(-((change / lasts) ** 2))
    offset = offset - 0.09 * away[:, None] * anatomy.dorsal + 0.05 * away[:, None] * anatomy.distal
    will = 1.3 + 1.1 * smooth_noise(rng, times, 1, 26.0) + 0.35 * smooth_noise(rng, times, 5, 16.0)
    wish = will.clip(0, 1) * (1.0 - away[:, None])
    angles = close_on_object(open_deg, target_deg, wish, held, rotation, offset, anatomy, habits.pace)
    return angles, rotation, offset


def _blend(centres: Array, values: Array, times: Array, lasts: float) -> Array:
    """(N, D) values (K, D) at the segments' centres; changes between them last about `lasts` frames."""
    out = np.repeat(values[:1], len(times), axis=0)
    for k in range(1, len(values)):
        middle = 0.5 * (centres[k - 1] + centres[k])
        share = 0.5 + 0.5 * np.tanh((times - middle) / (0.35 * lasts))
        out = out + share[:, None] * (values[k] - values[k - 1])
    return out


def _turn(centres: Array, rotations: Array, times: Array, lasts: float) -> Array:
    """(N, 3, 3) rotations (K, 3, 3) at the segments' centres, turning between them as `_blend` changes."""
    count = len(rotations)
    if count == 1:
        return np.repeat(rotations, len(times), axis=0)
    order = _blend(centres, np.arange(count, dtype=np.float64)[:, None], times, lasts)[:, 0]
    path = Slerp(np.arange(count), Rotation.from_matrix(rotations))
    return np.asarray(path(order.clip(0, count - 1)).as_matrix())


def _on_the_table(rng: np.random.Generator, held: HeldObject, frames: int) -> tuple[Array, Array]:
    """An object lying still on the table, a hand's breadth aside."""
    angle = rng.uniform(0, 2 * np.pi)
    place = rng.uniform(0.05, 0.17) * np.array([np.cos(angle), np.sin(angle)])
    standing = held.kind in ("mug", "ball") or rng.random() < 0.3
    tilt = Rotation.from_euler("zx", [rng.uniform(0, 360), 0.0 if standing else 90.0], degrees=True)
    centre = np.array([*place, held.half_m[2 if standing else 1]])
    return np.repeat(tilt.as_matrix()[None], frames, axis=0), np.repeat(centre[None], frames, axis=0)
