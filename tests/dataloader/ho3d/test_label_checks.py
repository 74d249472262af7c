"""Every frame's labels are looked at: a fault is found in the frame that has it, and only there."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader.crop.augment import MAX_SHIFT, UNCHANGED
from dataloader.crop.camera import MIN_OVERLAP, covered_share, crop_camera
from dataloader.ho3d import label_checks
from dataloader.ho3d.label_checks import MIN_IN_PICTURE, common_sizes, find_faults, label_faults, truth_faults
from dataloader.ho3d.layout import frame_path, read_list
from dataloader.ho3d.meta import META_DTYPE, ListName, read_meta
from dataloader.ho3d.unusable import Fault, Reason
from dataloader.pictures.decode import picture_size
from dataloader.synthetic.writer import Parameters
from dataloader.synthetic.writer import write_tree as write_synthetic
from src.config import AugmentationConfig, DatasetConfig
from src.geometry.camera import project
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import SIZE, FanHand, write_tree
from tests.hand_file import hand_file

Records = np.ndarray
FRAMES = 12
FINGERS = [i for i, name in enumerate(HO3D21) if name != "wrist" and not name.endswith("_1")]


def read_all(root: Path, name: ListName = "train") -> Records:
    """Records of a tree in the order of its list, numbered by sequence."""
    listed = read_list(DatasetConfig(root_dir=root), name)
    rows = np.zeros(len(listed.frames), META_DTYPE)
    for k, (sequence, frame) in enumerate(listed.frames):
        rows[k] = read_meta(frame_path(root, name, sequence, frame, "meta", "v3"), name)
        rows[k]["sequence"], rows[k]["frame"] = listed.sequences.index(sequence), frame
    return rows


def sizes(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.tile(np.array(size, np.int32), (count, 1))


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory, standin: ManoLayer) -> Records:
    """Twelve hands of the stand-in, labelled as HO3D does."""
    root = tmp_path_factory.mktemp("posed")
    write_posed_hands(root, standin, FRAMES)
    return read_all(root)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Four frames of an evaluation list."""
    root = tmp_path_factory.mktemp("boxed")
    write_tree(root, {"MC1": 1}, {"SM1": 4}, truth=False)
    return read_all(root, "evaluation")


def faults_of(records: Records, hand: ManoLayer, name: ListName = "train") -> dict[int, Fault]:
    return find_faults(name, records, sizes(len(records)), sizes(len(records)), [], hand)


def test_whole_frames_have_no_fault(
    posed: Records, boxed: Records, standin: ManoLayer, tmp_path: Path
) -> None:
    """A gate that refuses good frames costs data; the generator's and all tests' own trees pass it."""
    assert faults_of(posed, standin) == {}
    assert faults_of(boxed, standin, "evaluation") == {}
    write_tree(tmp_path / "fan", {"ABF10": 6})
    assert faults_of(read_all(tmp_path / "fan"), FanHand()) == {}  # type: ignore[arg-type]
    parameters = Parameters(sequences=3, frames=12, evaluation_sequences=2, annotations_only=True)
    write_synthetic(tmp_path / "synthetic", parameters, load_hand_asset(hand_file()))
    for name in ("train", "evaluation"):
        rows = read_all(tmp_path / "synthetic", name)
        assert len(rows) == 36 if name == "train" else 24
        files = sorted((tmp_path / "synthetic" / name).glob("*/rgb/*"))
        rgb = np.array([picture_size(path, "rgb") for path in files], np.int32)
        assert find_faults(name, rows, rgb, rgb.copy(), [], standin) == {}


def move(row: Records, pixels: tuple[float, float]) -> None:
    """Move a hand in its picture, its labels agreeing with each other."""
    focal, z = row["cam_mat"][0, 0], -row["joints"][0, 2]
    shift = np.array([pixels[0], -pixels[1], 0], np.float32) * z / focal
    row["joints"] += shift
    row["trans"] += shift


Plant = Callable[[Records], None]


def _set(field: str, change: Callable[[np.ndarray], object]) -> Plant:
    """Replace a field by what `change` makes of it."""

    def plant(row: Records) -> None:
        row[field] = change(row[field].copy())

    return plant


def _add(field: str, at: int, value: float) -> Plant:
    """Add to one row of a field, in all its columns."""

    def plant(row: Records) -> None:
        row[field][at] += value

    return plant


def _camera(x: float, y: float) -> Plant:
    """The camera of a picture scaled by x and y."""
    return _set("cam_mat", lambda k: np.diag([x, y, 1]) @ k)


def _zoom(x: float, y: float) -> Plant:
    """Other focal lengths, the same middle."""
    return _set("cam_mat", lambda k: k * [[x, 1, 1], [1, y, 1], [1, 1, 1]])


def _element(row: int, column: int, value: float) -> Plant:
    """One number of the camera matrix."""

    def plant(record: Records) -> None:
        record["cam_mat"][row, column] = value

    return plant


def _moved(x: float, y: float) -> Plant:
    return lambda row: move(row, (x, y))


def _far(row: Records) -> None:
    row["joints"][:, 2] -= 20
    row["trans"][2] -= 20


def _noise(row: Records) -> None:
    row["joints"][FINGERS] += np.random.default_rng(0).normal(0, 0.03, (len(FINGERS), 3)).astype(np.float32)


def _one_joint(row: Records) -> None:
    row["joints"][HO3D21.index("ring_3"), 2] += 0.0015


def _nan_sideways(row: Records) -> None:
    row["joints"][HO3D21.index("middle_2"), 0] = np.nan


def _at_wrist(row: Records) -> None:
    row["trans"] = row["joints"][0]


PINKY_4, INDEX_4 = HO3D21.index("pinky_4"), HO3D21.index("index_4")
OPENPOSE_ORDER = list(permutation(HO3D21, OPENPOSE21))

PLANTED: dict[str, tuple[Plant, Reason, str]] = {
    "camera identity": (_set("cam_mat", lambda k: np.eye(3)), Reason.CAMERA, r"lengths of 1\.0 and 1\.0 px"),
    "camera transposed": (_set("cam_mat", lambda k: k.T), Reason.CAMERA, r"want \[\[fx, 0, cx\]"),
    "camera without fx": (_element(0, 0, 0), Reason.CAMERA, r"of 0\.0 and 615\.1 px .* want 128 to 6400"),
    "camera with -fy": (_element(1, 1, -615.1), Reason.CAMERA, r"lengths of 614\.6 and -615\.1 px"),
    "camera nan": (_element(1, 1, np.nan), Reason.CAMERA, r"lengths of 614\.6 and nan px"),
    "camera skewed": (_element(0, 1, 30), Reason.CAMERA, r"want \[\[fx, 0, cx\]"),
    "camera turned": (_element(1, 0, 2), Reason.CAMERA, r"want \[\[fx, 0, cx\]"),
    "camera of half": (_camera(0.5, 0.5), Reason.CAMERA, r"point \(160\.\d, 120\.\d\) of .* 640 x 480"),
    "camera of double": (_camera(2, 2), Reason.CAMERA, r"point \(640\.6, 483\.4\)"),
    "camera of 1280 x 720": (_camera(2, 1.5), Reason.CAMERA, r"point \(640\.6, 362\.\d\)"),
    "camera in shares": (_camera(1 / 640, 1 / 480), Reason.CAMERA, r"lengths of 1\.0 and 1\.3 px"),
    "camera times 2": (_set("cam_mat", lambda k: 2 * k), Reason.CAMERA, r"want .*0, 0, 1"),
    "camera of another zoom": (_zoom(2, 2), Reason.CAMERA, r"in most frames of its sequence \[\[614\.6"),
    "camera 1 % off": (_zoom(1.01, 1.01), Reason.CAMERA, r"in most frames of its sequence"),
    "camera moved": (_element(0, 2, 379.7), Reason.CAMERA, r"in most frames of its sequence"),
    "one focal length doubled": (_zoom(2, 1), Reason.CAMERA, r"want their ratio within 0\.8 to 1\.25"),
    "camera a little skewed": (_element(0, 1, 5), Reason.CAMERA, r"want \[\[fx, 0, cx\]"),
    "zeros": (_set("joints", np.zeros_like), Reason.BEHIND, r"wrist is 0\.000 m in front"),
    "OpenCV axes": (_set("joints", lambda j: j * [1, -1, -1]), Reason.BEHIND, r"is -0\.\d+ m in front"),
    "nan": (_set("joints", lambda j: j * np.nan), Reason.BEHIND, r"is nan m in front"),
    "one joint behind": (_add("joints", INDEX_4, 0.9), Reason.BEHIND, r"index_4 is -0\.\d+ m in front"),
    "minus one": (_set("joints", lambda j: 0 * j - 1), Reason.HAND, r"knuckle is 0\.0 mm, want 50 to 150"),
    "millimetres": (_set("joints", lambda j: j * 1000), Reason.HAND, r"knuckle is \d{5,}\.\d mm"),
    "a nan sideways": (_nan_sideways, Reason.HAND, r"middle_2 is nan mm from the wrist"),
    "a joint far off": (_add("joints", PINKY_4, -0.4), Reason.HAND, r"pinky_4 is \d{3} mm .* most 300"),
    "betas x 30": (_set("betas", lambda b: 30 * b), Reason.HAND, r"handBeta reaches \d{2,}\.\d standard"),
    "betas of -12": (_set("betas", lambda b: 0 * b - 12), Reason.HAND, r"handBeta reaches 12\.0 standard"),
    "left": (_moved(-700, 0), Reason.OUTSIDE, r"no part of .* \(hand's box \[-\d.* px, picture 640"),
    "right": (_moved(700, 0), Reason.OUTSIDE, r"no part of the hand is inside"),
    "above": (_moved(0, -600), Reason.OUTSIDE, r"no part of the hand is inside"),
    "below": (_moved(0, 600), Reason.OUTSIDE, r"no part of the hand is inside"),
    "far away": (_far, Reason.OUTSIDE, r"box is \d\.\d px long, want 8 or more"),
    "noisy fingers": (_noise, Reason.DECODE, r"are \d{2,3}\.\d mm from what the hand model decodes"),
    "one joint 1.5 mm": (_one_joint, Reason.DECODE, r"are 1\.5 mm from .* \(ring_3 the farthest\)"),
    "place 20 mm off": (_add("trans", 1, 0.02), Reason.DECODE, r"are 20\.0 mm from"),
    "place is the wrist": (_at_wrist, Reason.DECODE, r"are \d+\.\d mm"),
    "another shape": (_set("betas", lambda b: b[::-1]), Reason.DECODE, r"are \d+\.\d mm"),
    "a wrist turned": (_add("pose_aa", 0, 0.1), Reason.DECODE, r"_4 the farthest"),
    "a knuckle bent": (_add("pose_aa", 15, 0.3), Reason.DECODE, r"thumb_4 the farthest"),
    "no parameters": (_set("pose_aa", np.zeros_like), Reason.DECODE, r"are \d+\.\d mm"),
    "OpenPose's order": (_set("joints", lambda j: j[OPENPOSE_ORDER]), Reason.DECODE, r"are \d+\.\d mm"),
    "a left hand": (_set("joints", lambda j: j * [-1, 1, 1]), Reason.DECODE, r"are \d+\.\d mm"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_each_fault_is_found_in_its_frame(posed: Records, standin: ManoLayer, name: str) -> None:
    """One bad frame of many has one reason with what was measured; its neighbours have none."""
    plant, reason, message = PLANTED[name]
    records, row = posed.copy(), 7
    plant(records[row])
    faults = faults_of(records, standin)
    assert list(faults) == [row], name
    assert faults[row].reason is reason, faults[row]
    assert re.search(message, faults[row].detail), faults[row].detail


def test_the_pose_of_another_frame_is_found(posed: Records, standin: ManoLayer) -> None:
    """Rows of parameters moved by one against rows of joints: each hand is fine, none belongs."""
    records = posed.copy()
    records["pose_aa"] = np.roll(records["pose_aa"], 1, axis=0)
    faults = faults_of(records, standin)
    assert len(faults) == FRAMES
    assert {fault.reason for fault in faults.values()} == {Reason.DECODE}


def test_the_issues_tree_has_26_names(posed: Records, standin: ManoLayer) -> None:
    """18 of 72 frames with noise, where the median says nothing is wrong (lesson 26), and eight others."""
    records = np.tile(posed, 6)
    records["sequence"], records["frame"] = np.arange(72) // 24, np.arange(72)
    rgb = sizes(72)
    want: dict[int, Reason] = {}
    for row in range(0, 72, 4):
        _noise(records[row])
        want[row] = Reason.DECODE
    for row, pixels in ((1, (-700, 0)), (30, (700, 0)), (55, (0, 600))):
        move(records[row], pixels)
        want[row] = Reason.OUTSIDE
    for rows, value, reason in (((2, 71), 0, Reason.BEHIND), ((3, 42), -1, Reason.HAND)):
        for row in rows:
            records[row]["joints"] = value
            want[row] = reason
    rgb[50] = 240, 320
    want[50] = Reason.SIZE
    faults = find_faults("train", records, rgb, sizes(72), [], standin)
    assert {row: fault.reason for row, fault in faults.items()} == want
    assert len(faults) == 26
    assert faults[50].detail == "picture is 320 x 240, most of its sequence 640 x 480"


def test_the_most_basic_reason_is_given(posed: Records, standin: ManoLayer) -> None:
    """Who repairs a frame begins with what makes the rest meaningless."""
    records = posed.copy()
    met = [
        (0, Fault(Reason.ANNOTATION, "meta")),
        (0, Fault(Reason.EMPTY, "rgb")),
        (1, Fault(Reason.FORMAT, "rgb")),
        (1, Fault(Reason.EMPTY, "depth")),
    ]
    rgb, depth = sizes(FRAMES), sizes(FRAMES)
    rgb[0], depth[1], rgb[2], depth[3] = 0, 0, (10, 10), (10, 10)
    for row in (0, 1, 2, 3, 4):
        records[row]["cam_mat"] = np.eye(3)
    for row in range(6):
        records[row]["joints"] = 0
    for row in (6, 7):
        records[row]["joints"][FINGERS] = records[row]["joints"][0]
    move(records[7], (-900, 0))
    move(records[8], (-900, 0))
    for row in range(FRAMES):
        records[row]["trans"] += 0.1
    records[6]["joints"][4] = records[6]["joints"][0]
    found = find_faults("train", records, rgb, depth, met, standin)
    assert [found[row].reason.name for row in range(FRAMES)] == [
        "ANNOTATION", "EMPTY", "SIZE", "SIZE", "CAMERA", "BEHIND", "HAND", "OUTSIDE", "OUTSIDE",
        "DECODE", "DECODE", "DECODE",
    ]  # fmt: skip


@pytest.mark.parametrize(("visible", "fits"), [(0.5, True), (0.12, True), (0.08, False)])
@pytest.mark.parametrize("side", ["left", "right", "above", "below"])
def test_hands_at_the_border(
    posed: Records, standin: ManoLayer, side: str, visible: float, fits: bool
) -> None:
    """Half a hand is a hand, as HO3D has them; of less than a tenth nothing can be learned."""
    records = posed[:1].copy()
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[side]
    camera = torch.from_numpy(records["cam_mat"].astype(np.float64))
    edge = (SIZE[1] - 0.5, SIZE[0] - 0.5)[axis] if sign > 0 else -0.5
    for _ in range(6):  # a moved hand is seen under another angle, so its box changes a little
        joints = torch.from_numpy(records["joints"] * np.array([1.0, -1.0, -1.0]))
        pixels = project(joints, camera)[0].numpy()
        low, high = pixels.min(0), pixels.max(0)
        length = (high - low).max()
        inner = (low + high)[axis] / 2 - sign * length / 2  # of the square around the box
        step = np.zeros(2)
        step[axis] = edge - sign * visible * length - inner
        move(records[0], tuple(step))
    assert (list(faults_of(records, standin)) == []) is fits


def test_a_frame_that_passed_never_gives_an_empty_crop() -> None:
    """A hand outside the picture ended a run in the middle of an epoch: with the default crop and
    augmentation no draw does, for hands of all sizes that the gate lets through, in wide and narrow views.
    """
    augmentation, box_scale = AugmentationConfig(), DatasetConfig().box_scale
    corner = MIN_IN_PICTURE**0.5  # visible in x and in y: the worst place; beside it, the middle of a side
    changes = [
        dataclasses.replace(UNCHANGED, roll_rad=roll, scale=1 + grow, shift=(shift, shift))
        for roll, grow, shift in itertools.product(
            np.radians([0, 20, 45, 70]), (-augmentation.scale, augmentation.scale), (0, MAX_SHIFT)
        )
    ]
    for focal, side, (x, y) in itertools.product(
        (200.0, 475.0, 615.0, 1500.0), (20, 200, 900), ((corner, corner), (MIN_IN_PICTURE, 1.0))
    ):
        camera = np.array([[focal, 0, 320], [0, focal, 240], [0, 0, 1.0]])
        left, top = SIZE[1] - 0.5 - x * side, SIZE[0] - 0.5 - y * side
        box = np.array([left, top, left + side, top + side])
        for change in changes:
            crop = crop_camera(camera, box, (256, 192), box_scale, change)
            assert covered_share(crop, SIZE) >= MIN_OVERLAP, f"{focal} {side}"


EVALUATION: dict[str, tuple[Plant, Reason, str]] = {
    "camera": (_set("cam_mat", lambda k: k.T), Reason.CAMERA, "want"),
    "another zoom": (_zoom(1.5, 1.5), Reason.CAMERA, r"in most frames of its sequence"),
    "wrist behind": (_set("joints", lambda j: -j), Reason.BEHIND, r"wrist is -0\.\d+ m in front"),
    "wrist zero": (_set("joints", lambda j: 0 * j), Reason.BEHIND, r"wrist is 0\.000 m"),
    "turned corners": (_set("box", lambda b: b[[2, 1, 0, 3]]), Reason.HAND, "want x0 < x1 and y0 < y1"),
    "flat": (_set("box", lambda b: b[[0, 1, 2, 1]]), Reason.HAND, "want x0 < x1 and y0 < y1"),
    "nan": (_set("box", lambda b: b * np.nan), Reason.HAND, r"handBoundingBox is \[nan"),
    "infinite": (_set("box", lambda b: b + np.array([0, 0, np.inf, 0])), Reason.HAND, "inf"),
    "whole picture": (_set("box", lambda b: np.array([0, 0, 640, 480])), Reason.HAND, r"is \d{3} mm long at"),
    "a dot": (_set("box", lambda b: np.concatenate([b[:2], b[:2] + 9])), Reason.HAND, r"is \d{1,2} mm long"),
    "normalised": (_set("box", lambda b: b / 640), Reason.HAND, r"is 0 mm long .* want 20 to 400"),
    "elsewhere": (_set("box", lambda b: b + 500), Reason.HAND, r"wrist is \d{3} mm from handBoundingBox"),
}


def _tip(joints: np.ndarray) -> np.ndarray:
    joints[INDEX_4] += [0.0, 0.02, 0.0]
    return joints


def _inner_noise(joints: np.ndarray) -> np.ndarray:
    joints[FINGERS] += np.random.default_rng(1).normal(0, 0.03, (len(FINGERS), 3))
    return joints


TRUTH: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Reason, str]] = {
    "noisy fingers": (_inner_noise, Reason.HAND, r"is \d+ mm in the ground truth, in most frames .* \d+"),
    "a tip 20 mm off": (_tip, Reason.HAND, r"index_4 is \d+ mm in the ground truth"),
    "ten times as long": (lambda j: j[0] + 10 * (j - j[0]), Reason.HAND, "knuckle is"),
    "a tenth larger": (lambda j: j[0] + 1.2 * (j - j[0]), Reason.HAND, "in the ground truth"),
    "on the wrist": (lambda j: np.tile(j[:1], (21, 1)), Reason.HAND, r"knuckle is 0\.0 mm"),
    "minus one": (lambda j: np.concatenate([j[:1], np.full((20, 3), -1.0)]), Reason.HAND, "mm"),
    "behind": (lambda j: j * [1, 1, -1], Reason.BEHIND, "in front of the camera"),
    "nan": (lambda j: j * np.nan, Reason.BEHIND, "is nan m"),
}


@pytest.mark.parametrize("name", TRUTH)
def test_faults_of_the_official_truth(posed: Records, name: str) -> None:
    """It comes without parameters: a hand's bones keep their length, which noise and foreign hands do not."""
    plant, reason, message = TRUTH[name]
    offsets = np.linspace(-0.05, 0.05, len(posed))[:, None, None] * [1.0, 1.0, 0.0]
    joints = posed["joints"][:1].astype(np.float64) + offsets  # one hand: bones keep their length
    assert truth_faults(posed["sequence"], joints) == {}
    joints[5] = plant(joints[5].copy())
    faults = truth_faults(posed["sequence"], joints)
    assert list(faults) == [5], name
    assert faults[5].reason is reason, faults[5]
    assert re.search(message, faults[5].detail), faults[5].detail


@pytest.mark.parametrize("name", EVALUATION)
def test_faults_of_the_evaluation_list(boxed: Records, standin: ManoLayer, name: str) -> None:
    """What little is labelled there decides where the network looks, so it is looked at too."""
    plant, reason, message = EVALUATION[name]
    records = boxed.copy()
    plant(records[2])
    faults = faults_of(records, standin, "evaluation")
    assert list(faults) == [2], name
    assert faults[2].reason is reason, faults[2]
    assert re.search(message, faults[2].detail), faults[2].detail


def test_an_evaluation_hand_may_leave_the_picture_but_not_be_outside(
    boxed: Records, standin: ManoLayer
) -> None:
    """No evaluation frame can be left out, so only what cannot be cropped is refused."""
    for right_edge, fits in ((60, True), (3, True), (-3, False), (-30, False)):
        records = boxed.copy()
        box = records[1]["box"]
        move(records[1], (right_edge - float(box[2]), 0))
        records[1]["box"][[0, 2]] += right_edge - box[2]
        found = label_faults("evaluation", records, sizes(4), standin)
        assert [found[row].reason for row in found] == ([] if fits else [Reason.OUTSIDE]), right_edge


def test_sizes_are_those_of_the_sequence() -> None:
    """Each sequence has its own camera; where it is even, the size that more of the list has."""
    sequence = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    rgb = np.array([[480, 640], [480, 640], [240, 320], [720, 1280], [0, 0], [240, 320], [480, 640], [0, 0]])
    common = common_sizes(sequence, rgb.astype(np.int32))
    assert common[[0, 3, 5, 7]].tolist() == [[480, 640], [720, 1280], [480, 640], [0, 0]]
    assert (common[1:3] == common[0]).all()
    assert (common[4] == common[3]).all()


def test_depth_has_its_pictures_size(posed: Records, standin: ManoLayer) -> None:
    """Depth of the sensor's own resolution is not aligned to the picture: pixels would not match."""
    depth = sizes(FRAMES)
    depth[4] = 480, 848
    faults = find_faults("train", posed, sizes(FRAMES), depth, [], standin)
    assert faults == {4: Fault(Reason.SIZE, "depth is 848 x 480, its picture 640 x 480")}


def test_labels_are_judged_beside_their_sequences_pictures(posed: Records, standin: ManoLayer) -> None:
    """A whole tree scaled to half its size keeps camMat of the full one: every frame says so."""
    half = sizes(FRAMES, (240, 320))
    faults = find_faults("train", posed, half, half, [], standin)
    assert {fault.reason for fault in faults.values()} == {Reason.CAMERA}
    assert len(faults) == FRAMES


@pytest.mark.parametrize("part", [3, 5, 8, 1024])
def test_each_frame_is_judged_beside_its_own_picture_in_every_part(
    posed: Records, standin: ManoLayer, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences have pictures of their own sizes, and 83,325 frames are looked at in parts."""
    monkeypatch.setattr(label_checks, "_CHUNK", part)
    records, hw = posed.copy(), sizes(FRAMES)
    second = np.arange(FRAMES) >= FRAMES // 2
    records["sequence"][second] += records["sequence"].max() + 1
    records["cam_mat"][second] = np.diag([0.5, 0.5, 1]) @ records["cam_mat"][second]
    hw[second] //= 2
    assert find_faults("train", records, hw, hw, [], standin) == {}
    for row in (2, 7):  # others' faults stay theirs, also behind a frame that has one already
        PLANTED["millimetres"][0](records[row])
    met = [(4, Fault(Reason.MISSING, "gone"))]
    faults = find_faults("train", records, hw, hw, met, standin)
    assert {row: fault.reason for row, fault in faults.items()} == {
        2: Reason.HAND,
        4: Reason.MISSING,
        7: Reason.HAND,
    }
