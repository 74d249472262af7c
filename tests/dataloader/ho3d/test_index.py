"""The packed annotation index: built once, right, and honest about what it could not read."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.ho3d import index as index_module
from dataloader.ho3d.index import open_index
from src.config import DatasetConfig, RunConfig, SplitConfig
from src.errors import DataError
from tests.dataloader.tree import HO3D21, SIZE, FanHand, evaluation_meta, train_meta, write_meta, write_tree

SEQUENCES = {"ABF10": 3, "MC1": 4}


def config_of(root: Path, **fields: object) -> DatasetConfig:
    """Reads `root` in this process."""
    return dataclasses.replace(DatasetConfig(root_dir=root), **fields)


def build(root: Path, name: str = "train", **fields: object) -> index_module.AnnotationIndex:
    """Build or reuse, then open."""
    return open_index(config_of(root, **fields), name, FanHand(), show_progress=False)  # type: ignore[arg-type]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the annotations that are read."""
    seen: list[Path] = []
    original = index_module.read_meta
    monkeypatch.setattr(
        index_module, "read_meta", lambda path, name: (seen.append(path), original(path, name))[1]
    )
    return seen


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    """Rows in the order of the list, each with its own frame's labels; nothing converted yet."""
    frames = write_tree(tmp_path, SEQUENCES)
    index = build(tmp_path)
    assert [index.frame_id(i) for i in range(len(index.rows))] == list(frames)
    for row, frame in zip(index.rows, frames.values(), strict=True):
        meta = train_meta(frame)
        np.testing.assert_allclose(row["joints"], meta["handJoints3D"], atol=1e-7)  # float32 of 0.7 m
        np.testing.assert_allclose(row["trans"], meta["handTrans"], atol=1e-7)
        np.testing.assert_allclose(row["betas"], meta["handBeta"], rtol=1e-6)
        np.testing.assert_allclose(row["rotations"][0], np.diag([1, -1, -1]) @ frame.rotation, atol=1e-6)
        np.testing.assert_allclose(row["cam_mat"], frame.intrinsics, rtol=1e-6)
    assert isinstance(index.rows, np.memmap)


def test_second_start_reads_no_annotation(tmp_path: Path, reads: list[Path]) -> None:
    """The first version read everything at every start, on every rank (lesson 21)."""
    write_tree(tmp_path, SEQUENCES)
    build(tmp_path)
    assert len(reads) == 7
    build(tmp_path)
    build(tmp_path)
    assert len(reads) == 7


def test_frames_outside_the_list_are_never_read(tmp_path: Path, reads: list[Path]) -> None:
    """HO3D has frames on disk whose annotations are None; only listed frames count."""
    write_tree(tmp_path, SEQUENCES)
    write_meta(tmp_path / "train/MC1/meta/0002.pkl", {"handJoints3D": None})
    assert len(build(tmp_path).rows) == 7
    assert all(path.stem != "0002" for path in reads)


def test_changed_data_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    """A stale index would train on the labels of yesterday's list."""
    write_tree(tmp_path, SEQUENCES)
    build(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(reversed(lines)))
    index = build(tmp_path)
    assert index.frame_id(0) == f"train/{lines[-1]}"
    assert len(reads) == 14


def test_another_hand_checks_the_labels_anew(tmp_path: Path) -> None:
    """With an index that was checked with yesterday's hand, labels that today's does not decode pass."""
    write_tree(tmp_path, SEQUENCES)
    build(tmp_path)
    with pytest.raises(DataError, match="7 joints not what the hand model decodes"):
        open_index(config_of(tmp_path), "train", FanHand(1.3), show_progress=False)  # type: ignore[arg-type]


def test_other_frames_left_out_are_other_frames(tmp_path: Path) -> None:
    """Which frames an index holds is compared between ranks, runs and scores, also under one list."""
    frames = write_tree(tmp_path, SEQUENCES)
    ids = {build(tmp_path).sha256}
    for name in ("train/MC1/0003", "train/ABF10/0003"):
        sequence, frame = name.split("/")[1:]
        path = tmp_path / f"train/{sequence}/meta/{frame}.pkl"
        path.write_bytes(b"")
        ids.add(build(tmp_path, max_unusable=1).sha256)
        write_meta(path, train_meta(frames[name]))
    assert len(ids) == 3, "two of: all frames, without MC1/0003, without ABF10/0003 have one identity"


def test_a_damaged_index_is_built_anew(tmp_path: Path, reads: list[Path]) -> None:
    """One flipped bit in the array is a wrong label, without a word."""
    write_tree(tmp_path, SEQUENCES)
    whole = np.array(build(tmp_path).rows)
    for path in tmp_path.glob(".utnet/train-*/rows.npy"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert np.array(build(tmp_path).rows).tobytes() == whole.tobytes()
    assert len(reads) == 14


def test_labels_rewritten_in_place_are_noticed(tmp_path: Path) -> None:
    """A script that mends annotations leaves names and folders as they were; the old labels would stay."""
    frames = write_tree(tmp_path, SEQUENCES)
    before = build(tmp_path)
    path, frame = tmp_path / "train/MC1/meta/0003.pkl", frames["train/MC1/0003"]
    folder = path.parent.stat()
    mended = train_meta(dataclasses.replace(frame, betas=frame.betas + 0.25))
    write_meta(path, mended)
    os.utime(path.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    after = build(tmp_path)
    row = [before.frame_id(i) for i in range(7)].index("train/MC1/0003")
    np.testing.assert_allclose(after.rows["betas"][row], before.rows["betas"][row] + 0.25, rtol=1e-6)
    assert after.sha256 == before.sha256  # the same frames
    assert after.labels_sha256 != before.labels_sha256


def test_annotations_exchanged_with_their_times_are_noticed(tmp_path: Path) -> None:
    """`cp -p` keeps sizes and times: two frames get each other's labels, and nothing else tells."""
    write_tree(tmp_path, SEQUENCES)
    first, second = sorted((tmp_path / "train" / "MC1" / "meta").iterdir())[:2]
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(9000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    before = build(tmp_path)
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    after = build(tmp_path)
    rows = [
        [index.frame_id(i) for i in range(7)].index(f"train/MC1/{first.stem}") for index in (before, after)
    ]
    assert (before.rows["betas"][rows[0]] != after.rows["betas"][rows[1]]).any()
    assert before.labels_sha256 != after.labels_sha256


def test_a_picture_replaced_by_one_of_another_size_is_not_drawn(tmp_path: Path) -> None:
    """Written in place, it leaves its folder's time: labels and K of the old one would lie on the new one."""
    write_tree(tmp_path, SEQUENCES)
    config = RunConfig(dataset=config_of(tmp_path, num_workers=0), split=SplitConfig(val_percent=40))
    hand: Any = FanHand()
    train = build_dataset(config, "train", hand, show_progress=False)
    train.batch([SampleKey(0)])
    for kind in ("rgb", "depth"):
        path = train.frames.path(0, kind)
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), picture[: SIZE[0] // 2, : SIZE[1] // 2])
    size = f"picture is {SIZE[1] // 2} x {SIZE[0] // 2}, and was {SIZE[1]} x {SIZE[0]} when its labels"
    for opened in (train, build_dataset(config, "train", hand, show_progress=False)):
        with pytest.raises(DataError, match=size):
            opened.batch([SampleKey(0)])


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_an_unusable_picture_that_is_mended_in_place_is_usable(tmp_path: Path, kind: str) -> None:
    """So says the error: copied over, the file leaves its folder its time, and the error would stay."""
    write_tree(tmp_path, SEQUENCES)
    path = next((tmp_path / "train" / "MC1" / kind).iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    for _ in range(2):
        with pytest.raises(DataError, match=rf"1 of 7 frames are unusable.*train/MC1/{path.stem}"):
            build(tmp_path)
    path.write_bytes(whole)
    assert len(build(tmp_path).rows) == 7


def test_a_loader_process_reads_the_rows_that_its_run_opened(tmp_path: Path) -> None:
    """Another run rebuilds the index (one annotation restored): rows shift, val would hold training frames.

    A loader process beside a GPU gets the dataset pickled, maybe hours later.
    """
    frames = write_tree(tmp_path, SEQUENCES)
    path = tmp_path / "train/ABF10/meta/0003.pkl"
    path.write_bytes(b"")
    mine = build(tmp_path, max_unusable=1)
    names = [mine.frame_id(i) for i in range(len(mine.rows))]
    packed = pickle.dumps(mine)
    assert len(packed) < 3000
    write_meta(path, train_meta(frames["train/ABF10/0003"]))
    context = multiprocessing.get_context("fork")
    other = context.Process(target=build, args=(tmp_path,))
    other.start()
    other.join(60)
    assert other.exitcode == 0
    later = pickle.loads(packed)
    assert [later.frame_id(i) for i in range(len(later.rows))] == names
    assert later.rows.tobytes() == mine.rows.tobytes()
    assert len(build(tmp_path).rows) == len(names) + 1


@pytest.mark.parametrize(
    "defect", ["none", "missing key", "missing file", "garbage", "nan", "short", "unsafe"]
)
def test_unreadable_annotations_are_counted(
    tmp_path: Path, defect: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad frame must stop a run by name, and the user may decide to go on without it."""
    monkeypatch.chdir(tmp_path)
    frames = write_tree(tmp_path, SEQUENCES)
    path = tmp_path / "train/MC1/meta/0003.pkl"
    meta = train_meta(frames["train/MC1/0003"])
    if defect == "none":
        write_meta(path, meta | {"handPose": None})
    elif defect == "missing key":
        write_meta(path, {key: value for key, value in meta.items() if key != "handBeta"})
    elif defect == "missing file":
        path.unlink()
    elif defect == "garbage":
        path.write_bytes(b"\x80\x02garbage")
    elif defect == "nan":
        write_meta(path, meta | {"handTrans": np.array([0, np.nan, 0])})
    elif defect == "short":
        write_meta(path, meta | {"handJoints3D": np.zeros((16, 3))})
    else:
        path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(
        DataError,
        match=r"1 of 7 frames are unusable.*1 annotation unreadable: train/MC1/0003.*MC1/meta/0003.pkl.*"
        r"dataset.max_unusable=1",
    ):
        build(tmp_path)
    assert not (tmp_path / "ran").exists()
    with caplog.at_level("WARNING", logger="utnet"):
        index = build(tmp_path, max_unusable=1)
    assert len(index.rows) == 6
    assert index.left_out == 1
    assert "train/MC1/0003" not in [index.frame_id(i) for i in range(6)]
    assert "1 of 7 frames are unusable" in caplog.text
    with pytest.raises(DataError, match="unusable"):  # the tolerance is taken back
        build(tmp_path)


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_a_listed_frame_without_its_picture_is_named(tmp_path: Path, kind: str) -> None:
    """Found before training starts, not in its third hour; also if it goes after the index was built."""
    write_tree(tmp_path, SEQUENCES)
    build(tmp_path)
    path = next((tmp_path / "train/MC1" / kind).glob("0005.*"))
    path.unlink()
    with pytest.raises(
        DataError, match=rf"1 picture missing: train/MC1/0005\..*MC1/{kind}/0005.* is missing"
    ):
        build(tmp_path)


@pytest.mark.parametrize("kind", ["rgb", "depth", "meta"])
def test_a_fault_is_named_in_whichever_part_its_frame_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """83,325 frames are read in 334 parts: counted from its part's start, another frame is left out."""
    write_tree(tmp_path, {"ABF10": 5, "MC1": 6})
    monkeypatch.setattr(index_module, "_CHUNK", 4)
    next((tmp_path / "train/MC1" / kind).glob("0005.*")).unlink()
    with pytest.raises(DataError, match=r"1 of 11 frames are unusable.*: train/MC1/0005\."):
        build(tmp_path)
    index = build(tmp_path, max_unusable=1)
    names = [index.frame_id(row) for row in range(10)]
    assert [name for name in names if name.startswith("train/MC1")] == [
        f"train/MC1/{frame:04d}" for frame in (1, 3, 7, 9, 11)
    ]


def test_a_list_with_a_byte_order_mark_lists_the_same_frames(tmp_path: Path) -> None:
    """Windows editors put three bytes before the first name: it would be a sequence that does not exist."""
    write_tree(tmp_path, SEQUENCES)
    names = [index.frame_id(0) for index in [build(tmp_path)]]
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    index = build(tmp_path)
    assert [index.frame_id(0)] == names
    assert len(index.rows) == 7


def test_the_other_release_is_recognised(tmp_path: Path) -> None:
    """v2 and v3 differ in the pictures' ending; the message says which key to change."""
    write_tree(tmp_path, {"MC1": 2}, version="v2")
    with pytest.raises(DataError, match=r"set dataset.version=v2"):
        build(tmp_path)
    assert len(build(tmp_path, version="v2").rows) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("ABF10/0001\nABF10/0001\n", "listed twice"),
        ("ABF10\n", "line 1"),
    ],
)
def test_a_broken_list_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    """An empty train.txt must not become a training run of zero steps."""
    write_tree(tmp_path, SEQUENCES)
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        build(tmp_path)


def test_no_data_set_says_where_to_get_one(tmp_path: Path) -> None:
    """The first message a new user sees."""
    with pytest.raises(DataError, match=r"no data set.*dataloader.synthetic"):
        build(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no train.txt"):
        build(tmp_path)


def test_the_number_of_frames_can_be_demanded(tmp_path: Path) -> None:
    """An incomplete download of HO3D_v3 must not pass for 83,325 frames."""
    write_tree(tmp_path, SEQUENCES)
    assert len(build(tmp_path, expected_train_frames=7).rows) == 7
    with pytest.raises(DataError, match="lists 7 frames, want 83,325"):
        build(tmp_path, expected_train_frames=83_325)


def test_an_index_folder_serves_several_trees(tmp_path: Path) -> None:
    """A read-only data set keeps its index elsewhere; two of them must not overwrite each other's."""
    for name, count in (("a", 2), ("b", 3)):
        write_tree(tmp_path / name, {"MC1": count})
    for name, count in (("a", 2), ("b", 3), ("a", 2)):
        assert len(build(tmp_path / name, index_dir=tmp_path / "index").rows) == count
        assert not (tmp_path / name / ".utnet").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Set dataset.index_dir"):
        build(tmp_path / "a", index_dir=tmp_path / "file" / "index")


def test_a_pool_gives_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames must not change places when several processes read them."""
    write_tree(tmp_path, {"ABF10": 5, "MC1": 6})
    alone = np.array(build(tmp_path, index_dir=tmp_path / "1").rows)
    monkeypatch.setattr(index_module, "_SMALL", 0)
    monkeypatch.setattr(index_module, "_CHUNK", 2)
    monkeypatch.setattr(index_module, "worker_count", lambda: 2)
    pooled = build(tmp_path, index_dir=tmp_path / "2").rows
    assert alone.tobytes() == np.array(pooled).tobytes()


def _ensure(root: Path, log: Path) -> None:
    """Build the index in a process of its own and note each annotation that was read."""
    original = index_module.read_meta

    def noted(path: Path, name: str) -> object:
        with log.open("a") as file:
            file.write(f"{path}\n")
        return original(path, name)  # type: ignore[arg-type]

    index_module.read_meta = noted  # type: ignore[assignment]
    build(root)


def test_ranks_that_start_together_build_it_once(tmp_path: Path) -> None:
    """Four ranks reading 83,325 pickles each is what made the first version start in minutes (lesson 21)."""
    write_tree(tmp_path, SEQUENCES)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_ensure, args=(tmp_path, tmp_path / "log")) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 7


def test_evaluation_holds_the_wrist_and_the_box(tmp_path: Path) -> None:
    """Without the public ground truth nothing but the wrist may look like a label."""
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 2, "AP10": 1}, truth=False)
    index = build(tmp_path, "evaluation")
    assert [index.frame_id(i) for i in range(3)] == [key for key in frames if key.startswith("evaluation")]
    assert not index.rows["joints_known"].any()
    assert np.isnan(index.rows["joints"][:, 1:]).all()
    meta = evaluation_meta(frames["evaluation/AP10/0001"])
    np.testing.assert_allclose(index.rows["joints"][2, 0], meta["handJoints3D"], atol=1e-7)
    np.testing.assert_array_equal(index.rows["box"][2], meta["handBoundingBox"])


def test_public_ground_truth_is_taken_in_and_checked(tmp_path: Path) -> None:
    """Ground truth of another order or another axis would give scores of somebody else's frames."""
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 3}, truth=False)
    assert not build(tmp_path, "evaluation").rows["joints_known"].any()
    rows = np.stack([f.array(HO3D21) for key, f in frames.items() if key.startswith("evaluation")]) * [
        1,
        -1,
        -1,
    ]
    path = tmp_path / "evaluation_xyz.json"
    path.write_text(json.dumps(rows.tolist()))
    index = build(tmp_path, "evaluation")  # the new file is noticed
    assert index.rows["joints_known"].all()
    np.testing.assert_allclose(index.rows["joints"], rows, atol=1e-7)
    bent = rows.copy()
    bent[1, HO3D21.index("ring_3")] += [0.0, 0.03, 0.0]
    for wrong, message in (
        (rows[::-1], "mm"),
        (rows * [1, -1, -1], "mm"),
        (rows * 1000, "mm"),
        (rows[:2], "2 rows for the 3 frames"),
        (bent, r"(?s)1 of 3 frames .*evaluation/SM1/.*in the ground truth"),
    ):
        path.write_text(json.dumps(wrong.tolist()))
        with pytest.raises(DataError, match=message):
            build(tmp_path, "evaluation")
