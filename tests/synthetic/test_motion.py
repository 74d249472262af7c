"""Hands move like hands: limits, variety, grips without penetration, and a spread of views that is stated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dataloader.synthetic.frames import annotations, place_in_camera
from dataloader.synthetic.motion.motion import Motion, make_motion
from dataloader.synthetic.motion.objects import KINDS, HeldObject
from dataloader.synthetic.motion.pose import (
    DOF,
    GESTURES,
    LIMITS_DEG,
    limit,
    local_rotations,
    posture,
    random_gesture,
)
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, cameras_around
from src.hand.joints import HO3D21

FRAMES = 6


@pytest.fixture(scope="module")
def motions(rig: Rig) -> list[Motion]:
    """Forty motions at a table."""
    return [make_motion(rig, 0, k, FRAMES, orientations="table", gaps=True) for k in range(40)]


@pytest.mark.parametrize(
    ("first", "second", "most"),
    [("middle", "ring", 58.0), ("ring", "pinky", 58.0), ("middle", "index", 85.0)],
)
def test_neighbours_share_what_they_may_not_bend_apart(first: str, second: str, most: float) -> None:
    """Tendons join the fingers: both give way by half of what is too much, one bent or the other."""
    for bent, straight in ((first, second), (second, first)):
        angles = np.full(len(DOF), 45.0)
        angles[DOF.index(f"{bent}_mcp")], angles[DOF.index(f"{straight}_mcp")] = 90.0, 0.0
        others = [f"{f}_mcp" for f in ("index", "middle", "ring", "pinky") if f not in (first, second)]
        found = limit(angles)
        half = (90.0 - most) / 2
        assert found[DOF.index(f"{bent}_mcp")] == pytest.approx(90.0 - half)
        assert found[DOF.index(f"{straight}_mcp")] == pytest.approx(half)
        assert [found[DOF.index(name)] for name in others] == [45.0, 45.0]


def test_joint_limits(motions: list[Motion]) -> None:
    """No frame bends a finger where fingers do not bend."""
    low, high = LIMITS_DEG.T
    for motion in motions:
        assert (motion.angles_deg >= low - 1e-9).all()
        assert (motion.angles_deg <= high + 1e-9).all()


def test_positive_flexion_closes_the_hand(rig: Rig) -> None:
    """Signs of the axes: a fist brings the finger tips to the palm's side, the thumb's tip in front of it."""
    anatomy = rig.anatomy(np.zeros(10))
    fist = local_rotations(limit(posture(GESTURES["fist"])), anatomy)
    joints = rig.decode(fist[None], np.zeros(10))[1][0]
    for tip in joints[17:21]:  # index, middle, ring, pinky
        assert (tip - anatomy.joints_m[4]) @ -anatomy.dorsal > 0.01
        assert np.linalg.norm(tip - anatomy.joints_m[0]) < 0.09
    assert (joints[16] - anatomy.joints_m[1]) @ -anatomy.dorsal > 0.01


def test_each_angle_moves_its_fingertip_the_way_it_says(rig: Rig) -> None:
    """Gestures are tables of these angles: with one sign turned, every gesture that uses it is another."""
    anatomy = rig.anatomy(np.zeros(10))
    flat = posture(GESTURES["flat"])

    def tip(angles: np.ndarray, finger: str) -> np.ndarray:
        joints = rig.decode(local_rotations(angles, anatomy)[None], np.zeros(10))[1][0]
        return joints[HO3D21.index(f"{finger}_4")] - joints[0]

    palmar, radial, distal = -anatomy.dorsal, anatomy.radial, anatomy.distal
    for name in DOF:
        finger, what = name.split("_")
        bent = flat.copy()
        bent[DOF.index(name)] += 10.0
        moved = tip(bent, finger) - tip(flat, finger)
        # Fingers bend to the palm and swing to the thumb's side; the thumb bends to the palm's middle, is
        # opposed in front of it, and swings up along the index finger.
        ways = {"mcp": palmar, "pip": palmar, "dip": palmar, "abd": radial}
        if finger == "thumb":
            across = palmar - radial
            ways = {"opp": palmar, "abd": distal - radial, "cmc": across, "mcp": across, "ip": across}
        assert moved @ ways[what] > 0.003, name


def test_postures_differ() -> None:
    """Fingers move one by one: no two angles of different fingers are one and the same synergy."""
    rng = np.random.default_rng(0)
    drawn = np.stack([random_gesture(rng) for _ in range(300)])
    bends = drawn[:, [DOF.index(f"{f}_mcp") for f in ("index", "middle", "ring", "pinky")]]
    assert (bends.std(0) > 20).all()
    correlation = np.corrcoef(bends.T)
    assert np.abs(correlation - np.eye(4)).max() < 0.85


def test_smooth(rig: Rig) -> None:
    """Frame to frame the hand moves as at 15-30 pictures a second, long motions with changes of grip
    included."""
    for number in range(4):
        motion = make_motion(rig, 2, number, 200, orientations="table", gaps=False)
        joints = rig.decode(motion.hand_pose, motion.betas)[1]
        joints = (
            np.einsum("nab,njb->nja", motion.wrist_rotation, joints - joints[:, :1]) + motion.wrist_m[:, None]
        )
        step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
        assert step.max() < 0.045
        assert 0.001 < np.median(step) < 0.015


def test_skin_stays_outside_the_object(rig: Rig, motions: list[Motion]) -> None:
    """Fingers neither start inside what they hold nor pass through it: 1st percentile above -5 mm; most touch
    it."""
    nearest = []
    for motion in motions:
        if np.ptp(motion.object_m, axis=0).any():  # held, not lying on the table
            vertices, joints = rig.decode(motion.hand_pose, motion.betas)
            world = (vertices - joints[:, :1]) @ np.swapaxes(motion.wrist_rotation, 1, 2) + motion.wrist_m[
                :, None
            ]
            local = (world - motion.object_m[:, None]) @ motion.object_rotation
            nearest.append(motion.held.distance(local).min(1))
    assert 15 <= len(nearest) <= 33
    distance = np.concatenate(nearest)
    assert np.percentile(distance, 1) > -0.005
    assert (distance < 0.004).mean() > 0.6


@pytest.mark.parametrize("kind", list(KINDS))
def test_distance_field_is_zero_on_the_mesh(kind: str) -> None:
    """What fingers close on is what is drawn."""
    half = {"ball": np.full(3, 0.03), "box": np.array([0.02, 0.03, 0.06])}.get(
        kind, np.array([0.03, 0.03, 0.07])
    )
    held = HeldObject(kind, half)
    vertices = held.mesh()[0]
    distance = held.distance(vertices)
    assert distance.max() < 0.004  # a bottle's shoulder lies inside the field's steps, a mug is full
    on_surface = np.abs(distance) < 1e-6
    assert on_surface.mean() > 0.3
    assert (held.distance(np.array([[0.3, 0, 0], [0, 0.3, 0], [0, 0, 0.3]])) > 0.1).all()


def views(motions: list[Motion]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Wrist rotations in the camera, wrists in the camera, and the forearm's direction in the picture
    (degrees)."""
    turns, wrists, arms = [], [], []
    for motion in motions:
        for camera in cameras_around(0, motion.number, 3, motion.target_m):
            turns.append(camera.rotation @ motion.wrist_rotation)
            here = camera.to_camera(motion.wrist_m)
            there = camera.to_camera(motion.wrist_m + 0.05 * motion.elbow_direction)
            way = there[:, :2] / there[:, 2:] - here[:, :2] / here[:, 2:]
            wrists.append(here)
            arms.append(np.degrees(np.arctan2(way[:, 1], way[:, 0])))
    return np.concatenate(turns), np.concatenate(wrists), np.concatenate(arms)


def test_spread_of_table_orientations(motions: list[Motion]) -> None:
    """The spread decides how hard the set is: broad (mean 59 degrees from the mean), not uniform (126)."""
    turns, wrists, arms = views(motions)
    mean = Rotation.from_matrix(turns).mean()
    angle = np.degrees((mean.inv() * Rotation.from_matrix(turns)).magnitude())
    assert 45 < angle.mean() < 75
    assert angle.max() > 100
    upwards = (arms < -35) & (arms > -145)
    assert upwards.mean() < 0.05  # forearms come from the lower and the side borders
    assert (wrists[:, 2] > 0.36).all()
    assert (wrists[:, 2] < 0.92).all()


def test_so3_is_uniform(rig: Rig) -> None:
    """`so3`: the mean of q q^T is near a quarter of the identity, as for uniform rotations."""
    turns = [make_motion(rig, 0, k, 1, orientations="so3", gaps=False).wrist_rotation[0] for k in range(150)]
    q = Rotation.from_matrix(np.stack(turns)).as_quat()
    values = np.linalg.eigvalsh(q.T @ q / len(q))
    assert values.min() > 0.15  # 0.25 +- 0.035 for 150 draws
    assert values.max() < 0.35


def test_hand_in_the_picture(rig: Rig, motions: list[Motion]) -> None:
    """Joints are inside the 640 x 480 picture in nearly all frames."""
    inside = []
    for motion in motions[:15]:
        joints = rig.decode(motion.hand_pose, motion.betas)[1]
        world = (joints - joints[:, :1]) @ np.swapaxes(motion.wrist_rotation, 1, 2) + motion.wrist_m[:, None]
        for camera in cameras_around(0, motion.number, 3, motion.target_m):
            pixels = camera.to_camera(world) @ camera.intrinsics_px.T
            pixels = pixels[..., :2] / pixels[..., 2:]
            inside.append(((pixels >= 0) & (pixels < [WIDTH, HEIGHT])).all((1, 2)))
    assert np.concatenate(inside).mean() > 0.95


@pytest.mark.parametrize("place", [(WIDTH, 240), (0, 240), (320, HEIGHT), (320, 0)])
def test_evaluation_boxes_hold_the_hand_up_to_the_border(
    rig: Rig, motions: list[Motion], place: tuple[int, int]
) -> None:
    """The box is all that says where to look on the evaluation split: it must not end before the picture.

    Here the hand's middle stands on a border.
    """
    motion = motions[0]
    camera = cameras_around(0, motion.number, 1, motion.target_m)[0]
    rest = rig.anatomy(motion.betas).joints_m[0]
    joints = place_in_camera(rig.decode(motion.hand_pose, motion.betas)[1], rest, motion, camera)
    k = camera.intrinsics_px.copy()
    middle = (joints @ k.T).mean((0, 1))
    k[:2, 2] += place - middle[:2] / middle[2]
    camera = dataclasses.replace(camera, intrinsics_px=k)
    metas = annotations(motion, camera, ["a"], joints, rest, "evaluation")
    box_px = np.array([content["handBoundingBox"] for content in metas])
    pixels = joints @ k.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    inside = ((pixels >= 0) & (pixels <= [WIDTH, HEIGHT])).all(-1)
    assert 0 < inside.mean() < 1
    low, high = box_px[:, None, :2], box_px[:, None, 2:]
    held = ((pixels >= low) & (pixels <= high)).all(-1)
    assert held[inside].all(), f"{(~held[inside]).sum()} joints in the picture lie outside their box"
    assert (box_px >= 0).all()
    assert (box_px <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()


def test_the_objects_labels_put_it_where_it_is_drawn(rig: Rig, motions: list[Motion]) -> None:
    """HO3D's objRot and objTrans are OpenGL's as the hand is: in other axes, hand and object stand apart."""
    gl = np.array([1.0, -1.0, -1.0])
    for motion in motions[:6]:
        camera = cameras_around(0, motion.number, 3, motion.target_m)[1]
        wrist = rig.anatomy(motion.betas).joints_m[0]
        joints = place_in_camera(rig.decode(motion.hand_pose, motion.betas)[1], wrist, motion, camera)
        content = annotations(motion, camera, ["a"], joints, wrist, "train")[4]
        world = motion.held.corners_m @ motion.object_rotation[4].T + motion.object_m[4]
        np.testing.assert_allclose(content["objCorners3D"] * gl, camera.to_camera(world), atol=1e-9)
        turn = Rotation.from_rotvec(content["objRot"].ravel())
        np.testing.assert_allclose(
            turn.apply(content["objCorners3DRest"]) + content["objTrans"], content["objCorners3D"], atol=1e-6
        )
