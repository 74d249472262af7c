"""The door of conventions, and samples as the network gets them; asked of the data set, as a run asks it."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader.batches.samplers import SampleKey
from dataloader.crop import augment, cut
from dataloader.crop.prepare import prepare
from dataloader.ho3d import label_checks, labels
from dataloader.ho3d.unusable import Reason
from dataloader.pictures import decode
from src.errors import ConfigError, DataError
from src.hand.joints import OPENPOSE21
from src.hand.mano import ManoLayer
from src.schema import DEPTH_RANGE_M, HandSample, RawBatch
from tests.dataloader.tree import (
    COLOURS,
    DISC_RADIUS_PX,
    SIZE,
    FanHand,
    Tree,
    dataset_of,
    make_frame,
    run_config,
    train_meta,
    write_meta,
    write_pictures,
    write_tree,
)

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def differing(a: HandSample | RawBatch, b: HandSample | RawBatch) -> set[str]:
    """Fields that are not equal bit for bit."""
    return {name for name, value in a.fields().items() if not torch.equal(value, getattr(b, name))}


def image_camera(points: torch.Tensor, sample: HandSample) -> np.ndarray:
    """Points of the crop camera in the picture's."""
    return np.asarray(points.double().numpy() @ sample.rot_crop_from_img.double().numpy())


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_pass_the_door_once(tree: Tree, split: str) -> None:
    """OpenGL to OpenCV, HO3D's order to ours, joint by joint by name (lessons 1 and 3); the wrist is
    J0(betas) + translation: the translation alone is 96 mm off.
    """
    root, frames = tree
    dataset = dataset_of(run_config(root, split={"val_percent": 25}), split)
    found = dataset.frames.labels()
    for i in range(len(dataset)):
        frame = frames[dataset.frames.frame_id(i)]
        for j, name in enumerate(OPENPOSE21):
            np.testing.assert_allclose(found.joints_cam_m[i, j], frame.joints[name], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found.global_orient[i], frame.rotation, atol=1e-6)
        np.testing.assert_allclose(found.root_cam_m[i], frame.joints["wrist"], atol=1e-6)
        rest = FanHand.base + FanHand.directions @ frame.betas
        np.testing.assert_allclose(found.root_cam_m[i] - found.translation_m[i], rest, atol=1e-6)
    assert (found.joints_conf == 1).all()
    assert found.mano_valid.all()


def test_root_does_not_follow_the_joints(tree: Tree) -> None:
    """`GT centered by root` compares two independent paths; a root read from the joints always says 0."""
    dataset = dataset_of(run_config(tree[0]), "train")
    records = np.array(dataset.frames.index.rows[dataset.frames.split.rows[:4]])
    rest = labels.rest_roots(FanHand(), records["betas"])  # type: ignore[arg-type]
    for moved_m in (0.0, 0.05):
        records["joints"][..., 2] -= moved_m
        found = labels.convert(records, rest)
        gaps = np.linalg.norm(found.joints_cam_m[:, 0] - found.root_cam_m, axis=1)
        np.testing.assert_allclose(gaps, moved_m, atol=1e-5)


def test_wrists_at_rest_of_many_shapes_are_each_ones_own(
    standin: ManoLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed in parts: what is left over after the last whole one must not be forgotten or repeated."""
    monkeypatch.setattr(labels, "_BETAS_CHUNK", 4)
    betas = np.random.default_rng(0).normal(0, 1, (9, 10)).astype(np.float32)
    alone = np.concatenate([labels.rest_roots(standin, betas[k : k + 1]) for k in range(9)])
    np.testing.assert_allclose(labels.rest_roots(standin, betas), alone, atol=1e-7)


@pytest.mark.parametrize("split", ["val", "train"])
def test_projected_joints_lie_on_painted_pixels(
    tree: Tree, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour and depth under every visible joint are that joint's (lessons 1, 3, 4, 8, 17).

    Discs have a radius of 5 picture pixels and 2 crop pixels or more; the nearest crop pixel is at most 0.7
    away.
    """
    root, frames = tree
    geometry = {"colour": 0.0, "p_occluder": 0.0}
    monkeypatch.setattr(cut, "disturb_depth", lambda depth, _: depth)
    config = run_config(root, image_size=(256, 192), split={"val_percent": 50}, augmentation=geometry)
    dataset = dataset_of(config, split).view(modality="rgbd", augmented=split == "train")
    checked = 0
    for i in range(len(dataset)):
        sample, frame = dataset[i], frames[dataset.frames.frame_id(i)]
        rgb = (sample.rgb.numpy().transpose(1, 2, 0) * STD + MEAN) * 255
        pixels, z = frame.pixels(OPENPOSE21), frame.array(OPENPOSE21)[:, 2]
        for j, name in enumerate(OPENPOSE21):
            gap = np.linalg.norm(pixels - pixels[j], axis=1)
            inside_picture = (pixels[j] > 8).all() and (pixels[j] < [631, 471]).all()
            if ((gap < 2 * DISC_RADIUS_PX + 2) & (z < z[j])).any() or not inside_picture:
                continue
            x, y = (int(v) for v in np.rint(sample.joints_crop_px[j].numpy()))
            if not (0 <= x < 192 and 0 <= y < 256):
                continue
            np.testing.assert_allclose(rgb[y, x], COLOURS[name], atol=30, err_msg=f"{name} of sample {i}")
            measured = sample.depth[0, y, x] * DEPTH_RANGE_M + sample.z_ref_m
            # The disc is flat in the picture's camera: 2 mm over its radius, off the axis.
            assert float(measured - sample.joints_cam_m[j, 2]) == pytest.approx(0, abs=4e-3), name
            assert sample.depth_valid[0, y, x] == 1
            checked += 1
    assert checked > 10 * len(dataset)


def test_pixels_become_the_documented_numbers(tree: Tree) -> None:
    """Depth is (z - z_ref) / 0.15 m, clipped at 1.5, in HO3D's unit of 0.125 mm; colours are ImageNet's."""
    unit = 0.00012498664727900177
    z = np.array([[0.0, 0.6, 0.63, 0.45, 2.0, 0.3]])
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [128, 128, 128]]])
    eye = torch.eye(3)[None]
    raw = dataclasses.replace(
        dataset_of(run_config(tree[0]), "val").batch([SampleKey(0)]),
        rgb_u8=torch.from_numpy(rgb.astype(np.uint8))[None],
        depth_u16=torch.from_numpy(np.rint(z / unit).astype(np.uint16))[None],
        z_ref_m=torch.tensor([0.6]),
        intrinsics_img_px=torch.tensor([[[100.0, 0, 3], [0, 100, 0.5], [0, 0, 1]]]),
        intrinsics_crop_px=torch.tensor([[[100.0, 0, 3], [0, 100, 0.5], [0, 0, 1]]]),
        crop_from_img=eye,
        rot_crop_from_img=eye,
        joints_cam_m=torch.tensor([0.0, 0.003, 0.6]).expand(1, 21, 3),
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


def test_dropped_depth_is_never_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding depth is 80 % of the cost: the modality is decided before a file is opened."""
    read: list[str] = []
    original = decode.read_depth_bytes
    monkeypatch.setattr(decode, "read_depth_bytes", lambda path: (read.append(path.name), original(path))[1])
    dataset = dataset_of(run_config(tree[0]), "train")
    batch = dataset.batch([SampleKey(i, epoch) for i in range(len(dataset)) for epoch in range(3)])
    assert len(read) == int(batch.depth_present.sum())
    assert 0 < len(read) < 66
    seen = (dataset.view(modality=shown, augmented=True)[1] for shown in ("rgbd", "rgb"))  # type: ignore[arg-type]
    assert differing(*seen) == {"depth", "depth_valid", "depth_present", "z_ref_m"}


def test_inputs_do_not_know_the_labels_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture labelled 30 % farther gives the same inputs, crop and z_ref (lesson 19)."""
    monkeypatch.delitem(label_checks.CHECKS, Reason.DECODE)  # lets such labels in
    inputs = []
    for factor in (1.0, 1.3):
        root = tmp_path / str(factor)
        for key, frame in write_tree(root, {"MC1": 6}, seed=3).items():
            moved = dataclasses.replace(frame, joints={name: p * factor for name, p in frame.joints.items()})
            write_meta(root / f"train/MC1/meta/{key[-4:]}.pkl", train_meta(moved))
        dataset = dataset_of(run_config(root, split={"val_percent": 50}), "val", FanHand(factor))
        inputs.append([dataset[0], dataset[1], dataset.view(modality="rgb", augmented=False)[0]])
    for near, far in zip(*inputs, strict=True):
        assert torch.allclose(far.joints_cam_m, 1.3 * near.joints_cam_m, atol=1e-4)
        for field in ("rgb", "depth", "z_ref_m", "intrinsics_crop_px", "rot_crop_from_img"):
            # The box is made of the same pixels up to the last bit of a division.
            assert (getattr(near, field) - getattr(far, field)).abs().median() < 1e-3, field


def test_a_sample_is_the_same_for_whoever_asks(tree: Tree) -> None:
    """Equal (seed, epoch, index) means equal bits, alone or in a batch, here or in another process; another
    epoch is another draw.
    """
    config = run_config(tree[0])
    dataset = dataset_of(config, "train")
    packed = pickle.dumps(dataset)
    assert len(packed) < 100_000, "80 MB of labels would be copied to each loader process"
    keys = [SampleKey(i, epoch) for i in (4, 0, 2) for epoch in range(2)]
    together = dataset.batch(keys)
    np.random.seed(0)  # noqa: NPY002 - must not matter
    torch.manual_seed(0)
    for k, key in reversed(list(enumerate(keys))):
        assert not differing(together.map(lambda t, k=k: t[k : k + 1]), pickle.loads(packed).batch([key]))
    assert (together.crop_from_img[0] != together.crop_from_img[1]).any()
    other = dataset_of(dataclasses.replace(config, seed=1), "train").batch(keys)
    assert (other.crop_from_img != together.crop_from_img).flatten(1).any(1).all()


def test_validation_sees_no_augmentation(tree: Tree) -> None:
    """The score of an epoch must not depend on the epoch or the run's seed; and a view that was asked to vary
    and did not would be a study of nothing.
    """
    config = run_config(tree[0], split={"val_percent": 25})
    dataset, other = dataset_of(config, "val"), dataset_of(dataclasses.replace(config, seed=9), "val")
    first = dataset.batch([SampleKey(1, 0)])
    assert not differing(first, dataset.batch([SampleKey(1, 5)])) | differing(
        first, other.batch([SampleKey(1)])
    )
    assert torch.equal(first.colour_affine[0], torch.eye(3, 4))
    off = run_config(tree[0], augmentation={"enabled": False})
    for plain in (dataset, dataset_of(off, "train")):
        with pytest.raises(ConfigError, match="cannot be augmented"):
            plain.view(modality="rgbd", augmented=True)


def test_ground_truth_changes_what_is_scored_and_never_what_is_seen(tmp_path: Path) -> None:
    """Without it no label is invented: all but the wrist weighs nothing, and scoring is refused."""
    for name, truth in (("blind", False), ("truth", True)):
        frames = write_tree(tmp_path / name, {"MC1": 1}, {"SM1": 2}, truth=truth)
    blind, dataset = (dataset_of(run_config(tmp_path / name), "evaluation") for name in ("blind", "truth"))
    for i in range(2):
        sample, unseen = dataset[i], blind[i]
        assert (sample.joints_conf == 1).all()
        assert unseen.joints_conf.tolist() == [1.0] + [0.0] * 20
        assert bool(sample.mano_valid) is bool(unseen.mano_valid) is False
        assert all(torch.isfinite(value.float()).all() for value in unseen.fields().values())
        frame = frames[dataset.frames.frame_id(i)]
        found = image_camera(sample.joints_cam_m, sample)
        np.testing.assert_allclose(found, frame.array(OPENPOSE21), atol=1e-6)
        root = image_camera(unseen.root_cam_m, unseen)
        np.testing.assert_allclose(root, frame.joints["wrist"], atol=1e-6)
        assert differing(sample, unseen) == {
            "joints_cam_m", "joints_conf", "joints_root_m", "joints_crop_px", "joints_unit"
        }  # fmt: skip
    with pytest.raises(DataError, match=r"only the wrist is labelled.*evaluation_xyz.json"):
        blind.frames.require_truth()
    dataset.frames.require_truth()
    rows = np.array(dataset.frames.index.rows)
    rows["joints_known"][1] = False
    dataset.frames.index.__dict__["rows"] = rows
    with pytest.raises(DataError, match="only the wrist is labelled"):
        dataset.frames.require_truth()  # one labelled frame does not label a split


@pytest.mark.parametrize("image_size", [(128, 96), (96, 128)])
def test_the_official_box_is_two_corners(tree: Tree, image_size: tuple[int, int]) -> None:
    """handBoundingBox holds x0, y0, x1, y1: the crop's axis goes through its middle, and 1.6 times its longer
    side fills the crop's shorter one. Read as x, y, width, height it looks elsewhere, at a hand a third as
    large; only the official score would tell.
    """
    root, frames = tree
    dataset = dataset_of(run_config(root, image_size=image_size), "evaluation")
    height, width = image_size
    for i in range(len(dataset)):
        pixels = frames[dataset.frames.frame_id(i)].pixels(OPENPOSE21)
        low, high = np.trunc(pixels.min(0) - 9), np.trunc(pixels.max(0) + 9)  # as the annotation has it
        middle, half = (low + high) / 2, np.array([(high - low).max() / 2, 0.0])
        ends = np.array([[*place, 1.0] for place in (middle, middle - half, middle + half)])
        seen = ends @ dataset[i].crop_from_img.double().numpy().T
        seen = seen[:, :2] / seen[:, 2:]
        np.testing.assert_allclose(seen[0], [width / 2, height / 2], atol=0.01)
        # The picture's own perspective changes its scale by up to 5 % over a hand.
        assert np.linalg.norm(seen[2] - seen[1]) == pytest.approx(min(image_size) / 1.6, rel=0.05)


def test_a_sensor_that_saw_nothing_is_shown_as_such(tmp_path: Path) -> None:
    """With a usable reference depth; what is no longer aligned with its picture names its file."""
    write_tree(tmp_path, {"MC1": 2})
    dataset = dataset_of(run_config(tmp_path, split={"val_percent": 50}), "val")
    frame, grey = dataset.frames.frame_id(0)[-4:], np.full((*SIZE, 3), 90, np.uint8)
    write_pictures(tmp_path / "train/MC1", frame, grey, np.zeros(SIZE, np.uint16))
    sample = dataset[0]
    assert (bool(sample.depth_present), bool(sample.depth_valid.any())) == (True, False)
    assert 0.2 < float(sample.z_ref_m) < 2.0
    write_pictures(tmp_path / "train/MC1", frame, grey, np.zeros((100, 100), np.uint16))
    with pytest.raises(DataError, match=rf"MC1/depth/{frame}.png.*aligns them"):
        dataset[0]


def test_the_log_line_says_what_the_split_is(tree: Tree) -> None:
    """Interpolation and new motions are different claims."""
    for settings, split, part in (
        ({"val_percent": 25}, "val", "6 frames"),
        ({"val_percent": 25}, "val", "interpolation"),
        ({"by": "sequence", "val_percent": 50}, "val", "12 frames, 2 sequences, 1 motions"),
        ({}, "evaluation", "in its order"),
    ):
        config = run_config(tree[0], split=settings)
        assert part in dataset_of(config, split).frames.describe()  # type: ignore[arg-type]


def test_a_hand_at_the_edge_never_ends_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll, scale and shift may carry its crop out of the picture; the sample is then shown where it is."""
    frame = make_frame(np.random.default_rng(0))
    right = float(frame.pixels(OPENPOSE21)[:, 0].max())
    shift = np.array([(40 - right) * frame.joints["wrist"][2] / frame.intrinsics[0, 0], 0.0, 0.0])
    edge = dataclasses.replace(frame, joints={name: joint + shift for name, joint in frame.joints.items()})
    write_tree(tmp_path, {"MC1": 4})
    write_meta(tmp_path / "train/MC1/meta/0001.pkl", train_meta(edge))
    monkeypatch.setattr(augment, "MAX_SHIFT", 0.8)
    monkeypatch.setattr(augment, "SIDES", (0.2, 1.6))
    config = run_config(tmp_path, split={"val_percent": 25}, dataset={"box_scale": 1.0})
    sides = [dataset_of(config, split) for split in ("train", "val")]
    dataset, i = next(
        (d, i) for d in sides for i in range(len(d)) if d.frames.frame_id(i) == "train/MC1/0001"
    )
    moved = dataclasses.replace(dataset, modality="rgbd", augmenter=sides[0].augmenter)
    still = dataset.view(modality="rgbd", augmented=False).batch([SampleKey(i)])
    samples = moved.batch([SampleKey(i, epoch) for epoch in range(60)])
    kept = (samples.crop_from_img == still.crop_from_img).flatten(1).all(1)
    assert 3 <= int(kept.sum()) < 60, f"{int(kept.sum())} of 60 draws would have left the picture"
    assert samples.rgb_u8.flatten(1).any(1).all(), "a black crop"


def test_other_boxes_move_the_crop_and_a_missing_one_takes_the_label_away(tree: Tree, tmp_path: Path) -> None:
    """A score with other boxes must be of other crops; one of a sample without a box must not be counted.

    The cache holds what is around the labels' boxes, so it is not read.
    """
    config = run_config(tree[0], dataset={"cache": str(tmp_path)})
    dataset = dataset_of(config, "val")
    keys, boxes = [SampleKey(i) for i in range(2)], dataset.frames.labels().box_px
    plain = dataset.batch(keys)
    assert not differing(dataset.with_boxes(boxes).batch(keys), plain)
    boxes[0] += 200.0
    boxes[1] = np.nan
    moved = dataset.with_boxes(boxes).batch(keys)
    middle = torch.tensor([*(boxes[0, :2] + boxes[0, 2:]) / 2, 1.0], dtype=torch.float32)
    seen = moved.crop_from_img[0] @ middle
    assert torch.allclose(seen[:2] / seen[2], moved.intrinsics_crop_px[0, :2, 2], atol=1e-2)
    there, before = (prepare(batch).row(0) for batch in (moved, plain))
    was = image_camera(before.joints_cam_m, before)
    np.testing.assert_allclose(image_camera(there.joints_cam_m, there), was, atol=1e-6)
    assert torch.equal(moved.joints_conf, torch.tensor([[1.0], [0.0]]).expand(2, 21))
    assert torch.equal(moved.crop_from_img[1], plain.crop_from_img[1])


def test_other_labels_of_the_same_frames_are_another_validation(tmp_path: Path) -> None:
    """Scores by old and by mended labels must not be taken for one another: of best.pt, of two files."""
    frames = write_tree(tmp_path, {"MC1": 8})
    config = run_config(tmp_path, split={"val_percent": 25})
    before = {split: dataset_of(config, split).frames for split in ("train", "val")}
    name = before["val"].frame_id(0)
    mended = dataclasses.replace(frames[name], betas=frames[name].betas + 0.1)
    write_meta(tmp_path / f"train/MC1/meta/{name[-4:]}.pkl", train_meta(mended))
    after = {split: dataset_of(config, split).frames for split in ("train", "val")}
    assert after["val"].split.id != before["val"].split.id
    assert after["train"].split.id == before["train"].split.id
    assert after["train"].index.labels_sha256 != before["train"].index.labels_sha256
    for split in ("train", "val"):
        assert after[split].names()[1].tolist() == before[split].names()[1].tolist()
