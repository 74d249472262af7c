"""HO3D's submission files: order, axes, units, the very numbers, and refusal of what would be misread."""

from __future__ import annotations

import functools
import io
import itertools
import json
import zipfile

import numpy as np
import pytest
import torch

from src.errors import DataError, ShapeError
from src.evaluation import submission
from src.evaluation.submission import joints_to_official, submission_checks
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import HO3D21, OPENPOSE21
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset, load_hand_asset
from src.runtime.seed import stream
from tests.hand_file import hand_file

CHECKS = ["count", "finite", "axes", "unit", "order"]


@functools.cache
def asset() -> HandAsset:
    return load_hand_asset(hand_file())


def write_submission(folder, joints, vertices, frames=None, overwrite=True):
    """With the regressor of the hand that made the predictions, and names for its rows."""
    names = [f"SM1/{row:04d}" for row in range(len(vertices))] if frames is None else frames
    joints, vertices = (np.asarray(points, np.float32) for points in (joints, vertices))
    return submission.write_submission(
        folder, joints, vertices, asset().joint_regressor, frames=names, overwrite=overwrite
    )


def predictions(count: int, curl: float = 0.4, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(count, 21, 3) and (count, 778, 3) float32 in our conventions: posed hands about 0.5 m away.

    `curl` is the spread of all rotations in rad, `spread` that of the shape.
    """
    random = stream(0, "predictions")
    aa = torch.from_numpy(random.normal(0.0, curl, (count, 16, 3)))
    rotations = rotation_from_aa(aa).float()
    place = random.normal(0.0, 0.05, (count, 3)) + np.array([0.0, 0.0, 0.5])
    posed = ManoLayer.from_asset(asset())(
        global_orient=rotations[:, 0],
        hand_pose=rotations[:, 1:],
        betas=torch.from_numpy(random.normal(0.0, spread, (count, 10))).float(),
        translation_m=torch.from_numpy(place).float(),
    )
    return posed.joints_m.numpy().copy(), posed.vertices_m.numpy().copy()


def test_a_submission_has_ho3ds_order_and_axes(tmp_path):
    """Right numbers in the wrong order score 65 mm on the server, and nobody sees why."""
    joints, vertices = predictions(3)
    checks = write_submission(tmp_path, joints, vertices, frames=["SM1/0001", "SM1/0003", "AP1/0000"])
    assert [line.split(":")[0] for line in checks] == [*CHECKS, "read back"]
    assert (tmp_path / "pred_frames.txt").read_text() == "SM1/0001\nSM1/0003\nAP1/0000\n"
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, verts = json.loads(archive.read("pred.json"))
    assert json.loads((tmp_path / "pred.json").read_text()) == [xyz, verts]
    for name in ("wrist", "index_1", "pinky_1", "ring_1", "thumb_4", "pinky_4"):
        x, y, z = joints[2, OPENPOSE21.index(name)]
        assert np.array_equal(np.float32(xyz[2][HO3D21.index(name)]), [x, -y, -z])  # to the last bit
    assert (np.array(verts)[..., 2] < 0.0).all()
    assert np.shape(verts) == (3, 778, 3)


def test_nine_digits_give_every_float32_back():
    """Fewer digits round some numbers to a neighbour."""
    bits = stream(3, "bits").integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)][: 3 * 6000]
    text = submission._row_format(len(values) // 3) % tuple(values[: len(values) // 3 * 3].tolist())
    again = np.array(json.loads(text)).ravel().astype(np.float32)
    assert np.array_equal(again, values[: len(again)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda j, v: (j * 1000.0, v * 1000.0), "another unit"),
        (lambda j, v: (j * 0.1, v * 0.1), "another unit"),
        (lambda j, v: (j * 3.5, v * 3.5), "another unit"),  # feet keep every proportion
        (lambda j, v: (j * [1.0, -1.0, -1.0], v), "joints of 3 frames are at or behind the camera"),
        (lambda j, v: (j, v * [1.0, -1.0, -1.0]), "vertices of 3 frames are at or behind the camera"),
        (lambda j, v: (j, np.where(v == v[1, 5, 2], np.nan, v)), "vertices of 1 frames are not finite"),
        (lambda j, v: (np.where(j == j[2, 5, 2], np.inf, j), v), r"joints of 1 frames are not .*row 2"),
        (lambda j, v: (j[:2], v), "2 rows of joints for 3 frames of evaluation.txt"),
        (lambda j, v: (j, v[:2]), "2 rows of vertices for 3 frames of evaluation.txt"),
        (lambda j, v: (j * 0.01 + [0.0, 0.0, 0.5], v), "joints of the median frame span"),
        (lambda j, v: (joints_to_official(j) * [1.0, -1.0, -1.0], v), "another joint order"),
        (lambda j, v: (j[[1, 0, 2]], v), "joint order|different frames"),
        (lambda j, v: (np.concatenate([j[:2], j[2:] + 0.05]), v), "1 frames .first: row 2.: joints and mesh"),
    ],
)
def test_what_the_server_would_misread_is_refused(tmp_path, spoil, message):
    """A submission costs a day; each of these would be scored without a word."""
    joints, vertices = spoil(*predictions(3))
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path, joints, vertices, [f"SM1/{row:04d}" for row in range(3)])
    assert not list(tmp_path.iterdir())


def test_any_two_exchanged_joints_are_noticed():
    """A single pair in the wrong place scores a few millimetres more, and nobody sees why."""
    joints, vertices = predictions(10)
    for first, second in itertools.combinations(range(21), 2):
        order = list(range(21))
        order[first], order[second] = second, first
        with pytest.raises(DataError, match="another joint order"):
            checked(joints[:, order], vertices)


def test_fingertips_are_judged_by_most_frames():
    """A tip that is right in one frame by chance is not right; wrong in one, it is no other joint."""
    joints, vertices = predictions(5)
    tip = OPENPOSE21.index("ring_4")
    once, often = joints.copy(), joints.copy()
    once[0, tip, 0] += 0.008
    assert len(checked(once, vertices)) == 5
    often[1:4, tip, 0] += 0.008
    with pytest.raises(DataError, match=r"joint ring_4 is 8\.0 mm from where its mesh has it in the median"):
        checked(often, vertices)


def test_joints_are_judged_against_their_own_meshes(monkeypatch):
    """20,137 frames come in twenty parts: hands of later parts are not those of the first ones."""
    monkeypatch.setattr(submission, "_CHUNK", 2)
    joints, vertices = predictions(7)
    wrist = joints[2:, :1]
    for points in (joints, vertices):
        points[2:] = (points[2:] - wrist) * np.float32([-1, -1, 1]) + wrist
    assert len(checked(joints, vertices)) == 5


def other_numbers(text: bytes) -> bytes:
    """A whole zip, but of other predictions."""
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(text)) as old, zipfile.ZipFile(whole, "w") as new:
        new.writestr("pred.json", old.read("pred.json").replace(b"1", b"2"))
    return whole.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "not a whole zip"),
        (lambda text: text.replace(b"pred.json", b"pred.jsom"), "not a whole zip|differs"),
        (other_numbers, r"read back, part \d+ differs"),
        (lambda text: text[:200] + bytes([text[200] ^ 1]) + text[201:], "not a whole zip|differs"),
    ],
)
def test_a_file_that_does_not_hold_the_predictions_is_not_left(tmp_path, monkeypatch, damage, message):
    """A disk that loses a bit must not leave a pred.zip that somebody uploads."""
    real = submission._write_zip

    def damaged(file, json_path):
        text = io.BytesIO()
        real(text, json_path)
        file.write(damage(text.getvalue()))

    monkeypatch.setattr(submission, "_write_zip", damaged)
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path, *predictions(2))
    assert not list(tmp_path.glob("*.zip"))


def checked(joints: np.ndarray, vertices: np.ndarray) -> list[str]:
    return submission_checks(joints, vertices, asset().joint_regressor, num_frames=len(joints))


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("curl", [0.0, 0.8, 3.0])
def test_any_pose_of_a_right_hand_passes_and_another_order_never(curl, spread):
    """A network that has learnt nothing bends fingers anyhow, and every frame alike: it is in order. HO3D's
    finger order, the commonest mistake of all submissions, is refused on the same hands.
    """
    joints, vertices = predictions(30, curl, spread)
    for frame in range(30):
        passed = checked(joints[[frame] * 2], vertices[[frame] * 2])
        assert [line.split(":")[0] for line in passed] == CHECKS
    with pytest.raises(DataError, match="another joint order"):
        checked(joints[:, [OPENPOSE21.index(name) for name in HO3D21]], vertices)


def test_shapes_are_checked(tmp_path):
    """16 joints or a decimated mesh are not a submission."""
    joints, vertices = predictions(2)
    with pytest.raises(ShapeError):
        write_submission(tmp_path, joints, vertices[:, :195])
    with pytest.raises(ShapeError):
        write_submission(tmp_path, joints[:, :16], vertices)


def test_equal_predictions_give_equal_bytes_and_are_not_overwritten_unasked(tmp_path):
    """Whether two checkpoints predict the same must be answerable with cmp; work must not vanish."""
    for name in "ab":
        write_submission(tmp_path / name, *predictions(2), overwrite=False)
    first, second = ((tmp_path / name / "pred.zip").read_bytes() for name in "ab")
    assert first == second
    with pytest.raises(DataError, match=r"pred\.zip is there already"):
        write_submission(tmp_path / "a", *predictions(3), overwrite=False)
    assert (tmp_path / "a" / "pred.zip").read_bytes() == first
