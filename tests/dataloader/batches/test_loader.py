"""Loaders: batches on the device, the same for any number of processes and ranks."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader import build
from dataloader.batches.samplers import SampleKey
from dataloader.build import DeviceLoader, build_dataset, build_eval_loader, build_train_loader
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.errors import ConfigError, DataError
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, HandSample
from tests.dataloader.ho3d.test_truth import meshes
from tests.dataloader.tree import FanHand, Frame, run_config, write_tree

Tree = tuple[Path, dict[str, Frame]]
CPU = torch.device("cpu")


def config_of(root: Path, workers: int = 0, **sections: object) -> RunConfig:
    """Batches of two, 18 training and 6 validation frames."""
    settings = {"dataset": {"num_workers": workers}, "split": {"val_percent": 25}}
    settings |= {"training": {"batch_size": 2}, "validation": {"batch_size": 4}}
    return run_config(root, **(settings | sections))


def dataset_of(config: RunConfig, split: str) -> HO3DDataset:
    """The dataset with the fan hand."""
    return build_dataset(config, split, FanHand(), show_progress=False)  # type: ignore[arg-type]


def epoch_of(loader: DeviceLoader, epoch: int) -> list[HandBatch]:
    """All batches of an epoch."""
    loader.set_epoch(epoch)
    return list(loader)


def equal(a: HandSample, b: HandSample) -> bool:
    """Every field bit for bit."""
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(HandSample))


def by_index(batches: list[HandBatch]) -> dict[int, HandSample]:
    """Rows of batches by sample_index; each must be there once."""
    rows = [batch.row(i) for batch in batches for i in range(batch.size)]
    found = {int(row.sample_index): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_batch_row_is_the_sample_of_its_index(tree: Tree) -> None:
    """sample_index travels with the prediction; naming another frame, every result per sample would lie."""
    config = config_of(tree[0])
    dataset = dataset_of(config, "val")
    rows = by_index(list(build_eval_loader(config, dataset, 0, 1, CPU)))
    assert sorted(rows) == list(range(6))
    for i, row in rows.items():
        assert equal(row, dataset[i])


def test_an_epoch_ends_after_max_steps_per_epoch(tree: Tree) -> None:
    """The setting counts optimiser steps, two batches each here; ignored, a trial run takes hours."""
    config = config_of(tree[0], training={"batch_size": 2, "accumulation": 2, "max_steps_per_epoch": 3})
    loader = build_train_loader(config, dataset_of(config, "train"), 0, 1, CPU)
    assert len(loader) == 6
    assert len(epoch_of(loader, 0)) == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_do_not_change_an_epoch(tree: Tree, workers: int) -> None:
    """Runs on machines with other core counts must be the same run, in every epoch."""
    config = config_of(tree[0], workers)
    dataset = dataset_of(config, "train")
    alone = build_train_loader(config_of(tree[0]), dataset, 0, 1, CPU)
    loader = build_train_loader(config, dataset, 0, 1, CPU)
    for epoch in (0, 1):
        one, many = epoch_of(alone, epoch), epoch_of(loader, epoch)
        assert len(one) == len(many) == len(loader) == 9
        assert all(equal(a, b) for a, b in zip(one, many, strict=True))
    first = int(one[0].sample_index[0])
    assert equal(one[0].row(0), prepare(dataset.batch([SampleKey(first, 1)])).row(0))


def test_ranks_share_an_epoch_without_changing_it(tree: Tree) -> None:
    """A sample looks the same on whichever rank it falls."""
    config = config_of(tree[0])
    dataset = dataset_of(config, "train")
    whole = by_index(epoch_of(build_train_loader(config, dataset, 0, 1, CPU), 2))
    parts = [
        batch for rank in range(3) for batch in epoch_of(build_train_loader(config, dataset, rank, 3, CPU), 2)
    ]
    shared = by_index(parts)
    assert shared.keys() == whole.keys()
    assert all(equal(shared[i], whole[i]) for i in whole)


def test_resume_continues_with_the_next_step(tree: Tree) -> None:
    """Killed after step 4: step 5's batches follow, with their augmentation."""
    config = config_of(tree[0], training={"batch_size": 2, "accumulation": 2})
    dataset = dataset_of(config, "train")
    loader = build_train_loader(config, dataset, 0, 1, CPU)
    whole = epoch_of(loader, 1)
    loader.set_epoch(1, start_step=3)
    rest = list(loader)
    assert len(whole) == 8
    assert len(rest) == len(loader) == 2
    assert all(equal(a, b) for a, b in zip(rest, whole[6:], strict=True))


def test_an_epoch_may_end_early_and_start_again(tree: Tree) -> None:
    """An interrupted iteration must not leave its batches to the next one."""
    config = config_of(tree[0], workers=1)
    dataset = dataset_of(config, "train")
    loader = build_train_loader(config, dataset, 0, 1, CPU)
    loader.set_epoch(0)
    next(iter(loader))
    expected = epoch_of(build_train_loader(config_of(tree[0]), dataset, 0, 1, CPU), 1)
    assert all(equal(a, b) for a, b in zip(epoch_of(loader, 1), expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_leave_global_randomness_alone(tree: Tree, workers: int) -> None:
    """torch's loader draws from the global RNG at each start: weights would depend on validation."""
    config = config_of(tree[0], workers)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what is watched
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train, val = dataset_of(config, "train"), dataset_of(config, "val")
    epoch_of(build_train_loader(config, train, 0, 1, CPU), 0)
    list(build_eval_loader(config, val, 0, 1, CPU))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_stops_the_loop_with_one_line(tree: Tree, tmp_path: Path, workers: int) -> None:
    """torch wraps a process's error in a traceback; users get our line instead."""
    root = tmp_path / "HO3D"
    shutil.copytree(tree[0], root, ignore=shutil.ignore_patterns(".utnet"))
    config = config_of(root, workers)
    dataset = dataset_of(config, "val")
    sequence, frame = dataset.frames.frame_id(5).split("/")[1:]
    (root / "train" / sequence / "rgb" / f"{frame}.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(DataError) as caught:
        list(build_eval_loader(config, dataset, 0, 1, CPU))
    assert f"{sequence}/rgb/{frame}.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validation_shows_or_hides_depth_for_all(tree: Tree) -> None:
    """RGB-D and RGB-only scores are of the same frames without augmentation, also on the training split."""
    config = config_of(tree[0])
    dataset = dataset_of(config, "train")
    shown = list(build_eval_loader(config, dataset, 0, 1, CPU))
    hidden = list(build_eval_loader(config, dataset, 0, 1, CPU, modality="rgb"))
    assert all(batch.depth_present.all() for batch in shown)
    assert not any(batch.depth_present.any() or batch.depth.any() for batch in hidden)
    for a, b in zip(shown, hidden, strict=True):
        assert torch.equal(a.rgb, b.rgb)
        assert torch.equal(a.joints_cam_m, b.joints_cam_m)
    assert dataset.modality == "train"


def test_batches_have_the_documented_shapes(tree: Tree) -> None:
    """Every other room relies on them."""
    config = config_of(tree[0])
    batch = next(iter(build_train_loader(config, dataset_of(config, "train"), 0, 1, CPU)))
    shapes = {f.name: tuple(getattr(batch, f.name).shape) for f in dataclasses.fields(batch)}
    assert shapes == {
        "sample_index": (2,),
        "rgb": (2, 3, 128, 96),
        "depth": (2, 1, 128, 96),
        "depth_valid": (2, 1, 128, 96),
        "depth_present": (2,),
        "z_ref_m": (2,),
        "intrinsics_img_px": (2, 3, 3),
        "intrinsics_crop_px": (2, 3, 3),
        "crop_from_img": (2, 3, 3),
        "rot_crop_from_img": (2, 3, 3),
        "joints_cam_m": (2, 21, 3),
        "joints_root_m": (2, 21, 3),
        "joints_crop_px": (2, 21, 2),
        "joints_unit": (2, 21, 2),
        "joints_conf": (2, 21),
        "root_cam_m": (2, 3),
        "translation_m": (2, 3),
        "global_orient": (2, 3, 3),
        "hand_pose": (2, 15, 3, 3),
        "betas": (2, 10),
        "mano_valid": (2,),
    }
    kinds = {f.name: getattr(batch, f.name).dtype for f in dataclasses.fields(batch)}
    assert kinds.pop("sample_index") == torch.int64
    assert kinds.pop("depth_present") == kinds.pop("mano_valid") == torch.bool
    assert set(kinds.values()) == {torch.float32}


def test_a_split_smaller_than_a_step_is_an_error(tree: Tree) -> None:
    """An epoch without a step would print a loss of nothing."""
    config = config_of(tree[0], training={"batch_size": 8})
    with pytest.raises(ConfigError, match="18 samples"):
        build_train_loader(config, dataset_of(config, "train"), 0, 4, CPU)


def test_missing_official_meshes_are_said(tmp_path: Path, monkeypatch, caplog) -> None:
    """Whoever evaluates without the meshes' file must learn that half of the official scores is left out."""
    frames = write_tree(tmp_path, {"MC1": 2, "SM1": 2}, {"AP10": 2})
    hand = FanHand()
    hand.faces = torch.zeros(1)  # type: ignore[attr-defined]
    config = config_of(tmp_path, split={"by": "sequence"}, validation={"split": "evaluation"})
    context = DistContext(0, 1, 0, CPU, None)
    with caplog.at_level(logging.INFO, "utnet"):
        build.build_splits(config, context, hand)  # type: ignore[arg-type]
    said = next(message for message in caplog.messages if message.startswith("WARNING"))
    for part in ("no official mesh scores", "lacks evaluation_verts.json (", "November 2024", "github.com"):
        assert part in said
    caplog.clear()
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(meshes(frames).tolist()))
    with caplog.at_level(logging.INFO, "utnet"):
        build.build_splits(config, context, hand)  # type: ignore[arg-type]
    assert "WARNING" not in caplog.text
