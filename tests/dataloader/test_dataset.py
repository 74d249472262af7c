"""The door of conventions, and samples as the network gets them."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader import ho3d_dataset
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.ho3d import label_checks
from dataloader.ho3d.labels import convert, rest_roots
from dataloader.ho3d.unusable import Reason
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures import decode
from src.config import RunConfig
from src.errors import ConfigError, DataError
from src.hand.joints import OPENPOSE21
from src.schema import DEPTH_RANGE_M, HandSample, RawBatch
from tests.dataloader.tree import (
    COLOURS,
    DISC_RADIUS_PX,
    FLIP,
    FanHand,
    Frame,
    make_frame,
    run_config,
    train_meta,
    write_meta,
    write_pictures,
    write_tree,
)

Tree = tuple[Path, dict[str, Frame]]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLEAN = {"colour": 0.0, "p_occluder": 0.0, "p_depth_holes": 0.0, "depth_noise_m": 0.0}


def dataset_of(config: RunConfig, split: str) -> HO3DDataset:
    """The dataset with the fan hand."""
    return build_dataset(config, split, FanHand(), show_progress=False)  # type: ignore[arg-type]


def equal(a: HandSample | RawBatch, b: HandSample | RawBatch) -> bool:
    """Every field bit for bit."""
    return all(
        np.array_equal(np.asarray(getattr(a, f.name)), np.asarray(getattr(b, f.name)))
        for f in dataclasses.fields(a)
    )


def test_labels_pass_the_door_once(tree: Tree) -> None:
    """OpenGL to OpenCV, HO3D's order to ours, joint by joint by name (lessons 1 and 3)."""
    root, frames = tree
    for split in ("train", "val"):
        dataset = dataset_of(run_config(root, split={"val_percent": 25}), split)
        labels = dataset.frames.labels()
        joints = labels.joints_cam_m
        for i in range(len(dataset)):
            frame = frames[dataset.frames.frame_id(i)]
            for j, name in enumerate(OPENPOSE21):
                np.testing.assert_allclose(joints[i, j], frame.joints[name], atol=1e-6, err_msg=name)
            np.testing.assert_allclose(labels.global_orient[i], frame.rotation, atol=1e-6)
        assert (labels.joints_conf == 1).all()
        assert labels.mano_valid.all()
        assert labels.hand_pose.shape == (len(dataset), 15, 3, 3)
        assert (joints[..., 2] > 0).all()


def test_wrist_comes_from_the_hand_model(tree: Tree) -> None:
    """root = J0(betas) + translation: the translation alone is 96 mm off, joints[0] would hide errors."""
    root, frames = tree
    dataset = dataset_of(run_config(root, augmentation={"enabled": False}), "train")
    sample = dataset[3]
    frame = frames[dataset.frames.frame_id(3)]
    wrist_img = sample.rot_crop_from_img.double().numpy().T @ sample.root_cam_m.double().numpy()
    np.testing.assert_allclose(wrist_img, frame.joints["wrist"], atol=1e-6)
    rest = FanHand.base + FanHand.directions @ frame.betas
    np.testing.assert_allclose(sample.root_cam_m - sample.translation_m, rest, atol=1e-6)


def test_root_does_not_follow_the_joints(tree: Tree) -> None:
    """`GT centered by root` compares two independent paths; a root read from the joints always says 0."""
    dataset = dataset_of(run_config(tree[0]), "train")
    records = np.array(dataset.frames.index.rows[dataset.frames.split.rows[:4]])
    rest = rest_roots(FanHand(), records["betas"])  # type: ignore[arg-type]
    good = convert(records, rest)
    records["joints"] -= np.array([0, 0, 0.05], np.float32)
    bad = convert(records, rest)
    for labels, gap_mm in ((good, 0.0), (bad, 50.0)):
        gaps = np.linalg.norm(labels.joints_cam_m[:, 0] - labels.root_cam_m, axis=1) * 1000
        np.testing.assert_allclose(gaps, gap_mm, atol=1e-2)


@pytest.mark.parametrize("split", ["val", "train"])
def test_projected_joints_lie_on_painted_pixels(tree: Tree, split: str) -> None:
    """Colour and depth under every visible joint are that joint's (lessons 1, 3, 4, 8, 17).

    Discs have a radius of 5 picture pixels and 2 crop pixels or more; the nearest crop pixel is at most 0.7
    away.
    """
    root, frames = tree
    config = run_config(root, image_size=(256, 192), split={"val_percent": 50}, augmentation=CLEAN)
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


@pytest.mark.parametrize("split", ["val", "train"])
def test_projection_with_the_crop_camera_is_the_warped_projection(tree: Tree, split: str) -> None:
    """project(joints, K_crop) equals crop_from_img of the picture's projections < 0.5 px (lesson 4)."""
    root, frames = tree
    dataset = dataset_of(run_config(root, split={"val_percent": 50}), split)
    for i in range(len(dataset)):
        for epoch in range(10):
            sample = ho3d_dataset.prepare(dataset.batch([SampleKey(i, epoch)])).row(0)
            pixels = frames[dataset.frames.frame_id(i)].pixels(OPENPOSE21)
            warped = np.concatenate([pixels, np.ones((21, 1))], 1) @ sample.crop_from_img.double().numpy().T
            error = np.abs(warped[:, :2] / warped[:, 2:] - sample.joints_crop_px.numpy()).max()
            assert error < 0.02  # float32 at 1000 px; the promise is 0.5
            unit = (sample.joints_unit.numpy() + 0.5) * [96, 128]
            np.testing.assert_allclose(unit, sample.joints_crop_px.numpy(), atol=1e-3)


def test_colour_is_rgb_from_file_to_network(tmp_path: Path) -> None:
    """A pure red picture is red (lesson 17)."""
    frames = write_tree(tmp_path, {"MC1": 10})
    red = np.zeros((480, 640, 3), np.uint8)
    red[..., 0] = 255
    for key in frames:
        write_pictures(tmp_path / "train/MC1", key[-4:], red, np.full((480, 640), 5000, np.uint16))
    sample = dataset_of(run_config(tmp_path), "val")[0]
    centre = sample.rgb[:, 64, 48].numpy() * STD + MEAN
    np.testing.assert_allclose(centre, [1, 0, 0], atol=0.02)


def test_dropped_depth_is_never_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding depth is 80 % of the cost: the modality is decided before a file is opened."""
    read: list[str] = []
    original = decode.read_depth_bytes
    monkeypatch.setattr(decode, "read_depth_bytes", lambda path: (read.append(path.name), original(path))[1])
    dataset = dataset_of(run_config(tree[0]), "train")
    shown = [
        bool(dataset.batch([SampleKey(i, epoch)]).depth_present)
        for i in range(len(dataset))
        for epoch in range(12)
    ]
    assert len(read) == sum(shown)
    # 264 draws of probability 0.6: three standard errors are 0.09
    assert np.mean(shown) == pytest.approx(1 - 0.4, abs=0.1)
    read.clear()
    hidden = dataset.view(modality="rgb", augmented=False)[0]
    assert not read
    assert not hidden.depth_present
    assert not hidden.depth.any()
    assert not hidden.depth_valid.any()
    assert hidden.z_ref_m > 0
    assert dataset.view(modality="rgbd", augmented=False)[0].depth_present


def test_every_sample_is_shown_both_ways_over_the_epochs(tree: Tree) -> None:
    """Drawn once for all epochs, two fifths of the pictures would never show their depth."""
    dataset = dataset_of(run_config(tree[0]), "train")
    for i in range(4):
        shown = {bool(dataset.batch([SampleKey(i, epoch)]).depth_present) for epoch in range(30)}
        assert shown == {True, False}, (
            f"sample {i} is always shown {'with' if True in shown else 'without'} depth"
        )


def test_one_labelled_frame_does_not_label_a_split(tree: Tree) -> None:
    """Frames without labels would be scored against zeros or nan."""
    dataset = dataset_of(run_config(tree[0]), "evaluation")
    dataset.frames.require_truth()
    rows = np.array(dataset.frames.index.rows)
    rows["joints_known"][1] = False
    dataset.frames.index.__dict__["rows"] = rows
    with pytest.raises(DataError, match="only the wrist is labelled"):
        dataset.frames.require_truth()


def test_inputs_do_not_know_the_labels_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture labelled 30 % farther gives the same inputs, crop and z_ref (lesson 19)."""
    monkeypatch.delitem(label_checks.CHECKS, Reason.DECODE)  # lets such labels in
    inputs = []
    for k, factor in enumerate((1.0, 1.3)):
        root = tmp_path / str(k)
        frames = write_tree(root, {"MC1": 12}, seed=3)
        for key, frame in frames.items():
            moved = dataclasses.replace(frame, joints={name: p * factor for name, p in frame.joints.items()})
            write_meta(root / f"train/MC1/meta/{key[-4:]}.pkl", train_meta(moved))
        config, hand = run_config(root, split={"val_percent": 50}), FanHand(factor)
        dataset = build_dataset(config, "val", hand, show_progress=False)  # type: ignore[arg-type]
        inputs.append(
            [dataset[i] for i in range(len(dataset))] + [dataset.view(modality="rgb", augmented=False)[0]]
        )
    for near, far in zip(*inputs, strict=True):
        assert torch.allclose(far.joints_cam_m, 1.3 * near.joints_cam_m, atol=1e-4)
        for field in ("rgb", "depth", "z_ref_m", "intrinsics_crop_px", "rot_crop_from_img"):
            # The box is made of the same pixels up to the last bit of a division.
            assert (getattr(near, field) - getattr(far, field)).abs().median() < 1e-3, field
        assert float(near.z_ref_m) == pytest.approx(float(far.z_ref_m), rel=1e-4)


def test_a_sample_is_the_same_for_whoever_asks(tree: Tree) -> None:
    """Equal (seed, epoch, index) means equal bits; another epoch is another draw."""
    config = run_config(tree[0])
    first, second = dataset_of(config, "train"), dataset_of(config, "train")
    keys = [SampleKey(i, epoch) for i in range(6) for epoch in range(2)]
    forward = [first.batch([key]) for key in keys]
    np.random.seed(0)  # noqa: NPY002 - must not matter
    torch.manual_seed(0)
    backward = [second.batch([key]) for key in reversed(keys)][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(forward[0], forward[1])
    other = dataset_of(dataclasses.replace(config, seed=1), "train").batch([keys[0]])
    assert not np.array_equal(other.rot_crop_from_img, forward[0].rot_crop_from_img)


def test_a_batch_is_its_samples(tree: Tree) -> None:
    """Samples made together must be those made alone, to the last bit, in their order."""
    dataset = dataset_of(run_config(tree[0]), "train")
    keys = [SampleKey(i, 3) for i in (4, 0, 2)]
    together = dataset.batch(keys)
    for k, key in enumerate(keys):
        assert equal(together.map(lambda t, k=k: t[k : k + 1]), dataset.batch([key]))


def test_validation_sees_no_augmentation(tree: Tree) -> None:
    """The score of an epoch must not depend on the epoch or the run's seed."""
    config = run_config(tree[0], split={"val_percent": 25})
    dataset = dataset_of(config, "val")
    other = dataset_of(dataclasses.replace(config, seed=9), "val")
    assert equal(dataset.batch([SampleKey(1, 0)]), dataset.batch([SampleKey(1, 5)]))
    assert equal(dataset.batch([SampleKey(1, 0)]), other.batch([SampleKey(1, 0)]))
    np.testing.assert_array_equal(dataset.batch([SampleKey(1)]).colour_affine[0], np.eye(3, 4))


def test_what_cannot_be_augmented_says_so(tree: Tree) -> None:
    """A view that was asked to vary and did not would be a study of nothing."""
    off = run_config(tree[0], augmentation={"enabled": False})
    for dataset in (dataset_of(run_config(tree[0]), "val"), dataset_of(off, "train")):
        with pytest.raises(ConfigError, match="cannot be augmented"):
            dataset.view(modality="rgbd", augmented=True)


def test_box_jitter_moves_the_crop(tree: Tree) -> None:
    """Boxes of a detector are never exact; a network would read exact ones as labels (lesson 19)."""
    dataset = dataset_of(run_config(tree[0]), "train")
    wrists = np.stack([dataset.batch([SampleKey(0, epoch)]).z_ref_m for epoch in range(8)])
    focal = np.stack([dataset.batch([SampleKey(0, epoch)]).intrinsics_crop_px[0, 0, 0] for epoch in range(8)])
    assert np.ptp(focal) > 0.05 * focal.mean()
    assert np.ptp(wrists) > 0


def test_evaluation_without_truth_labels_the_wrist_only(tmp_path: Path) -> None:
    """No label is invented: all but the wrist weighs nothing, and scoring is refused."""
    frames = write_tree(tmp_path, {"MC1": 1}, {"SM1": 2}, truth=False)
    dataset = dataset_of(run_config(tmp_path), "evaluation")
    sample, frame = dataset[1], frames[dataset.frames.frame_id(1)]
    assert sample.joints_conf.tolist() == [1.0] + [0.0] * 20
    assert not sample.mano_valid
    turn = sample.rot_crop_from_img.double().numpy()
    np.testing.assert_allclose(turn.T @ sample.root_cam_m.double().numpy(), frame.joints["wrist"], atol=1e-6)
    assert all(torch.isfinite(getattr(sample, f.name).float()).all() for f in dataclasses.fields(sample))
    with pytest.raises(DataError, match=r"evaluation_xyz.json"):
        dataset.frames.require_truth()


def test_evaluation_with_truth_shows_the_same_crops(tmp_path: Path) -> None:
    """Ground truth changes what is scored, never what is seen."""
    blind_root, root = tmp_path / "blind", tmp_path / "truth"
    write_tree(blind_root, {"MC1": 1}, {"SM1": 2}, truth=False)
    frames = write_tree(root, {"MC1": 1}, {"SM1": 2}, truth=True)
    blind, dataset = (
        dataset_of(run_config(blind_root), "evaluation"),
        dataset_of(run_config(root), "evaluation"),
    )
    dataset.frames.require_truth()
    for i in range(2):
        sample = dataset[i]
        assert (sample.joints_conf == 1).all()
        assert not sample.mano_valid
        expected = frames[dataset.frames.frame_id(i)].array(OPENPOSE21)
        turn = sample.rot_crop_from_img.double().numpy()
        np.testing.assert_allclose(sample.joints_cam_m.double().numpy() @ turn, expected, atol=1e-6)
        for field in ("rgb", "depth", "z_ref_m", "crop_from_img"):
            assert torch.equal(getattr(sample, field), getattr(blind[i], field)), field


def test_labels_that_were_never_opengl_are_refused(tmp_path: Path) -> None:
    """A hand behind the camera projects mirrored and crops are black (lesson 1)."""
    frames = write_tree(tmp_path, {"MC1": 2})
    for key, frame in frames.items():
        meta = train_meta(frame)
        write_meta(
            tmp_path / f"train/MC1/meta/{key[-4:]}.pkl", meta | {"handJoints3D": meta["handJoints3D"] @ FLIP}
        )
    with pytest.raises(DataError, match=r"2 hand not in front of the camera.*must be OpenGL"):
        dataset_of(run_config(tmp_path, split={"val_percent": 50}), "train")


def test_a_picture_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    """A run that stops at night must say which frame to mend."""
    write_tree(tmp_path, {"MC1": 2})
    dataset = dataset_of(run_config(tmp_path, split={"val_percent": 50}), "val")
    frame = dataset.frames.frame_id(0)[-4:]
    (tmp_path / f"train/MC1/depth/{frame}.png").write_bytes(b"")
    with pytest.raises(DataError, match=rf"MC1/depth/{frame}.png.*Re-extract"):
        dataset[0]
    write_pictures(
        tmp_path / "train/MC1", frame, np.zeros((480, 640, 3), np.uint8), np.zeros((100, 100), np.uint16)
    )
    with pytest.raises(DataError, match="aligns them"):
        dataset[0]


def test_missing_depth_falls_back_to_the_box(tmp_path: Path) -> None:
    """A sensor that saw nothing is shown as such: present, nowhere valid, and a usable reference depth."""
    write_tree(tmp_path, {"MC1": 2})
    dataset = dataset_of(run_config(tmp_path, split={"val_percent": 50}), "val")
    shape = (480, 640)
    grey = np.full((*shape, 3), 90, np.uint8)
    write_pictures(tmp_path / "train/MC1", dataset.frames.frame_id(0)[-4:], grey, np.zeros(shape, np.uint16))
    sample = dataset[0]
    assert sample.depth_present
    assert not sample.depth_valid.any()
    assert 0.2 < float(sample.z_ref_m) < 2.0


def test_the_log_line_says_what_the_split_is(tree: Tree) -> None:
    """Interpolation and new motions are different claims."""
    config = run_config(tree[0], split={"val_percent": 25})
    assert "6 frames" in dataset_of(config, "val").frames.describe()
    assert "interpolation" in dataset_of(config, "val").frames.describe()
    by_motion = run_config(tree[0], split={"by": "sequence", "val_percent": 50})
    assert "12 frames, 2 sequences, 1 motions" in dataset_of(by_motion, "val").frames.describe()
    assert "in its order" in dataset_of(config, "evaluation").frames.describe()
    with pytest.raises(ConfigError, match="'test'"):
        dataset_of(config, "test")


def test_a_dataset_travels_to_a_process_without_its_index(tree: Tree) -> None:
    """Beside a GPU, loader processes get the dataset pickled: 80 MB of labels each would be copied."""
    dataset = dataset_of(run_config(tree[0]), "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert equal(copy.batch([SampleKey(2, 1)]), dataset.batch([SampleKey(2, 1)]))
    assert len(pickle.dumps(dataset)) < 100_000


def test_a_hand_at_the_edge_never_ends_an_epoch(tmp_path: Path) -> None:
    """Roll, scale and shift may carry its crop out of the picture; the sample is then shown where it is."""
    frame = make_frame(np.random.default_rng(0))
    right = float(frame.pixels(OPENPOSE21)[:, 0].max())
    shift = np.array([(40 - right) * frame.joints["wrist"][2] / frame.intrinsics[0, 0], 0.0, 0.0])
    edge = dataclasses.replace(frame, joints={name: joint + shift for name, joint in frame.joints.items()})
    assert 10 < edge.pixels(OPENPOSE21)[:, 0].max() < 70 < -edge.pixels(OPENPOSE21)[:, 0].min()
    write_tree(tmp_path, {"MC1": 4})
    write_meta(tmp_path / "train/MC1/meta/0001.pkl", train_meta(edge))
    ranges = {"shift": 0.5, "scale": 0.6, "roll_deg": 180.0}
    config = run_config(tmp_path, split={"val_percent": 25}, augmentation=ranges, dataset={"box_scale": 1.0})
    sides = [dataset_of(config, split) for split in ("train", "val")]
    dataset, i = next(
        (d, i) for d in sides for i in range(len(d)) if d.frames.frame_id(i) == "train/MC1/0001"
    )
    moved = dataclasses.replace(dataset, modality="rgbd", augmenter=sides[0].augmenter)
    still = dataset.view(modality="rgbd", augmented=False).batch([SampleKey(i)])
    samples = [moved.batch([SampleKey(i, epoch)]) for epoch in range(60)]
    kept = [np.array_equal(sample.crop_from_img, still.crop_from_img) for sample in samples]
    assert 3 <= sum(kept) < 60, f"{sum(kept)} of 60 draws would have left the picture"
    for sample in samples:
        assert sample.rgb_u8.any(), "a black crop"


def test_other_labels_of_the_same_frames_are_another_validation(tmp_path: Path) -> None:
    """Scores by old and by mended labels must not be taken for one another: of best.pt, of two files."""
    frames = write_tree(tmp_path, {"MC1": 8})
    config = run_config(tmp_path, split={"val_percent": 25})
    before = {split: dataset_of(config, split) for split in ("train", "val")}
    name = before["val"].frames.frame_id(0)
    mended = dataclasses.replace(frames[name], betas=frames[name].betas + 0.1)
    write_meta(tmp_path / f"train/MC1/meta/{name[-4:]}.pkl", train_meta(mended))
    after = {split: dataset_of(config, split) for split in ("train", "val")}
    assert after["val"].frames.split.id != before["val"].frames.split.id
    assert after["train"].frames.split.id == before["train"].frames.split.id
    assert after["train"].frames.index.labels_sha256 != before["train"].frames.index.labels_sha256
    for split in ("train", "val"):
        assert [after[split].frames.frame_id(i) for i in range(len(after[split]))] == [
            before[split].frames.frame_id(i) for i in range(len(before[split]))
        ]
