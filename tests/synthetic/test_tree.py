"""The written files are HO3D's: layout, keys, types, axes, orders, encodings."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dataloader.synthetic.common import Array
from dataloader.synthetic.frames import encode_depth, write_rgb
from src.errors import DataError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset
from src.runtime.files import safe_pickle
from src.schema import DEPTH_UNIT_M
from tests.synthetic.conftest import SMALL

FLIP = np.array([1.0, -1.0, -1.0])
ARRAYS = {
    "camMat": ((3, 3), "f8"), "objRot": ((3, 1), "f8"), "objTrans": ((3,), "f4"),
    "objCorners3D": ((8, 3), "f8"), "objCorners3DRest": ((8, 3), "f8"),
}  # fmt: skip
OF_SPLIT: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "train": {
        "handPose": ((48,), "f4"), "handBeta": ((10,), "f4"), "handTrans": ((3,), "f4"),
        "handJoints3D": ((21, 3), "f8"),
    },
    "evaluation": {"handJoints3D": ((3,), "f4")},
}  # fmt: skip
OTHERS = {"train": {"objName", "objLabel", "camIDList"}}
OTHERS["evaluation"] = OTHERS["train"] | {"handBoundingBox"}


def frames(tree: Path, split: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Sequence, frame and annotation, read as the loader reads it, of each line of a list."""
    out = []
    for line in (tree / f"{split}.txt").read_text().split():
        sequence, frame = line.split("/")
        path = tree / split / sequence / "meta" / f"{frame}.pkl"
        meta = safe_pickle.load(path, allow=safe_pickle.META_GLOBALS, what="annotation")
        out.append((sequence, frame, meta))
    return out


def pixels_of(points_gl_m: Array, meta: dict[str, Any]) -> Array:
    """(N, 2) where points of the OpenGL camera are in the picture."""
    pixels = (points_gl_m * FLIP) @ meta["camMat"].T
    return pixels[:, :2] / pixels[:, 2:]


def test_layout(tree: Path) -> None:
    """Every listed frame has its three files and no others lie about.

    name[:-1] is the motion: a split by motion keeps its cameras, which show the same instants, together.
    """
    motions: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, folders in (("train", SMALL.sequences), ("evaluation", SMALL.evaluation_sequences)):
        listed = frames(tree, split)
        wanted = set()
        for sequence, frame, _ in listed:
            motions[f"{split} {sequence[:-1]}"][sequence].add(frame)
            for kind, suffix in (("rgb", ".jpg"), ("depth", ".png"), ("meta", ".pkl")):
                wanted.add(Path(split, sequence, kind, f"{frame}{suffix}"))
        assert len(wanted) == 3 * len(listed) == 3 * folders * SMALL.frames
        assert {p.relative_to(tree) for p in (tree / split).rglob("*.*")} == wanted
    assert {p.name for p in tree.iterdir()} == {
        "train", "evaluation", "train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json",
        "synthetic.json",
    }  # fmt: skip
    assert sorted(len(views) for views in motions.values()) == [1, 2, 3]
    assert all(len({frozenset(shown) for shown in views.values()}) == 1 for views in motions.values())
    assert len({name.split()[1] for name in motions}) == len(motions), "a motion is in both splits"


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_annotations_have_ho3ds_keys_and_types(tree: Path, split: str) -> None:
    """The mixture of float types is HO3D's, no box is given away in train, no pose in evaluation."""
    for _, _, meta in frames(tree, split):
        arrays = ARRAYS | OF_SPLIT[split]
        assert set(meta) == set(arrays) | OTHERS[split]
        assert {key: (meta[key].shape, meta[key].dtype.str[1:]) for key in arrays} == arrays
        assert (meta["handJoints3D"][..., 2] < 0).all(), "OpenGL: the hand is at negative z"


def test_evaluation_truth_belongs_to_its_lines(tree: Path) -> None:
    """Rows are in the list's order, and one hand each: the tips are the vertices that HO3D calls tips."""
    joints, vertices = (
        np.array(json.loads((tree / f"evaluation_{key}.json").read_text())) for key in ("xyz", "verts")
    )
    listed = frames(tree, "evaluation")
    assert vertices.shape == (len(listed), 778, 3)
    np.testing.assert_allclose(vertices[:, [744, 333, 444, 555, 672]], joints[:, 16:], atol=2e-7)
    for (_, _, meta), truth in zip(listed, joints, strict=True):
        np.testing.assert_allclose(meta["handJoints3D"], truth[0], atol=1e-6)
        x0, y0, x1, y1 = meta["handBoundingBox"]
        pixels = pixels_of(truth, meta)
        assert ((pixels >= [x0, y0]) & (pixels <= [x1, y1])).all()


def test_parameters_decode_to_the_labelled_joints(tree: Path, asset: HandAsset) -> None:
    """Pose, betas and translation in OpenGL axes give handJoints3D joint by joint (lesson 3), wrist by both
    paths."""
    layer = ManoLayer.from_asset(asset).double()
    order = list(permutation(OPENPOSE21, HO3D21))
    for _, _, meta in frames(tree, "train"):
        turns = np.stack([cv2.Rodrigues(v)[0] for v in meta["handPose"].astype(np.float64).reshape(16, 3)])
        given = (turns[:1], turns[None, 1:], meta["handBeta"][None], meta["handTrans"][None])
        out = layer(*(torch.from_numpy(value.astype(np.float64)) for value in given))
        found = out.joints_m[0, order].numpy()
        np.testing.assert_allclose(found, meta["handJoints3D"], atol=1e-6)  # float32 labels
        rest = asset.joint_regressor @ (asset.v_template + asset.shapedirs @ meta["handBeta"])
        np.testing.assert_allclose(meta["handTrans"] + rest[0], meta["handJoints3D"][0], atol=1e-6)


def test_labels_lie_on_what_was_painted(tree: Path) -> None:
    """Depth read from the PNG at each projected joint is that of skin over the joint, or of something in
    front.

    A flipped axis, swapped bytes or a wrong K puts the joints on the table.
    """
    on_hand, total = 0, 0
    for sequence, frame, meta in frames(tree, "train"):
        bgr = cv2.imread(str(tree / "train" / sequence / "depth" / f"{frame}.png"))
        assert bgr.shape == (480, 640, 3)
        assert cv2.imread(str(tree / "train" / sequence / "rgb" / f"{frame}.jpg")).shape == (480, 640, 3)
        depth = (bgr[..., 2].astype(np.float64) + 256.0 * bgr[..., 1]) * DEPTH_UNIT_M
        column, row = np.round(pixels_of(meta["handJoints3D"], meta)).astype(int).T
        measured = depth[row.clip(0, 479), column.clip(0, 639)]
        on_hand += ((measured > 0) & (measured < 0.006 - meta["handJoints3D"][:, 2])).sum()
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
