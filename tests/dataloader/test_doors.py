"""What comes in from a release: which frames, which release, whose box, whose picture, in which unit.

Everything is asked of the data set, as a run asks it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from dataloader.ho3d import index as index_module
from dataloader.ho3d.labels import rest_roots
from dataloader.ho3d_dataset import HO3DDataset
from src.config import DatasetConfig, RunConfig
from src.errors import DataError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.schema import RawBatch
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import (
    FLIP,
    SIZE,
    FanHand,
    Frame,
    run_config,
    write_meta,
    write_pictures,
    write_tree,
)

TOLERANCE = next(field.name for field in dataclasses.fields(DatasetConfig) if field.name.startswith("max_un"))
"""The setting that lets a run go on without some frames."""


def fan(config: RunConfig, split: str) -> HO3DDataset:
    """A split of fan hands."""
    return build_dataset(config, split, FanHand(), show_progress=False)  # type: ignore[arg-type]


def whole_list(config: RunConfig, hand: object) -> dict[str, np.ndarray]:
    """Name of every frame of the training list -> its labelled joints, from both splits."""
    found: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        part = build_dataset(config, split, hand, show_progress=False)  # type: ignore[arg-type]
        found |= {
            part.frames.frame_id(i): joints for i, joints in enumerate(part.frames.labels().joints_cam_m)
        }
    return found


def test_another_list_of_the_same_folders_is_noticed(tmp_path: Path) -> None:
    """As many frames of the same sequences in the same order, no folder touched, other frames: with
    yesterday's index a run would train on frames that were taken out of the list.
    """
    frames = write_tree(tmp_path, {"ABF10": 6, "MC1": 6})
    config = run_config(tmp_path, split={"val_percent": 25})
    names = [key.removeprefix("train/") for key in frames]
    for chosen in (names[0:4] + names[6:10], names[1:5] + names[7:11], names[2:6] + names[8:12]):
        (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in chosen))
        found = whole_list(config, FanHand())
        assert sorted(found) == sorted(f"train/{name}" for name in chosen)
        for name, joints in found.items():
            np.testing.assert_allclose(joints, frames[name].array(OPENPOSE21), atol=1e-6, err_msg=name)


def test_another_release_is_looked_for_again(tmp_path: Path) -> None:
    """Annotations of both releases look alike, their pictures do not: dataset.version=v2 on a v3 tree must be
    refused at the start, also when the index of v3 is there.
    """
    write_tree(tmp_path, {"MC1": 4})
    config = run_config(tmp_path, split={"val_percent": 25})
    assert len(fan(config, "train")) == 3
    other = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, version="v2"))
    with pytest.raises(DataError, match=r"\.png.*dataset\.version=v3"):
        fan(other, "train")


@pytest.mark.parametrize("image_size", [(128, 96), (96, 128)])
def test_the_official_box_is_two_corners(tmp_path: Path, image_size: tuple[int, int]) -> None:
    """handBoundingBox holds x0, y0, x1, y1: the crop's axis goes through its middle, and 1.6 times its longer
    side fills the crop's shorter one. Read as x, y, width, height it looks elsewhere, at a hand a third as
    large; only the official score would tell.
    """
    frames = write_tree(tmp_path, {"MC1": 2}, {"SM1": 3})
    dataset = fan(run_config(tmp_path, image_size=image_size), "evaluation")
    height, width = image_size
    for i in range(len(dataset)):
        frame = frames[dataset.frames.frame_id(i)]
        pixels = frame.pixels(OPENPOSE21)
        low, high = np.trunc(pixels.min(0) - 9), np.trunc(pixels.max(0) + 9)  # as the annotation has it
        homography = dataset[i].crop_from_img.double().numpy()
        middle, half = (low + high) / 2, np.array([(high - low).max() / 2, 0.0])
        ends = np.array([middle, middle - half, middle + half])
        seen = np.concatenate([ends, np.ones((3, 1))], 1) @ homography.T
        seen = seen[:, :2] / seen[:, 2:]
        np.testing.assert_allclose(seen[0], [width / 2, height / 2], atol=0.01)
        # The picture's own perspective changes its scale by 2 % over a hand.
        assert np.linalg.norm(seen[2] - seen[1]) == pytest.approx(min(image_size) / 1.6, rel=0.03)


def moved_aside(frame: Frame) -> dict[str, object]:
    """The annotation of the same hand two metres to the left, where no picture is."""
    rest = FanHand.base + FanHand.directions @ frame.betas
    aside = np.array([-2.0, 0.0, 0.0])
    orient = Rotation.from_matrix(FLIP @ frame.rotation).as_rotvec()
    return {
        "camMat": frame.intrinsics,
        "handPose": np.concatenate([orient, frame.fingers_aa.ravel()]),
        "handBeta": frame.betas,
        "handTrans": FLIP @ frame.joints["wrist"] + aside - rest,
        "handJoints3D": frame.array(HO3D21) @ FLIP + aside,
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_hand_outside_its_picture_is_an_error_and_no_black_crop(tmp_path: Path, split: str) -> None:
    """200 of 200 crops of the first version were black, and nothing said so (lesson 1)."""
    for key, frame in write_tree(tmp_path, {"MC1": 4}).items():
        write_meta(tmp_path / f"train/MC1/meta/{key[-4:]}.pkl", moved_aside(frame))
    config = run_config(tmp_path, split={"val_percent": 50})
    with pytest.raises(DataError, match=r"(?s)MC1/.*\d{4}"):
        _ = [fan(config, split)[i] for i in range(2)]


@pytest.mark.parametrize("modality", ["rgbd", "rgb"])
def test_a_picture_that_shrank_is_an_error_and_no_black_crop(tmp_path: Path, modality: str) -> None:
    """A file that was written over after the start: its hand lies beyond its border. The frame is named."""
    write_tree(tmp_path, {"MC1": 4})
    dataset = fan(run_config(tmp_path, split={"val_percent": 25}), "val")
    view = dataset.view(modality=modality, augmented=False)  # type: ignore[arg-type]
    assert float(view[0].rgb.std()) > 0.05
    small = (24, 32)
    write_pictures(
        tmp_path / "train/MC1", dataset.frames.frame_id(0)[-4:], np.full((*small, 3), 90, np.uint8),
        np.full(small, 5000, np.uint16),
    )  # fmt: skip
    with pytest.raises(DataError, match=dataset.frames.frame_id(0)[-4:]):
        view[0]


def linked_tree(root: Path, hand: ManoLayer, aa: np.ndarray) -> list[str]:
    """Hands in poses (N, 16, 3), in two sequences that share one picture; the names of their frames."""
    write_posed_hands(root / "one", hand, 1)
    rng, count = np.random.default_rng(5), len(aa)
    rotations = torch.from_numpy(Rotation.from_rotvec(aa.reshape(-1, 3)).as_matrix().reshape(count, 16, 3, 3))
    betas = torch.from_numpy(rng.normal(0, 1, (count, 10)))
    trans = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 3)) - [0, 0, 0.6])
    with torch.no_grad():
        joints = hand(rotations[:, 0], rotations[:, 1:], betas, trans).joints_m.numpy()
    joints = joints[:, list(permutation(OPENPOSE21, HO3D21))]
    names = []
    for k in range(count):
        sequence = "ABF10" if k < count // 2 else "MC1"
        folder, name = root / "train" / sequence, f"{k:04d}"
        for kind, end in (("rgb", ".jpg"), ("depth", ".png")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            os.link(root / f"one/train/MC1/{kind}/0001{end}", folder / kind / f"{name}{end}")
        meta = {
            "camMat": np.array([[614.6, 0, 320.3], [0, 615.1, 241.7], [0, 0, 1]]),
            "handPose": aa[k].ravel(),
        }
        meta |= {"handBeta": betas[k].numpy(), "handTrans": trans[k].numpy(), "handJoints3D": joints[k]}
        write_meta(folder / "meta" / f"{name}.pkl", meta)
        names.append(f"train/{sequence}/{name}")
    (root / "train.txt").write_text("".join(f"{name.removeprefix('train/')}\n" for name in names))
    return names


def test_frames_left_out_of_several_chunks_are_the_right_ones(
    tmp_path: Path, standin: ManoLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations are read 250 at a time. A bad one of a later chunk must be left out by its own name, and
    every other frame must keep its own labels: one row off, and each picture has its neighbour's hand.
    """
    monkeypatch.setattr(index_module, "_ROTATION_CHUNK", 64, raising=False)
    rng = np.random.default_rng(6)
    aa = np.concatenate([rng.normal(0, 1.5, (303, 1, 3)), rng.normal(0, 0.3, (303, 15, 3))], 1)
    names = linked_tree(tmp_path, standin, aa)
    bad = [3, 250, 251, 302]
    for k in bad:
        path = tmp_path / f"{names[k].replace('ABF10/', 'ABF10/meta/').replace('MC1/', 'MC1/meta/')}.pkl"
        path.write_bytes(b"\x80\x02garbage")
    config = run_config(tmp_path, split={"val_percent": 10})
    with pytest.raises(DataError, match=r"(?s)4 of 303.*0003"):
        whole_list(config, standin)
    dataset = dataclasses.replace(config.dataset, **{TOLERANCE: 4})
    config = dataclasses.replace(config, dataset=dataset)
    assert sorted(whole_list(config, standin)) == sorted(set(names) - {names[k] for k in bad})
    for split in ("train", "val"):
        part = build_dataset(config, split, standin, show_progress=False)  # type: ignore[arg-type]
        labels = part.frames.labels()
        turned = [torch.from_numpy(a) for a in (labels.global_orient, labels.hand_pose, labels.betas)]
        made = standin(*turned, torch.zeros(len(part), 3)).joints_m.numpy()
        gap = (made - made[:, :1]) - (labels.joints_cam_m - labels.joints_cam_m[:, :1])
        assert np.abs(gap).max() * 1000 < 0.05, "mm between the labels of a frame and its own pose"


def test_labels_keep_rotations_of_half_a_turn(tmp_path: Path, standin: ManoLayer) -> None:
    """Wrists turned by pi, and by a little less and more, come out as annotated: through acos they were 86 mm
    off, in one frame of a thousand.
    """
    angles = np.array([np.pi - 1e-3, np.pi - 1e-6, np.pi, np.pi + 1e-3, 1e-6, 0.0])
    axes = Rotation.random(6, rng=np.random.default_rng(3)).apply([0.0, 0.0, 1.0])
    aa = np.zeros((6, 16, 3))
    aa[:, 0], aa[:, 4] = angles[:, None] * axes, 0.9 * angles[:, None] * axes
    names = linked_tree(tmp_path, standin, aa)
    annotated = Rotation.from_rotvec(aa.reshape(-1, 3)).as_matrix().reshape(6, 16, 3, 3)
    for split in ("train", "val"):
        config = run_config(tmp_path, split={"val_percent": 50})
        part = build_dataset(config, split, standin, show_progress=False)  # type: ignore[arg-type]
        labels = part.frames.labels()
        for i in range(len(part)):
            k = names.index(part.frames.frame_id(i))
            np.testing.assert_allclose(labels.global_orient[i], FLIP @ annotated[k, 0], atol=1e-6)
            np.testing.assert_allclose(labels.hand_pose[i], annotated[k, 1:], atol=1e-6)


def test_wrists_at_rest_of_many_shapes_are_each_ones_own(standin: ManoLayer) -> None:
    """8192 shapes are computed at a time; what is left over after that must not be forgotten or repeated."""
    rng = np.random.default_rng(0)
    betas = rng.normal(0, 1, (2 * 8192 + 5, 10)).astype(np.float32)
    found = rest_roots(standin, betas)
    picked = [0, 8191, 8192, 16383, 16384, 16388]
    alone = np.concatenate([rest_roots(standin, betas[k : k + 1]) for k in picked])
    np.testing.assert_allclose(found[picked], alone, atol=1e-7)
    assert np.isfinite(found).all()
    assert len(np.unique(found.round(7), axis=0)) == len(betas)


def test_pixels_become_the_documented_numbers() -> None:
    """Depth is (z - z_ref) / 0.15 m, clipped at 1.5, in HO3D's unit of 0.125 mm; colours are ImageNet's."""
    unit = 0.00012498664727900177
    z = np.array([[0.0, 0.6, 0.63, 0.45, 2.0, 0.3]])
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [128, 128, 128]]])
    k = torch.tensor([[100.0, 0, 3.0], [0, 100.0, 0.5], [0, 0, 1]])[None]
    eye, one = torch.eye(3)[None], torch.ones(1)
    joints = torch.zeros(1, 21, 3) + torch.tensor([0.0, 0.003, 0.6])
    raw = RawBatch(
        sample_index=torch.zeros(1, dtype=torch.int64),
        rgb_u8=torch.from_numpy(rgb.astype(np.uint8))[None],
        depth_u16=torch.from_numpy(np.rint(z / unit).astype(np.uint16))[None],
        depth_present=torch.tensor([True]),
        z_ref_m=0.6 * one,
        colour_affine=torch.eye(3, 4)[None],
        intrinsics_img_px=k,
        intrinsics_crop_px=k,
        crop_from_img=eye,
        rot_crop_from_img=eye,
        joints_cam_m=joints,
        joints_conf=torch.ones(1, 21),
        root_cam_m=joints[:, 0],
        translation_m=joints[:, 0],
        global_orient=eye,
        hand_pose=eye[:, None].expand(1, 15, 3, 3),
        betas=torch.zeros(1, 10),
        mano_valid=torch.tensor([True]),
    )
    batch = prepare(raw)
    assert batch.depth[0, 0, 0].tolist() == pytest.approx([0.0, 0.0, 0.2, -1.0, 1.5, -1.5], abs=1e-3)
    assert batch.depth_valid[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1]
    red, green, blue = batch.rgb[0, :, 0].tolist()
    assert red == pytest.approx([2.2489, -2.1179, -2.1179, -2.1179, 2.2489, 0.0741], abs=1e-3)
    assert green == pytest.approx([-2.0357, 2.4286, -2.0357, -2.0357, 2.4286, 0.2052], abs=1e-3)
    assert blue == pytest.approx([-1.8044, -1.8044, 2.64, -1.8044, 2.64, 0.4265], abs=1e-3)
    # Jittered: twice the contrast and a quarter of white, but never blacker than black or whiter than white.
    for offset, expected in ((0.25, [2.2489, -1.0262, 2.2489]), (-1.1, [1.8122, -2.1179, -2.1179])):
        affine = torch.cat([2 * eye, torch.full((1, 3, 1), offset)], dim=2)
        bright = prepare(dataclasses.replace(raw, colour_affine=affine)).rgb[0, 0, 0]
        assert bright[[0, 1, 5]].tolist() == pytest.approx(expected, abs=1e-3)
    # A crop of 6 x 1 pixels: the joint stands on pixel (3, 1), at its middle in x and its lower edge in y.
    assert batch.joints_crop_px[0, 5].tolist() == pytest.approx([3.0, 1.0], abs=1e-4)
    assert batch.joints_unit[0, 5].tolist() == pytest.approx([0.0, 0.5], abs=1e-4)


def test_pictures_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """A camera's orientation tag must not turn the picture: camMat belongs to the stored pixels."""
    write_tree(tmp_path, {"MC1": 4})
    config = run_config(tmp_path, split={"val_percent": 25})
    dataset = fan(config, "val")
    before = dataset[0].rgb
    path = tmp_path / f"train/MC1/rgb/{dataset.frames.frame_id(0)[-4:]}.jpg"
    data = path.read_bytes()
    tag = b"Exif\0\0II*\0" + bytes.fromhex("08000000 0100 1201 0300 01000000 06000000 00000000")
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + data[2:])
    turned = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape[:2] == SIZE[::-1], "the test wants a tag that decoders obey"
    assert torch.equal(dataset[0].rgb, before)
