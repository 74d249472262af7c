"""The packed annotation index: built once, right, and honest about what it could not read."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataloader.batches.samplers import SampleKey
from dataloader.ho3d import index as index_module
from dataloader.ho3d.index import AnnotationIndex, open_index
from src.errors import DataError
from tests.dataloader.tree import (
    FLIP,
    HO3D21,
    SIZE,
    FanHand,
    Frame,
    dataset_of,
    run_config,
    train_meta,
    write_meta,
    write_tree,
)

SEQUENCES = {"ABF10": 3, "MC1": 4}
FORK = multiprocessing.get_context("fork")


def build(root: Path, name: str = "train", size: float = 1.0, **fields: object) -> AnnotationIndex:
    """Build or reuse, then open."""
    config = run_config(root, dataset=fields).dataset
    return open_index(config, name, FanHand(size), show_progress=False)  # type: ignore[arg-type]


def names(index: AnnotationIndex) -> list[str]:
    return [index.frame_id(row) for row in range(len(index.rows))]


@pytest.fixture
def frames(tmp_path: Path) -> dict[str, Frame]:
    """What `tmp_path` holds."""
    return write_tree(tmp_path, SEQUENCES)


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many annotations have been read, by whichever process."""
    original = index_module.read_meta

    def noted(path: Path, name: Any) -> object:
        with (tmp_path / "log").open("a") as file:
            file.write(f"{path}\n")
        return original(path, name)

    monkeypatch.setattr(index_module, "read_meta", noted)
    return lambda: len((tmp_path / "log").read_text().splitlines())


def test_records_hold_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the order of the list, each with its own frame's labels, nothing converted yet; read in parts,
    turned in other parts, by one process or by several: 83,325 frames are read in 334 parts.
    """
    frames = write_tree(tmp_path, {"ABF10": 5, "MC1": 6})
    whole = build(tmp_path)
    assert isinstance(whole.rows, np.memmap)
    for chunk, rotations, workers in ((4, 3, 1), (2, 64, 2)):
        monkeypatch.setattr(index_module, "_SMALL", 0)
        monkeypatch.setattr(index_module, "_CHUNK", chunk)
        monkeypatch.setattr(index_module, "_ROTATION_CHUNK", rotations)
        monkeypatch.setattr(index_module, "worker_count", lambda workers=workers: workers)
        index = build(tmp_path, index_dir=tmp_path / str(workers))
        assert index.rows.tobytes() == whole.rows.tobytes()
    assert names(index) == list(frames)
    for row, frame in zip(index.rows, frames.values(), strict=True):
        meta = train_meta(frame)
        np.testing.assert_allclose(row["joints"], meta["handJoints3D"], atol=1e-7)  # float32 of 0.7 m
        np.testing.assert_allclose(row["trans"], meta["handTrans"], atol=1e-7)
        np.testing.assert_allclose(row["betas"], meta["handBeta"], rtol=1e-6)
        np.testing.assert_allclose(row["rotations"][0], FLIP @ frame.rotation, atol=1e-6)
        np.testing.assert_allclose(row["cam_mat"], frame.intrinsics, rtol=1e-6)
    path = index.path(8, "rgb")  # counted from its part's start, another frame would be left out
    path.unlink()
    with pytest.raises(DataError, match=r"1 of 11 frames are unusable.*: train/MC1/0007\."):
        build(tmp_path, index_dir=tmp_path / "2")
    assert names(build(tmp_path, max_unusable=1)) == [*names(index)[:8], *names(index)[9:]]


def test_second_start_reads_no_annotation(
    tmp_path: Path, frames: dict[str, Frame], reads: Callable[[], int]
) -> None:
    """The first version read everything at every start (lesson 21); of HO3D's frames outside the list the
    annotations are None. Another list, or a flipped bit in the array, is noticed.
    """
    write_meta(tmp_path / "train/MC1/meta/0002.pkl", {"handJoints3D": None})
    whole = build(tmp_path).rows.tobytes()
    assert build(tmp_path).rows.tobytes() == whole
    assert reads() == 7
    for path in tmp_path.glob(".utnet/train-*/rows.npy"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert build(tmp_path).rows.tobytes() == whole
    assert reads() == 14
    lines = (tmp_path / "train.txt").read_text().splitlines()
    for chosen in (lines[:6], lines[1:], lines[::-1]):
        (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(chosen).encode())  # as on Windows
        assert names(build(tmp_path)) == [f"train/{line}" for line in chosen]


def test_ranks_that_start_together_build_it_once(
    tmp_path: Path, frames: dict[str, Frame], reads: Callable[[], int]
) -> None:
    """Four ranks reading 83,325 pickles each is what made the first version start in minutes (lesson 21)."""
    ranks = [FORK.Process(target=build, args=(tmp_path,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert reads() == 7


def test_another_hand_checks_the_labels_anew(tmp_path: Path, frames: dict[str, Frame]) -> None:
    """With an index that was checked with yesterday's hand, labels that today's does not decode pass."""
    build(tmp_path)
    with pytest.raises(DataError, match="7 joints not what the hand model decodes"):
        build(tmp_path, size=1.3)


def test_other_frames_left_out_are_other_frames(tmp_path: Path, frames: dict[str, Frame]) -> None:
    """Which frames an index holds is compared between ranks, runs and scores, also under one list."""
    ids = {build(tmp_path).sha256}
    for name in ("MC1/meta/0003", "ABF10/meta/0003"):
        path = tmp_path / f"train/{name}.pkl"
        whole = path.read_bytes()
        path.write_bytes(b"")
        ids.add(build(tmp_path, max_unusable=1).sha256)
        path.write_bytes(whole)
    assert len(ids) == 3, "two of: all frames, without MC1/0003, without ABF10/0003 have one identity"


def test_labels_changed_behind_their_folders_back_are_noticed(
    tmp_path: Path, frames: dict[str, Frame]
) -> None:
    """A script that mends annotations leaves names and folders as they were, `cp -p` sizes and times too."""
    first, second = (tmp_path / f"train/MC1/meta/{number}.pkl" for number in ("0001", "0003"))
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(9000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    before, folder = build(tmp_path), first.parent.stat()
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    os.utime(first.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    row, other = (names(before).index(f"train/MC1/{path.stem}") for path in (first, second))
    assert build(tmp_path).rows["betas"][row].tolist() == before.rows["betas"][other].tolist()
    assert build(tmp_path).sha256 == before.sha256  # the same frames


def test_a_picture_replaced_by_one_of_another_size_is_not_drawn(
    tmp_path: Path, frames: dict[str, Frame]
) -> None:
    """Written in place, it leaves its folder's time: labels and K of the old one would lie on the new one."""
    config = run_config(tmp_path, split={"val_percent": 40})
    train = dataset_of(config)
    for kind in ("rgb", "depth"):
        path = train.frames.path(0, kind)
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), picture[: SIZE[0] // 2, : SIZE[1] // 2])
    size = f"picture is {SIZE[1] // 2} x {SIZE[0] // 2}, and was {SIZE[1]} x {SIZE[0]} when its labels"
    for opened in (train, dataset_of(config)):
        with pytest.raises(DataError, match=size):
            opened.batch([SampleKey(0)])


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_an_unusable_picture_that_is_mended_in_place_is_usable(
    tmp_path: Path, frames: dict[str, Frame], kind: str
) -> None:
    """So says the error: copied over, the file leaves its folder its time, and the error would stay."""
    path = next((tmp_path / "train" / "MC1" / kind).glob("0005.*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 7 frames are unusable.*train/MC1/0005"):
            build(tmp_path)
    path.write_bytes(whole)
    assert len(build(tmp_path).rows) == 7
    path.unlink()  # found before training starts, not in its third hour
    with pytest.raises(
        DataError, match=rf"1 picture missing: train/MC1/0005\..*MC1/{kind}/0005.* is missing"
    ):
        build(tmp_path)


def test_a_loader_process_reads_the_rows_that_its_run_opened(
    tmp_path: Path, frames: dict[str, Frame]
) -> None:
    """Another run rebuilds the index (one annotation restored): rows shift, val would hold training frames.

    A loader process beside a GPU gets the dataset pickled, maybe hours later.
    """
    path = tmp_path / "train/ABF10/meta/0003.pkl"
    path.write_bytes(b"")
    mine = build(tmp_path, max_unusable=1)
    kept = names(mine)
    packed = pickle.dumps(mine)
    assert len(packed) < 3000
    write_meta(path, train_meta(frames["train/ABF10/0003"]))
    other = FORK.Process(target=build, args=(tmp_path,))
    other.start()
    other.join(60)
    assert other.exitcode == 0
    later = pickle.loads(packed)
    assert names(later) == kept
    assert later.rows.tobytes() == mine.rows.tobytes()
    assert len(build(tmp_path).rows) == len(mine.rows) + 1


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"camMat": np.eye(3), "handJoints3D": np.full((16, 3), 0.5)}),
        b"\x80\x02garbage",
        b"cos\nsystem\n(S'touch ran'\ntR.",
    ],
)
def test_unreadable_annotations_are_counted(
    tmp_path: Path, frames: dict[str, Frame], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad frame must stop a run by name, and the user may decide to go on without it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train/MC1/meta/0003.pkl").write_bytes(content)
    message = (
        r"1 of 7 frames are unusable.*1 annotation unreadable: train/MC1/0003.*meta/0003.pkl.*unusable=1"
    )
    with pytest.raises(DataError, match=message):
        build(tmp_path)
    assert not (tmp_path / "ran").exists()
    index = build(tmp_path, max_unusable=1)
    assert index.left_out == 1
    assert names(index) == [name for name in frames if name != "train/MC1/0003"]
    with pytest.raises(DataError, match="unusable"):  # the tolerance is taken back
        build(tmp_path)


def test_the_other_release_is_recognised(tmp_path: Path) -> None:
    """Annotations of v2 and v3 look alike, their pictures' endings do not, also where an index is there."""
    write_tree(tmp_path, {"MC1": 2}, version="v2")
    for _ in range(2):
        with pytest.raises(DataError, match=r"\.jpg.*set dataset.version=v2"):
            build(tmp_path)
        assert len(build(tmp_path, version="v2").rows) == 2


def test_a_list_of_too_few_or_repeated_frames_is_one_clear_error(
    tmp_path: Path, frames: dict[str, Frame]
) -> None:
    """A download must not become a part of itself, nor a folder that is not there a run of zero steps."""
    assert len(build(tmp_path, expected_train_frames=7).rows) == 7
    with pytest.raises(DataError, match="lists 7 frames, want 83,325"):
        build(tmp_path, expected_train_frames=83_325)
    with pytest.raises(DataError, match=r"no data set.*dataloader.synthetic"):
        build(tmp_path / "nowhere")
    (tmp_path / "train.txt").write_text("ABF10/0001\nABF10/0001\n")
    with pytest.raises(DataError, match="line 2: ABF10/0001 is listed twice"):
        build(tmp_path)


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


def test_public_ground_truth_is_taken_in_and_checked(tmp_path: Path) -> None:
    """Ground truth of another order or another axis would give scores of somebody else's frames."""
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 3}, truth=False)
    assert not build(tmp_path, "evaluation").rows["joints_known"].any()
    rows = np.stack([f.array(HO3D21) for key, f in frames.items() if key.startswith("evaluation")]) @ FLIP
    bent = rows.copy()
    bent[1, HO3D21.index("ring_3")] += [0.0, 0.03, 0.0]
    for given, message in (
        (rows, ""),  # the new file is noticed
        (rows[::-1], "mm"),
        (rows * [1, -1, -1], "mm"),
        (bent, r"(?s)1 of 3 frames .*evaluation/SM1/.*in the ground truth"),
    ):
        (tmp_path / "evaluation_xyz.json").write_text(json.dumps(given.tolist()))
        with pytest.raises(DataError, match=message) if message else contextlib.nullcontext():
            np.testing.assert_allclose(build(tmp_path, "evaluation").rows["joints"], rows, atol=1e-7)
