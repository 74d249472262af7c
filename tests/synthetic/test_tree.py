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
from dataloader.synthetic.frames import encode_depth
from src.errors import DataError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset
from src.render.rasterizer import rasterize
from src.runtime.files import safe_pickle
from src.schema import DEPTH_UNIT_M
from tests.synthetic.conftest import SMALL, pixels_of

FLIP = np.array([1.0, -1.0, -1.0])
BOTH: dict[str, Any] = {
    "camMat": ((3, 3), "f8"), "objRot": ((3, 1), "f8"), "objTrans": ((3,), "f4"),
    "objCorners3D": ((8, 3), "f8"), "objCorners3DRest": ((8, 3), "f8"),
    "objName": str, "objLabel": int, "camIDList": list,
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {
    "train": BOTH | {
        "handPose": ((48,), "f4"), "handBeta": ((10,), "f4"), "handTrans": ((3,), "f4"),
        "handJoints3D": ((21, 3), "f8"),
    },
    "evaluation": BOTH | {"handJoints3D": ((3,), "f4"), "handBoundingBox": list},
}  # fmt: skip


def frames(tree: Path, split: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Sequence, frame and annotation, read as the loader reads it, of each line of a list."""
    out = []
    for line in (tree / f"{split}.txt").read_text().split():
        sequence, frame = line.split("/")
        path = tree / split / sequence / "meta" / f"{frame}.pkl"
        meta = safe_pickle.load(path, allow=safe_pickle.META_GLOBALS, what="annotation")
        out.append((sequence, frame, meta))
    return out


def decoded(meta: dict[str, Any], asset: HandAsset) -> tuple[Array, Array]:
    """Vertices and joints (HO3D21) that a training frame's parameters give, in their own OpenGL axes."""
    turns = np.stack([cv2.Rodrigues(v)[0] for v in meta["handPose"].astype(np.float64).reshape(16, 3)])
    given = (turns[:1], turns[None, 1:], meta["handBeta"][None], meta["handTrans"][None])
    out = ManoLayer.from_asset(asset)(*(torch.from_numpy(value.astype(np.float64)) for value in given))
    return out.vertices_m[0].numpy(), out.joints_m[0, list(permutation(OPENPOSE21, HO3D21))].numpy()


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
        kinds = {
            k: (v.shape, v.dtype.str[1:]) if isinstance(v, np.ndarray) else type(v) for k, v in meta.items()
        }
        assert kinds == KEYS[split]
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
        pixels = pixels_of(truth * FLIP, meta["camMat"])
        assert ((pixels >= [x0, y0]) & (pixels <= [x1, y1])).all()


def test_parameters_decode_to_the_labelled_joints(tree: Path, asset: HandAsset) -> None:
    """Pose, betas and translation give handJoints3D joint by joint (lesson 3), the wrist by both paths."""
    for _, _, meta in frames(tree, "train"):
        np.testing.assert_allclose(decoded(meta, asset)[1], meta["handJoints3D"], atol=1e-6)  # float32 labels
        rest = asset.joint_regressor @ (asset.v_template + asset.shapedirs @ meta["handBeta"])
        np.testing.assert_allclose(meta["handTrans"] + rest[0], meta["handJoints3D"][0], atol=1e-6)


def test_pictures_show_the_hand_where_the_labels_put_it(tree: Path, asset: HandAsset) -> None:
    """Depth at the mesh's pixels is its z where nothing stands in front, and the skin is lit.

    A flipped axis, swapped bytes or a wrong K puts the hand on the table; a black or inside-out hand is dark.
    """
    missing, free = [], []
    for sequence, frame, meta in frames(tree, "train"):
        folder = tree / "train" / sequence
        bgr, picture = (
            cv2.imread(str(folder / f"depth/{frame}.png")),
            cv2.imread(str(folder / f"rgb/{frame}.jpg")),
        )
        assert bgr.shape == picture.shape == (480, 640, 3)
        depth = (bgr[..., 2].astype(np.float64) + 256.0 * bgr[..., 1]).ravel() * DEPTH_UNIT_M
        seen = rasterize(decoded(meta, asset)[0] * FLIP, asset.faces, meta["camMat"], 640, 480)
        error = depth[seen.pixel] - seen.depth_m
        hand = np.abs(error) < 0.01
        missing.append((depth[seen.pixel] == 0).mean())
        free.append((hand | (error < -0.01)).mean())
        assert hand.mean() > 0.25
        assert abs(np.median(error[hand])) < 0.001
        blue, _, red = picture.reshape(-1, 3)[seen.pixel[hand]].mean(0)
        assert red > 18
        assert red > 0.9 * blue
    assert 0.02 < np.mean(missing) < 0.1, "a few percent of the hand return nothing, not a third"
    assert np.mean(free) > 0.99


def test_depth_beyond_16_bits_is_refused() -> None:
    """0x1234 units are red 0x34, green 0x12 (lesson 18); what does not fit is never wrapped."""
    encoded = encode_depth(np.array([[0x1234, 0, 0xFFFF]]) * 0.00012498664727900177)
    np.testing.assert_array_equal(encoded[0], [[0, 0x12, 0x34], [0, 0, 0], [0, 0xFF, 0xFF]])
    with pytest.raises(DataError, match="16 bits"):
        encode_depth(np.full((1, 1), 8.3, np.float32))
