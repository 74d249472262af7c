"""Every frame's labels are looked at: a fault is found in the frame that has it, and only there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from dataloader.ho3d import label_checks
from dataloader.ho3d.label_checks import find_faults, truth_faults
from dataloader.ho3d.labels import CV_FROM_GL, joint_boxes
from dataloader.ho3d.layout import frame_path, read_list
from dataloader.ho3d.meta import META_DTYPE, ListName, read_meta
from dataloader.ho3d.unusable import Fault, Reason
from dataloader.synthetic.writer import Parameters
from dataloader.synthetic.writer import write_tree as write_synthetic
from src.config import DatasetConfig
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import SIZE, write_tree
from tests.hand_file import hand_file

Records = np.ndarray
FRAMES, ROW = 12, 7
FINGERS = [i for i, name in enumerate(HO3D21) if name != "wrist" and not name.endswith("_1")]
RING_3, INDEX_4 = HO3D21.index("ring_3"), HO3D21.index("index_4")
OPENPOSE_ORDER = list(permutation(HO3D21, OPENPOSE21))


def read_all(root: Path, name: ListName) -> Records:
    """Records of a tree in the order of its list, numbered by sequence."""
    config = DatasetConfig(root_dir=root)
    listed = read_list(config, name)
    rows = np.zeros(len(listed.frames), META_DTYPE)
    for k, (sequence, frame) in enumerate(listed.frames):
        rows[k] = read_meta(frame_path(config, f"{name}/{sequence}/{frame:04d}", "meta"), name)
        rows[k]["sequence"] = listed.sequences.index(sequence)
    rows["rgb_hw"] = rows["depth_hw"] = SIZE
    return rows


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, standin: ManoLayer) -> dict[str, Records]:
    """Twelve posed hands of a training list, twelve of an evaluation list, and of one hand that moves."""
    root = tmp_path_factory.mktemp("labels")
    write_posed_hands(root / "posed", standin, FRAMES)
    write_tree(root / "boxed", {"MC1": 1}, {"SM1": FRAMES}, truth=False)
    train = read_all(root / "posed", "train")
    moved = np.linspace(-0.05, 0.05, FRAMES)[:, None, None] * [1.0, 1.0, 0.0]
    truth = train.copy()
    truth["joints"] = train["joints"][:1] + moved
    return {"train": train, "evaluation": read_all(root / "boxed", "evaluation"), "truth": truth}


def faults_of(
    name: str, records: Records, hand: ManoLayer, met: Iterable[tuple[int, Fault]] = ()
) -> dict[int, Fault]:
    if name == "truth":
        return truth_faults(records["sequence"], records["joints"].astype(np.float64))
    return find_faults(name, records, met, hand)  # type: ignore[arg-type]


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


def _at(field: str, place: object, value: object) -> Plant:
    """Add to some numbers of a field."""

    def plant(row: Records) -> None:
        row[field][place] += value

    return plant


def _camera(*factors: list[float]) -> Plant:
    """Each number of the camera matrix times another."""
    return _set("cam_mat", lambda k: k * factors)


def _far(row: Records) -> None:
    row["joints"][:, 2] -= 20
    row["trans"][2] -= 20


NOISE = np.random.default_rng(0).normal(0, 0.03, (len(FINGERS), 3))
ONES = [1, 1, 1]
CAMERA, BEHIND, HAND, OUTSIDE, DECODE = list(Reason)[-5:]
TRAIN, BOXED, TRUTH = "train", "evaluation", "truth"
PLANTED: dict[str, tuple[str, Plant, Reason, str]] = {
    "camera transposed": (TRAIN, _set("cam_mat", lambda k: k.T), CAMERA, r"want \[\[fx, 0, cx\]"),
    "camera nan": (TRAIN, _at("cam_mat", (1, 1), np.nan), CAMERA, r"nan\] px .* want 0\.2 to 10"),
    "camera of half": (TRAIN, _camera([0.5] * 3, [0.5] * 3, ONES), CAMERA, r"by 0\.25 sides"),
    "one focal length": (TRAIN, _camera([2, 1, 1], ONES, ONES), CAMERA, r"ratio .* want 0\.8 to 1\.25"),
    "camera 1 % off": (TRAIN, _camera([1.01, 1, 1], [1, 1.01, 1], ONES), CAMERA, r"in most frames"),
    "OpenCV axes": (TRAIN, _set("joints", lambda j: j * [1, -1, -1]), BEHIND, r"is -0\.\d+ m in front"),
    "one joint behind": (TRAIN, _at("joints", INDEX_4, 0.9), BEHIND, r"index_4 is -0\.\d+ m .* 0\.1 or"),
    "millimetres": (TRAIN, _set("joints", lambda j: j * 1000), HAND, r"knuckle is \d{5,}\.\d mm"),
    "a joint far off": (TRAIN, _at("joints", INDEX_4, -0.4), HAND, r"index_4 is \d{3} mm .* most 300"),
    "betas of -12": (TRAIN, _set("betas", lambda b: 0 * b - 12), HAND, r"reaches 12\.0 standard"),
    "left": (TRAIN, lambda row: move(row, (-700, 0)), OUTSIDE, r"no part of .* 640 x 480 .* \[-\d"),
    "far away": (TRAIN, _far, OUTSIDE, r"box is \d\.\d px long, want 8 or more"),
    "noisy fingers": (TRAIN, _at("joints", FINGERS, NOISE), DECODE, r"is \d{2,3}\.\d mm from what the"),
    "a knuckle bent": (TRAIN, _at("pose_aa", 15, 0.3), DECODE, r"thumb_4"),
    "OpenPose's order": (TRAIN, _set("joints", lambda j: j[OPENPOSE_ORDER]), DECODE, ""),
    "a left hand": (TRAIN, _set("joints", lambda j: j * [-1, 1, 1]), DECODE, ""),
    "given: behind": (BOXED, _set("joints", lambda j: -j), BEHIND, r"wrist is -0\.\d+ m in front"),
    "given: corners": (BOXED, _set("box", lambda b: b[[2, 1, 0, 3]]), HAND, "want x0 < x1 and y0 < y1"),
    "given: all": (BOXED, _set("box", lambda b: np.array([0, 0, 640, 480])), HAND, r"is \d{3} mm long"),
    "given: elsewhere": (BOXED, _set("box", lambda b: b + 500), HAND, r"wrist is \d{3} mm from handB"),
    "truth: a tip": (TRUTH, _at("joints", (INDEX_4, 1), 0.02), HAND, r"index_4 is \d+ mm in the ground"),
    "truth: larger": (TRUTH, _set("joints", lambda j: j[0] + 1.2 * (j - j[0])), HAND, "most frames of"),
    "truth: behind": (TRUTH, _set("joints", lambda j: j * [1, 1, -1]), BEHIND, "in front"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_each_fault_is_found_in_its_frame(good: dict[str, Records], standin: ManoLayer, case: str) -> None:
    """One bad frame of many has one reason with what was measured; its neighbours have none."""
    name, plant, reason, message = PLANTED[case]
    records = good[name].copy()
    plant(records[ROW])
    faults = faults_of(name, records, standin)
    assert list(faults) == [ROW]
    assert faults[ROW].reason is reason, faults[ROW]
    assert re.search(message, faults[ROW].detail), faults[ROW].detail


def test_whole_frames_have_no_fault(good: dict[str, Records], standin: ManoLayer, tmp_path: Path) -> None:
    """A gate that refuses good frames costs data; the generator's and the tests' own pass it."""
    for name, records in good.items():
        assert faults_of(name, records, standin) == {}
    parameters = Parameters(sequences=3, frames=12, evaluation_sequences=2, annotations_only=True)
    write_synthetic(tmp_path, parameters, load_hand_asset(hand_file()))
    for name, count in (("train", 36), ("evaluation", 24)):
        records = read_all(tmp_path, name)  # type: ignore[arg-type]
        assert len(records) == count
        assert faults_of(name, records, standin) == {}


def test_a_quarter_of_bad_frames_is_found(good: dict[str, Records], standin: ManoLayer) -> None:
    """Where the median says that nothing is wrong (lesson 26); and all of them, where rows are one off."""
    records = good["train"].copy()
    for row in (0, 4, 8):
        records["joints"][row, FINGERS] += NOISE
    assert [(row, f.reason) for row, f in faults_of("train", records, standin).items()] == [
        (row, Reason.DECODE) for row in (0, 4, 8)
    ]
    records = good["train"].copy()
    records["pose_aa"] = np.roll(records["pose_aa"], 1, axis=0)
    assert len(faults_of("train", records, standin)) == FRAMES


def test_the_most_basic_reason_is_given(good: dict[str, Records], standin: ManoLayer) -> None:
    """Who repairs a frame begins with what makes the rest meaningless."""
    records = good["train"].copy()
    met = [
        (0, Fault(Reason.EMPTY, "rgb")),
        (0, Fault(Reason.ANNOTATION, "meta")),
        (1, Fault(Reason.FORMAT, "rgb")),
        (1, Fault(Reason.EMPTY, "depth")),
    ]
    records["rgb_hw"][0], records["depth_hw"][1] = 0, 0
    records["rgb_hw"][2], records["depth_hw"][3] = 10, 10
    records["cam_mat"][:5] = np.eye(3)
    records["joints"][:6] = 0
    records["joints"][6, 1:] = records["joints"][6, 0]
    move(records[6], (-900, 0))
    move(records[7], (-900, 0))
    records["trans"] += 0.1
    found = faults_of("train", records, standin, met)
    basic = ["ANNOTATION", "EMPTY", "SIZE", "SIZE", "CAMERA", "BEHIND", "HAND", "OUTSIDE", *["DECODE"] * 4]
    assert [found[row].reason.name for row in range(FRAMES)] == basic
    assert found[2].detail == "picture is 10 x 10, most of its sequence 640 x 480"
    assert found[3].detail == "depth is 10 x 10, its picture 640 x 480"


@pytest.mark.parametrize(("axis", "sign"), [(0, -1), (1, 1)])
def test_hands_at_the_border(good: dict[str, Records], standin: ManoLayer, axis: int, sign: int) -> None:
    """Half a hand is a hand, as HO3D has them; of less than a tenth nothing can be learned."""
    for visible, fits in ((0.5, True), (0.12, True), (0.08, False)):
        records = good["train"][:1].copy()
        edge = (SIZE[1] - 0.5, SIZE[0] - 0.5)[axis] if sign > 0 else -0.5
        for _ in range(6):  # a moved hand is seen under another angle, so its box changes a little
            box = joint_boxes(records["joints"] * CV_FROM_GL, records["cam_mat"])[0]
            length = max(box[2] - box[0], box[3] - box[1])
            inner = (box[axis] + box[axis + 2]) / 2 - sign * length / 2  # of the square around the box
            step = np.zeros(2)
            step[axis] = edge - sign * visible * length - inner
            move(records[0], tuple(step))
        assert (faults_of("train", records, standin) == {}) is fits, visible


def test_an_evaluation_hand_may_leave_the_picture(good: dict[str, Records], standin: ManoLayer) -> None:
    """No evaluation frame can be left out, so only what cannot be cropped is refused."""
    for right_edge, fits in ((60, True), (3, True), (-3, False)):
        records = good["evaluation"].copy()
        box = records["box"][ROW]
        move(records[ROW], (right_edge - float(box[2]), 0))
        box[[0, 2]] += right_edge - box[2]
        found = faults_of("evaluation", records, standin)
        assert [fault.reason for fault in found.values()] == ([] if fits else [Reason.OUTSIDE]), right_edge


def test_each_frame_is_judged_beside_its_own_picture_in_every_part(
    good: dict[str, Records], standin: ManoLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences have pictures of their own sizes, and 83,325 frames are looked at in parts."""
    monkeypatch.setattr(label_checks, "_CHUNK", 5)
    records = good["train"].copy()
    records["sequence"][6:] += 1
    records["cam_mat"][6:] = np.diag([0.5, 0.5, 1]) @ records["cam_mat"][6:]
    records["rgb_hw"][6:] //= 2
    records["depth_hw"][6:] //= 2
    assert faults_of("train", records, standin) == {}
    records["joints"][[2, 7]] *= 1000  # others' faults stay theirs, also behind a frame that has one already
    met = [(4, Fault(Reason.MISSING, "gone"))]
    faults = faults_of("train", records, standin, met)
    want = {2: Reason.HAND, 4: Reason.MISSING, 7: Reason.HAND}
    assert {row: fault.reason for row, fault in faults.items()} == want
