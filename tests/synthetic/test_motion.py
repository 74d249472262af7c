"""Hands move like hands: limits, grips without penetration, and a spread of views that is stated."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dataloader.synthetic.common import LONG_FINGERS, Array
from dataloader.synthetic.domains import DOMAINS
from dataloader.synthetic.frames import annotate, place_in_camera
from dataloader.synthetic.motion import motion as motion_module
from dataloader.synthetic.motion.grasp import _reach
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.motion.pose import COLUMNS, DOF, GESTURES, LIMITS_DEG, local_rotations, posture
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, Camera
from src.hand.joints import HO3D21
from tests.synthetic.conftest import pixels_of

TABLE = DOMAINS["table"]


@pytest.fixture(scope="module")
def motions(rig: Rig) -> list[Motion]:
    """Forty motions at a table."""
    return [TABLE.motion(rig, 0, k, 6) for k in range(40)]


def in_world(rig: Rig, motion: Motion) -> tuple[Array, Array]:
    """Vertices and joints of all frames in the world, metres."""
    vertices, joints = rig.decode(motion.hand_pose, motion.betas)
    turn = np.swapaxes(motion.wrist_rotation, 1, 2)
    vertices, joints = ((p - joints[:, :1]) @ turn + motion.wrist_m[:, None] for p in (vertices, joints))
    return vertices, joints


def annotated(motion: Motion, camera: Camera, split: Any = "train") -> tuple[Array, list[dict[str, Any]]]:
    """Joints of all frames in the camera, and the annotations."""
    joints = place_in_camera(motion.joints_m, motion, camera)
    return joints, annotate(motion, camera, ["a"], joints, split)


def test_fingers_bend_one_by_one_and_as_far_as_fingers_do(motions: list[Motion]) -> None:
    """Joints keep their limits, and tendons join neighbours; fingers that move as one teach little."""
    angles = np.concatenate([motion.angles_deg for motion in motions])
    low, high = LIMITS_DEG.T
    assert ((angles >= low - 1e-9) & (angles <= high + 1e-9)).all()
    bends = angles[:, [DOF.index(f"{finger}_mcp") for finger in LONG_FINGERS]]
    assert 55 < np.abs(np.diff(bends, axis=1)).max() < 86
    assert (bends.std(0) > 15).all()
    assert np.abs(np.corrcoef(bends.T) - np.eye(4)).max() < 0.95


def test_each_angle_moves_its_fingertip_the_way_it_says(rig: Rig) -> None:
    """Gestures are tables of these angles: with one sign turned, every gesture that uses it is another."""
    anatomy = rig.anatomy(np.zeros(10))
    flat = posture(GESTURES["flat"])
    palmar, radial, distal = -anatomy.dorsal, anatomy.radial, anatomy.distal
    # Fingers bend to the palm and swing to the thumb's side; the thumb bends to the palm's middle, is opposed
    # in front of it, and swings up along the index finger.
    ways = dict.fromkeys(("mcp", "pip", "dip"), palmar) | {"abd": radial}
    of_thumb = dict.fromkeys(("cmc", "mcp", "ip"), palmar - radial) | {"opp": palmar, "abd": distal - radial}
    for i, name in enumerate(DOF):
        finger, what = name.split("_")
        postures = np.stack([flat, flat + 10.0 * np.eye(len(DOF))[i]])
        joints = rig.decode(local_rotations(postures, anatomy), np.zeros(10))[1]
        moved = np.diff(joints[:, HO3D21.index(f"{finger}_4")], axis=0)[0]
        assert moved @ (of_thumb if finger == "thumb" else ways)[what] > 0.003, name


def test_smooth(rig: Rig) -> None:
    """Frame to frame the hand moves as at 15-30 pictures a second, also through changes of grip."""
    for number in range(4):
        motion = TABLE.motion(rig, 2, number, 200)
        joints, neighbours = in_world(rig, motion)[1], np.diff(motion.frame_ids) == 1
        step = np.linalg.norm(np.diff(joints, axis=0)[neighbours], axis=-1)
        assert step.max() < 0.045
        assert 0.001 < np.median(step) < 0.015


def test_skin_stays_outside_the_object(rig: Rig, motions: list[Motion]) -> None:
    """Fingers neither start in what they hold nor pass it: 1st percentile above -5 mm; most touch it."""
    nearest = []
    for motion in motions:
        if motion.grasps:  # held, not lying on the table
            local = (in_world(rig, motion)[0] - motion.object_m[:, None]) @ motion.object_rotation
            nearest.append(motion.held.distance(local).min(1))
    assert 15 <= len(nearest) <= 33
    distance = np.concatenate(nearest)
    assert np.percentile(distance, 1) > -0.005
    assert (distance < 0.004).mean() > 0.6


@pytest.mark.parametrize(("domain", "pace"), [("table", 16), ("wide", None)])
def test_fingers_close_on_what_is_held_however_far_apart_frames_are(
    rig: Rig, domain: str, pace: int | None
) -> None:
    """Each finger stopped where the most open of nine frames had to, three seconds apart or not, and frames
    showed things in the air between two grips: hands that taught what holding is hovered around things, and
    those that were scored held them."""
    touching, nearest = [], []
    for number in range(24):
        motion = DOMAINS[domain].motion(rig, 0, number, 10, pace)
        if not motion.grasps:
            continue
        local = (in_world(rig, motion)[0] - motion.object_m[:, None]) @ motion.object_rotation
        distance = motion.held.distance(local)
        nearest.append(distance.min(1))
        fingers = [distance[:, np.isin(rig.owner, range(1 + 3 * k, 4 + 3 * k))].min(1) for k in range(5)]
        touching.append(np.less(fingers, 0.004).sum(0) >= 3)
    assert np.mean(np.concatenate(touching)) > 0.66
    assert np.mean(np.concatenate(nearest) > 0.03) < 0.03, "things in the air"
    assert np.percentile(np.concatenate(nearest), 2) > -0.005


@pytest.mark.parametrize("pace", [1, 2, 4, 5, 8, 16])
def test_contact_is_smoothed_alike_before_and_after(rig: Rig, pace: int) -> None:
    """A window of an even number of frames let fingers open late before a contact, and early after it."""
    anatomy = rig.anatomy(np.zeros(10))
    blocked = np.zeros((21, 1, 1))
    blocked[10] = -1.0
    postures = np.zeros((21, len(DOF)))
    closing = postures + posture(GESTURES["fist"])
    reach = _reach("index", postures, closing, anatomy, lambda skin: blocked + 0.5 + 0 * skin[..., 0], pace)
    np.testing.assert_allclose(reach, reach[::-1], atol=1e-12)
    assert reach[10] == 0
    assert (reach < 1 - 1e-9).sum() == 1 + 4 * (4 // pace), "as far as its window and no farther"


def test_a_thumb_gives_way_to_the_fingers_of_its_own_moment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside frames that show a fist a second away, the thumb of a flat hand was pulled aside as well."""
    empty = dataclasses.replace(DOMAINS["wide"].habits, gestures=1.0)
    wide = dataclasses.replace(DOMAINS["wide"], habits=empty)
    postures = np.stack([posture(GESTURES[name]) for name in ("fist", "flat", "key", "four")])
    angles = []
    for shown in (postures, *(np.repeat(row[None], len(postures), 0) for row in postures)):
        monkeypatch.setattr(motion_module, "gesture_path", lambda *_, shown=shown: shown)
        angles.append(wide.motion(rig, 0, 0, len(shown)).angles_deg)
    np.testing.assert_allclose(angles[0], [alone[0] for alone in angles[1:]], atol=1e-9)
    assert np.abs(angles[0] - postures)[:, COLUMNS["thumb"]].max() > 5, "and some thumb is in the way"


def test_spread_of_views_at_a_table(rig: Rig, motions: list[Motion]) -> None:
    """The spread decides how hard the set is: broad (mean 59 degrees from the mean), not uniform (126)."""
    turns, wrists, arms, inside = [], [], [], []
    for motion in motions:
        joints = in_world(rig, motion)[1]
        for camera in TABLE.cameras(0, motion, 3):
            turns.append(camera.rotation @ motion.wrist_rotation)
            wrist = camera.to_camera(motion.wrist_m)
            elbow = camera.to_camera(motion.wrist_m + 0.05 * motion.elbow_direction)
            way = pixels_of(elbow, camera.intrinsics_px) - pixels_of(wrist, camera.intrinsics_px)
            arms.append(np.degrees(np.arctan2(way[:, 1], way[:, 0])))
            pixels = pixels_of(camera.to_camera(joints), camera.intrinsics_px)
            inside.append(((pixels >= 0) & (pixels < [WIDTH, HEIGHT])).all((1, 2)))
            wrists.append(wrist[:, 2])
    rotations = Rotation.from_matrix(np.concatenate(turns))
    angle = np.degrees((rotations.mean().inv() * rotations).magnitude())
    assert 45 < angle.mean() < 75
    assert angle.max() > 100
    arm = np.concatenate(arms)
    assert ((arm < -35) & (arm > -145)).mean() < 0.05  # forearms come from the lower and the side borders
    assert 0.36 < np.min(wrists) < np.max(wrists) < 0.92
    assert np.concatenate(inside).mean() > 0.95


def test_evaluation_boxes_hold_the_hand_up_to_the_border(rig: Rig, motions: list[Motion]) -> None:
    """The box is all that says where to look on the evaluation split: it must not end before the picture.

    Here the hand's middle stands on a border.
    """
    motion = motions[0]
    camera = TABLE.cameras(0, motion, 1)[0]
    for place in ([WIDTH, 240], [0, 240], [320, HEIGHT], [320, 0]):
        k = camera.intrinsics_px.copy()
        k[:2, 2] += place - pixels_of(annotated(motion, camera)[0], k).mean((0, 1))
        joints, metas = annotated(motion, dataclasses.replace(camera, intrinsics_px=k), "evaluation")
        box = np.array([content["handBoundingBox"] for content in metas])[:, None]
        pixels = pixels_of(joints, k)
        inside = ((pixels >= 0) & (pixels <= [WIDTH, HEIGHT])).all(-1)
        assert 0 < inside.mean() < 1
        held = ((pixels >= box[..., :2]) & (pixels <= box[..., 2:])).all(-1)
        assert held[inside].all(), f"{(~held[inside]).sum()} joints in the picture lie outside their box"
        assert ((box >= 0) & (box <= [WIDTH, HEIGHT, WIDTH, HEIGHT])).all()


def test_the_objects_labels_put_it_where_it_is_drawn(rig: Rig, motions: list[Motion]) -> None:
    """HO3D's objRot and objTrans are OpenGL's as the hand is: in other axes, hand and object stand apart."""
    for motion in motions[:6]:
        camera = TABLE.cameras(0, motion, 3)[1]
        content = annotated(motion, camera)[1][4]
        world = motion.held.corners_m @ motion.object_rotation[4].T + motion.object_m[4]
        found = content["objCorners3D"] * [1.0, -1.0, -1.0]
        np.testing.assert_allclose(found, camera.to_camera(world), atol=1e-9)
        turned = Rotation.from_rotvec(content["objRot"].ravel()).apply(content["objCorners3DRest"])
        np.testing.assert_allclose(turned + content["objTrans"], content["objCorners3D"], atol=1e-6)
