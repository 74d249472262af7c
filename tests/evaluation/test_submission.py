"""HO3D's official files: order, axes, units, and refusal of what would be misread."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from src.errors import DataError, ShapeError
from src.evaluation.submission import (
    from_official,
    load_official_ground_truth,
    read_submission,
    to_official,
    write_submission,
)
from src.hand.joints import HO3D21, OPENPOSE21
from src.runtime.seed import stream


def predictions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 21, 3) and (count, 778, 3) in our conventions; the hand is 0.5 m away and 0.1 m long."""
    random = stream(0, "predictions")
    centre = random.normal(0.0, 0.05, (count, 1, 3)) + np.array([0.0, 0.0, 0.5])
    joints = centre + random.normal(0.0, 0.02, (count, 21, 3))
    joints[:, OPENPOSE21.index("middle_4")] = joints[:, 0] + [0.1, 0.0, 0.0]
    vertices = centre + random.normal(0.0, 0.02, (count, 778, 3))
    return joints.astype(np.float32), vertices.astype(np.float32)


def test_a_submission_has_ho3ds_order_and_axes(tmp_path):
    """Right numbers in the wrong order score 65 mm on the server, and nobody sees why."""
    joints, vertices = predictions(3)
    path = write_submission(tmp_path, joints, vertices, num_frames=3)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, verts = json.loads(archive.read("pred.json"))
    assert json.loads((tmp_path / "pred.json").read_text()) == [xyz, verts]
    for name in ("wrist", "index_1", "pinky_1", "ring_1", "thumb_4", "pinky_4"):
        x, y, z = joints[2, OPENPOSE21.index(name)]
        np.testing.assert_allclose(xyz[2][HO3D21.index(name)], [x, -y, -z], atol=1e-8)
    assert (np.array(verts)[..., 2] < 0.0).all()
    assert np.shape(verts) == (3, 778, 3)


def test_reading_back_gives_what_was_written(tmp_path):
    """What is scored here must be what was sent."""
    joints, vertices = predictions(260)  # more than one chunk
    again = read_submission(write_submission(tmp_path, joints, vertices))
    np.testing.assert_allclose(again[0], joints, atol=1e-8)
    np.testing.assert_allclose(again[1], vertices, atol=1e-8)


def test_the_door_is_its_own_inverse():
    """A conversion that is not undone exactly drifts with every pass."""
    joints, vertices = predictions(4)
    again = from_official(*to_official(joints, vertices))
    assert np.array_equal(again[0], joints)
    assert np.array_equal(again[1], vertices)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda j, v: (j * 1000.0, v * 1000.0), "another unit"),
        (lambda j, v: (j * [1.0, -1.0, -1.0], v), "behind the camera"),
        (lambda j, v: (j, np.where(v == v[1, 5, 2], np.nan, v)), "vertices of 1 frames are not finite"),
        (lambda j, v: (j[:2], v), "2 rows of joints for 3 frames of evaluation.txt"),
        (lambda j, v: (j * 0.01 + [0.0, 0.0, 0.5], v), "wrist to middle fingertip"),
    ],
)
def test_what_the_server_would_misread_is_refused(tmp_path, spoil, message):
    """A submission costs a day; each of these would be scored without a word."""
    joints, vertices = spoil(*predictions(3))
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path, joints, vertices, num_frames=3)
    assert not list(tmp_path.iterdir())


def test_shapes_are_checked(tmp_path):
    """16 joints or a decimated mesh are not a submission."""
    joints, vertices = predictions(2)
    with pytest.raises(ShapeError):
        write_submission(tmp_path, joints, vertices[:, :195])


def test_equal_predictions_give_equal_bytes(tmp_path):
    """Whether two checkpoints predict the same must be answerable with cmp."""
    first = write_submission(tmp_path / "a", *predictions(2)).read_bytes()
    assert write_submission(tmp_path / "b", *predictions(2)).read_bytes() == first


def test_official_ground_truth_comes_in_our_conventions(tmp_path):
    """The one place where HO3D's evaluation labels are converted."""
    joints, vertices = predictions(3)
    xyz, verts = to_official(joints, vertices)
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(xyz.tolist()))
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(verts.tolist()))
    read = load_official_ground_truth(tmp_path)
    assert np.array_equal(read[0], joints)
    assert np.array_equal(read[1], vertices)


def test_missing_ground_truth_says_what_to_do(tmp_path):
    """Without the public files the split is not scored, and never with invented labels."""
    (tmp_path / "evaluation_xyz.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        load_official_ground_truth(tmp_path)
    message = str(caught.value)
    assert "evaluation_verts.json missing" in message
    assert "evaluation_xyz.json" not in message
    assert "https://github.com/shreyashampali/ho3d" in message
    assert "Predictions can still be exported" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[[0, 0, 1]]]", "row 0 has shape"),
        ("[[1, [2]]]", "row 0"),
        ("[[", "not JSON"),
        ("{}", "want a list"),
    ],
)
def test_damaged_ground_truth_is_named(tmp_path, content, message):
    """A download that was cut short must not become a KeyError deep inside."""
    for name in ("evaluation_xyz.json", "evaluation_verts.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_official_ground_truth(tmp_path)
