"""The written files are HO3D's: layout, keys, types, axes, orders, encodings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dataloader.synthetic.frames import encode_depth, write_rgb
from src.errors import DataError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset
from src.runtime.files import safe_pickle
from tests.synthetic.conftest import SMALL

FLIP = np.array([1.0, -1.0, -1.0])
COMMON = {
    "camMat": ((3, 3), "f8"),
    "objRot": ((3, 1), "f8"),
    "objTrans": ((3,), "f4"),
    "objCorners3D": ((8, 3), "f8"),
    "objCorners3DRest": ((8, 3), "f8"),
}
TRAIN = {
    "handPose": ((48,), "f4"),
    "handBeta": ((10,), "f4"),
    "handTrans": ((3,), "f4"),
    "handJoints3D": ((21, 3), "f8"),
}


def lines(tree: Path, split: str) -> list[str]:
    """Frames of a list file."""
    return (tree / f"{split}.txt").read_text().split()


def annotation(tree: Path, split: str, line: str) -> dict[str, Any]:
    """One meta, read as the loader reads it."""
    sequence, frame = line.split("/")
    path = tree / split / sequence / "meta" / f"{frame}.pkl"
    found = safe_pickle.load(path, allow=safe_pickle.META_GLOBALS, what="annotation")
    assert isinstance(found, dict)
    return found


def test_layout(tree: Path) -> None:
    """Every listed frame has its three files and no others lie about.

    A loader finds what HO3D_v3 would have.
    """
    for split, folders in (("train", SMALL.sequences), ("evaluation", SMALL.evaluation_sequences)):
        listed = lines(tree, split)
        assert len(listed) == len(set(listed)) == folders * SMALL.frames
        wanted = {
            Path(split, line.split("/")[0], kind, f"{line.split('/')[1]}{suffix}")
            for line in listed
            for kind, suffix in (("rgb", ".jpg"), ("depth", ".png"), ("meta", ".pkl"))
        }
        assert {p.relative_to(tree) for p in (tree / split).rglob("*.*")} == wanted
    assert {p.name for p in tree.iterdir()} == {
        "train", "evaluation", "train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json",
        "synthetic.json",
    }  # fmt: skip


def test_sequences_are_cameras_of_motions(tree: Path) -> None:
    """name[:-1] is the motion: a split by motion keeps all its cameras on one side, and they show the same
    instants."""
    frames: dict[str, set[str]] = {}
    for split in ("train", "evaluation"):
        for line in lines(tree, split):
            sequence, frame = line.split("/")
            assert sequence[-1].isdigit()
            frames.setdefault(sequence, set()).add(frame)
    motions: dict[str, list[str]] = {}
    for sequence in frames:
        motions.setdefault(sequence[:-1], []).append(sequence)
    assert sorted(len(views) for views in motions.values()) == [1, 2, 3]
    for views in motions.values():
        assert len({frozenset(frames[view]) for view in views}) == 1
    train = {line.split("/")[0][:-1] for line in lines(tree, "train")}
    assert not train & {line.split("/")[0][:-1] for line in lines(tree, "evaluation")}


def test_train_annotations(tree: Path) -> None:
    """Keys, shapes and the mixture of float types are HO3D's, and no box is given away in train."""
    for line in lines(tree, "train"):
        meta = annotation(tree, "train", line)
        assert set(meta) == {*COMMON, *TRAIN, "objName", "objLabel", "camIDList"}
        for key, (shape, kind) in {**COMMON, **TRAIN}.items():
            assert meta[key].shape == shape, key
            assert meta[key].dtype == np.dtype(kind), key
        assert (meta["handJoints3D"][:, 2] < 0).all(), "OpenGL: the hand is at negative z"


def test_evaluation_annotations(tree: Path) -> None:
    """Evaluation metas hold back everything but the wrist and a box, as HO3D does."""
    truth = json.loads((tree / "evaluation_xyz.json").read_text())
    for line, joints in zip(lines(tree, "evaluation"), truth, strict=True):
        meta = annotation(tree, "evaluation", line)
        assert set(meta) == {*COMMON, "handJoints3D", "handBoundingBox", "objName", "objLabel", "camIDList"}
        assert meta["handJoints3D"].shape == (3,)
        np.testing.assert_allclose(
            meta["handJoints3D"], joints[0], atol=1e-6
        )  # order of rows = order of lines
        pixels = (np.array(joints) * FLIP) @ meta["camMat"].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        x0, y0, x1, y1 = meta["handBoundingBox"]
        assert (pixels >= [x0, y0]).all()
        assert (pixels <= [x1, y1]).all()


def test_evaluation_truth_is_one_mesh(tree: Path) -> None:
    """Joints and vertices of a row are the same hand: the tips are the vertices that HO3D calls tips."""
    joints = np.array(json.loads((tree / "evaluation_xyz.json").read_text()))
    vertices = np.array(json.loads((tree / "evaluation_verts.json").read_text()))
    count = SMALL.evaluation_sequences * SMALL.frames
    assert joints.shape == (count, 21, 3)
    assert vertices.shape == (count, 778, 3)
    np.testing.assert_allclose(
        vertices[:, [744, 333, 444, 672, 555]][:, [0, 1, 2, 4, 3]], joints[:, 16:], atol=2e-7
    )


def test_parameters_decode_to_the_labelled_joints(tree: Path, asset: HandAsset) -> None:
    """Pose, betas and translation in OpenGL axes give handJoints3D joint by joint (lesson 3), wrist by both
    paths."""
    layer = ManoLayer.from_asset(asset).double()
    order = list(permutation(OPENPOSE21, HO3D21))
    for line in lines(tree, "train"):
        meta = annotation(tree, "train", line)
        turns = np.stack([cv2.Rodrigues(v)[0] for v in meta["handPose"].astype(np.float64).reshape(16, 3)])
        betas = torch.from_numpy(meta["handBeta"].astype(np.float64))[None]
        out = layer(
            torch.from_numpy(turns[:1]),
            torch.from_numpy(turns[None, 1:]),
            betas,
            torch.from_numpy(meta["handTrans"].astype(np.float64))[None],
        )
        np.testing.assert_allclose(
            out.joints_m[0, order].numpy(), meta["handJoints3D"], atol=1e-6
        )  # float32 labels
        rest = asset.joint_regressor @ (asset.v_template + asset.shapedirs @ betas[0].numpy())
        np.testing.assert_allclose(meta["handTrans"] + rest[0], meta["handJoints3D"][0], atol=1e-6)


def test_labels_lie_on_what_was_painted(tree: Path) -> None:
    """Depth read from the PNG at each projected joint is that of skin over the joint, or of something in
    front.

    A flipped axis, swapped bytes or a wrong K puts the joints on the table.
    """
    on_hand, total = 0, 0
    for line in lines(tree, "train"):
        meta = annotation(tree, "train", line)
        sequence, frame = line.split("/")
        bgr = cv2.imread(str(tree / "train" / sequence / "depth" / f"{frame}.png"))
        assert bgr.shape == (480, 640, 3)
        assert cv2.imread(str(tree / "train" / sequence / "rgb" / f"{frame}.jpg")).shape == (480, 640, 3)
        depth = (bgr[..., 2].astype(np.float64) + 256.0 * bgr[..., 1]) * 0.00012498664727900177
        points = meta["handJoints3D"] * FLIP
        pixels = points @ meta["camMat"].T
        column, row = np.round(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        measured = depth[row.clip(0, 479), column.clip(0, 639)]
        on_hand += ((measured > 0) & (measured < points[:, 2] + 0.006)).sum()
        total += (measured > 0).sum()
    assert on_hand / total > 0.97  # a bone beside its joint's skin at a silhouette may miss


def test_depth_bytes() -> None:
    """0x1234 units are red 0x34, green 0x12 (lesson 18); more than 16 bits is refused, never wrapped."""
    units = np.array([[0x1234, 0, 0xFFFF]])
    encoded = encode_depth((units * 0.00012498664727900177).astype(np.float64))
    np.testing.assert_array_equal(encoded[0], [[0, 0x12, 0x34], [0, 0, 0], [0, 0xFF, 0xFF]])
    with pytest.raises(DataError, match="16 bits"):
        encode_depth(np.full((1, 1), 8.3, np.float32))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_red_is_written_red(tmp_path: Path, suffix: str) -> None:
    """A pure red picture reads back with its red in OpenCV's last channel (lesson 17)."""
    red = np.zeros((480, 640, 3), np.uint8)
    red[..., 0] = 200
    write_rgb(tmp_path / f"red{suffix}", red)
    bgr = cv2.imread(str(tmp_path / f"red{suffix}"))
    np.testing.assert_allclose(bgr.mean((0, 1)), [0, 0, 200], atol=3)  # jpg loses a little
