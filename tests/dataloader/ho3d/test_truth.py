"""HO3D's public ground truth: read a row at a time, mapped once for all processes, refused where it lies."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dataloader.build import build_dataset
from dataloader.ho3d import truth
from dataloader.ho3d.truth import require_ho3d_order
from dataloader.ho3d_dataset import HO3DDataset
from src.errors import DataError
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import FINGERS, HO3D21, OPENPOSE21, TIP_VERTICES, permutation
from src.hand.mano import ManoLayer
from src.runtime.files import json_rows
from src.runtime.seed import stream
from tests.dataloader import tree
from tests.dataloader.tree import FLIP, SIZE, FanHand, Frame, run_config, write_tree
from tests.hand_file import hand_file

COUNT = 3


def dataset(root: Path) -> HO3DDataset:
    return build_dataset(run_config(root), "evaluation", FanHand(), show_progress=False)


def meshes(frames: dict[str, Frame]) -> np.ndarray:
    """(N, 778, 3) OpenGL: a cloud about the fan's joints, whose tips are those of the fan."""
    random = stream(0, "meshes")
    rows = []
    for key, frame in frames.items():
        if key.startswith("evaluation/"):
            joints = np.array(list(frame.joints.values()))
            points = joints[random.integers(len(joints), size=778)] + random.normal(0.0, 0.008, (778, 3))
            for name, vertex in TIP_VERTICES.items():
                points[vertex] = frame.joints[name]
            rows.append(points @ FLIP)
    return np.stack(rows)


def write(path: Path, rows: object) -> None:
    path.write_text(json.dumps(rows.tolist() if isinstance(rows, np.ndarray) else rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 2, "AP10": 1})
    write(tmp_path / truth.VERTICES_FILE, meshes(frames))
    return tmp_path


def test_truth_is_the_text_to_the_last_bit_in_our_conventions(root: Path) -> None:
    """Scores of a submission must not depend on the precision in which the labels were kept."""
    opened = dataset(root)
    xyz = np.array(json.loads((root / truth.FILE).read_text()))
    verts = np.array(json.loads((root / truth.VERTICES_FILE).read_text()))
    joints, vertices = opened.frames.truth_joints(), opened.frames.truth_vertices(np.array([2, 0]))
    assert joints.dtype == vertices.dtype == np.float64
    for name in ("wrist", "ring_2", "pinky_2", "thumb_4"):
        expected = xyz[:, HO3D21.index(name)] * [1.0, -1.0, -1.0]
        assert np.array_equal(joints[:, OPENPOSE21.index(name)], expected)
    assert np.array_equal(vertices, verts[[2, 0]] * [1.0, -1.0, -1.0])
    assert np.array_equal(opened.frames.truth_joints(np.array([1])), joints[1:2])


def test_the_text_is_parsed_once_and_again_when_it_changes(root: Path, monkeypatch) -> None:
    """A gigabyte parsed by every rank at every start is minutes; a stale array is a wrong score."""
    dataset(root)
    parsed = []
    real = truth.point_rows
    monkeypatch.setattr(truth, "point_rows", lambda *a: parsed.append(a[2]) or real(*a))
    again = dataset(root)
    vertices = again.frames.truth_vertices()
    assert not parsed
    write(root / truth.VERTICES_FILE, again.frames.truth_vertices() @ FLIP + [0.001, 0.0, 0.0])
    changed = dataset(root).frames.truth_vertices()
    assert parsed
    np.testing.assert_allclose(changed - vertices, np.broadcast_to([0.001, 0, 0], changed.shape), atol=1e-12)


def test_other_truth_is_another_split(root: Path) -> None:
    """Ranks or files with edited labels must not pass for each other: their scores differ."""
    found = [dataset(root)]
    for name in (truth.FILE, truth.VERTICES_FILE):
        rows = np.array(json.loads((root / name).read_text()))
        rows[0, 5, 0] += 1e-6
        write(root / name, rows)
        found.append(dataset(root))
    (root / truth.VERTICES_FILE).unlink()
    found.append(dataset(root))
    (root / truth.FILE).unlink()
    found.append(dataset(root))
    assert len({opened.frames.split.id for opened in found}) == 5
    for opened in found:  # one name, in the log and in files
        assert f"split {opened.frames.split.id[:12]})" in opened.frames.split_line
        assert f"split {opened.frames.split.id[:12]})" in opened.frames.describe()
        assert pickle.loads(pickle.dumps(opened)).frames.split.id == opened.frames.split.id


def test_meshes_replaced_with_their_size_and_time_are_read_anew(root: Path) -> None:
    """`cp -p` of another release's file: scored against the old meshes, nobody would know."""
    path = root / truth.VERTICES_FILE
    before = np.array(dataset(root).frames.truth_vertices())
    state, rows = path.stat(), json.loads(path.read_text())
    rows[0][700][0] = round(rows[0][700][0], 3)
    path.write_text(json.dumps(rows).ljust(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert (dataset(root).frames.truth_vertices() != before).sum() == 1


def test_a_torn_array_is_built_anew(root: Path) -> None:
    """A copy of the folder that was cut short must not become an error of numpy, or half a score."""
    expected = dataset(root).frames.truth_vertices()
    (array,) = (root / ".utnet").glob("*-truth-*/vertices.npy")
    array.write_bytes(array.read_bytes()[:1000])
    assert np.array_equal(dataset(root).frames.truth_vertices(), expected)


def test_a_pickled_dataset_carries_no_truth(root: Path) -> None:
    """Loader processes get the dataset by pickle: 376 MB of labels must not travel with it."""
    opened = dataset(root)
    packed = pickle.dumps(opened)
    assert len(packed) < 20_000
    assert np.array_equal(pickle.loads(packed).frames.truth_vertices(), opened.frames.truth_vertices())


def test_missing_files_are_named_with_their_source(root: Path) -> None:
    """Without the files the split opens, so that predictions can be exported, and says what scores need."""
    assert dataset(root).frames.missing_truth() is None
    (root / truth.VERTICES_FILE).unlink()
    opened = dataset(root)
    assert opened.frames.truth_vertices() is None
    assert opened.frames.truth_joints() is not None
    assert truth.VERTICES_FILE in opened.frames.missing_truth()
    assert f"{truth.FILE} " not in opened.frames.missing_truth()
    (root / truth.FILE).unlink()
    opened = dataset(root)
    assert opened.frames.truth_joints() is None
    with pytest.raises(DataError) as caught:
        opened.frames.require_truth()
    for part in (truth.FILE, truth.VERTICES_FILE, "November 2024", "github.com", "export_submission"):
        assert part in str(caught.value)


def test_training_splits_have_no_official_truth(root: Path) -> None:
    """Official scores are of the official split alone."""
    config = run_config(root)
    opened = build_dataset(config, "train", FanHand(), show_progress=False)
    assert opened.frames.truth_joints() is None
    assert opened.frames.truth_vertices() is None
    assert opened.frames.missing_truth() is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:-1], "2 rows for the 3 frames"),
        (lambda rows: [*rows, rows[0]], "4 rows for the 3 frames"),
        (lambda rows: [rows[0], rows[1][:777], rows[2]], r"row 1 has shape \(777, 3\), want \(778, 3\)"),
        (lambda rows: [rows[0], rows[1], [p[:2] for p in rows[2]]], "row 2 has shape"),
        (lambda rows: [rows[0], 7, rows[2]], "row 1 is not a list of points"),
        (lambda rows: [rows[1], rows[0], rows[2]], "fingertips are .* different releases"),
        (
            lambda rows: [[[float("nan")] * 3, *rows[0][1:]], *rows[1:]],
            "holds 'NaN', so a number that is not",
        ),
    ],
)
def test_vertices_that_are_not_of_these_frames_are_refused(root: Path, spoil, message: str) -> None:
    """Another release, another order or a damaged file would score somebody else's frames."""
    path = root / truth.VERTICES_FILE
    write(path, spoil(json.loads(path.read_text())))
    with pytest.raises(DataError, match=message):
        dataset(root)
    assert not list((root / ".utnet").glob("*vertices*"))  # nothing half made stays


def exchanged(rows: np.ndarray, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Rows with joints of two names exchanged."""
    order = np.arange(21)
    for a, b in pairs:
        order[[HO3D21.index(a), HO3D21.index(b)]] = HO3D21.index(b), HO3D21.index(a)
    return rows[:, order]


def fingers(a: str, b: str, *, tips: bool) -> list[tuple[str, str]]:
    return [(f"{a}_{k}", f"{b}_{k}") for k in range(1, 5 if tips else 4)]


@pytest.mark.parametrize("with_meshes", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:, list(permutation(HO3D21, OPENPOSE21))],
        lambda rows: exchanged(rows, fingers("index", "middle", tips=False)),
        lambda rows: exchanged(rows, fingers("ring", "pinky", tips=False)),
        lambda rows: exchanged(rows, [("index_2", "index_3")]),
        lambda rows: exchanged(rows, [("thumb_1", "thumb_2")]),
    ],
)
def test_joints_in_another_order_are_refused(root: Path, spoil, with_meshes: bool) -> None:
    """They were scored: 9 mm of PA-MPJPE that no network can mend. The mesh tells of the tips alone."""
    if not with_meshes:
        (root / truth.VERTICES_FILE).unlink()
    write(root / truth.FILE, spoil(np.array(json.loads((root / truth.FILE).read_text()))))
    with pytest.raises(DataError, match="joints are not in HO3D's order"):
        dataset(root)


@pytest.mark.parametrize("pair", [("index", "middle"), ("ring", "pinky"), ("index", "pinky")])
def test_whole_fingers_in_another_order_are_refused(root: Path, pair: tuple[str, str]) -> None:
    """A file in another project's order of fingers, tips included, without the meshes that would tell."""
    (root / truth.VERTICES_FILE).unlink()
    rows = np.array(json.loads((root / truth.FILE).read_text()))
    write(root / truth.FILE, exchanged(rows, fingers(*pair, tips=True)))
    with pytest.raises(DataError, match=r"with fingers read as .* the hand's links would be"):
        dataset(root)


@pytest.mark.parametrize(("curl", "count"), [(0.2, 1), (0.5, 1), (0.8, 1), (0.5, 60)])
def test_genuine_joints_pass_whatever_subject_and_pose(curl: float, count: int) -> None:
    """A check that misfires on real hands would forbid the official scores: subjects and grasps vary."""
    hand, random = ManoLayer.from_file(hand_file()), stream(0, "order")
    turns = rotation_from_aa(torch.from_numpy(random.normal(0.0, curl, (count, 16, 3)))).float()
    betas = torch.from_numpy(random.normal(0.0, 1.5, (count, 10))).float()
    joints = hand(turns[:, 0], turns[:, 1:], betas, torch.zeros(count, 3)).joints_m.numpy()
    genuine = joints[:, list(permutation(OPENPOSE21, HO3D21))]
    require_ho3d_order(genuine, "here")
    for a, b in itertools.combinations(HO3D21[1:] if count > 1 else (), 2):
        with pytest.raises(DataError):
            require_ho3d_order(exchanged(genuine, [(a, b)]), "here")
    for other in list(itertools.permutations(FINGERS))[1:] if count > 1 else ():
        names = ("wrist", *(f"{other[FINGERS.index(n[:-2])]}_{n[-1]}" for n in HO3D21[1:]))
        with pytest.raises(DataError, match="fingers read as"):
            require_ho3d_order(genuine[:, list(permutation(HO3D21, names))], "here")


def test_a_few_rows_of_other_frames_are_refused(tmp_path: Path, monkeypatch) -> None:
    """Ninety-nine right rows in a hundred hid two hundred wrong ones of the official split."""

    def empty(folder: Path, frame: str, *_: object) -> None:
        """Of pictures nothing but their size is looked at here."""
        for kind, end in (("rgb", ".jpg"), ("depth", ".png")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{frame}{end}").write_bytes(black[end])

    black = {end: cv2.imencode(end, np.zeros((*SIZE, 3), np.uint8))[1].tobytes() for end in (".jpg", ".png")}
    monkeypatch.setattr(tree, "paint", lambda _: (None, None))
    monkeypatch.setattr(tree, "write_pictures", empty)
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 150})
    rows = np.array(json.loads((tmp_path / truth.FILE).read_text()))
    write(tmp_path / truth.VERTICES_FILE, meshes(frames))
    good = dataset(tmp_path).frames.truth_joints()
    noisy = meshes(frames)
    inner = [k for k in range(778) if k not in TIP_VERTICES.values()]
    noisy[9, inner] += stream(1, "noise").normal(0.0, 0.05, (len(inner), 3))
    write(tmp_path / truth.VERTICES_FILE, noisy)
    with pytest.raises(DataError, match=r"vertices are up to \d\d mm in 1 rows \(first: row 9\)"):
        dataset(tmp_path)
    other = meshes(frames)
    other[7] += [0.0, 0.05, 0.0]
    write(tmp_path / truth.VERTICES_FILE, other)
    with pytest.raises(DataError, match=r"fingertips are up to 50 mm in 1 rows \(first: row 7\)"):
        dataset(tmp_path)
    (tmp_path / truth.VERTICES_FILE).unlink()
    rows[100] -= [0.04, 0.0, 0.0]
    write(tmp_path / truth.FILE, rows)
    with pytest.raises(DataError, match=r"wrists are up to 40 mm in 1 rows \(first: row 100\)"):
        dataset(tmp_path)
    rows[100] += [0.04, 0.0, 0.0]
    rows[20:24] -= [0.0, 0.02, 0.0]
    write(tmp_path / truth.FILE, rows)
    with pytest.raises(DataError, match=r"wrists are 20 mm \(99th percentile\)"):
        dataset(tmp_path)
    rows[20:24] += [0.0, 0.02, 0.0]
    write(tmp_path / truth.FILE, rows)
    np.testing.assert_allclose(dataset(tmp_path).frames.truth_joints(), good, atol=1e-12)


def test_a_download_that_was_cut_short_is_refused(root: Path) -> None:
    """The last row is whole and the list is not closed: nothing else would notice one row too few."""
    path = root / truth.VERTICES_FILE
    path.write_text(path.read_text()[:-1])
    with pytest.raises(DataError, match="cut short, after 3 rows"):
        dataset(root)


@pytest.mark.parametrize("block", [1, 3, 64, 1 << 20])
def test_rows_are_found_wherever_a_block_ends(block: int) -> None:
    """A row that straddles two blocks must come out whole, to the last bit of the text's numbers."""
    text = b" [ [[1,2, 3] , [4,5,6]]\n,[[7,8,9],[1e-3,-2,0.1234567890123456789]] ] "
    file = io.BytesIO(text)
    slow = SimpleNamespace(read=lambda size: file.read(min(size, block)))
    rows = list(json_rows.point_rows(slow, 2, "x"))
    np.testing.assert_array_equal(rows, np.array(json.loads(text)))


@pytest.mark.parametrize("text", [b"[" * 200_000, b"[[" + b"[1,2,3]," * 3_000_000])
def test_a_text_that_would_take_all_memory_is_refused(text: bytes) -> None:
    """Brackets in brackets, or a row without end: a parser keeps all of it."""
    with pytest.raises(DataError, match="lists more than 3 deep, or no end of a row"):
        list(json_rows.point_rows(io.BytesIO(text), 1, "x"))


@pytest.mark.parametrize("text", [b"", b"{}", b"[[[1,2,3]]", b"[[[1,2,3]] [[1,2,3]]]", b"[[[1,2,3]]]]", b"7"])
def test_what_is_not_a_list_of_rows_is_an_error(text: bytes) -> None:
    """A missing comma or bracket means that bytes are missing, of rows as well perhaps."""
    with pytest.raises(DataError):
        list(json_rows.point_rows(io.BytesIO(text), 1, "x"))
