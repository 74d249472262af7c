"""Loaders: batches on the device, the same for any number of processes and ranks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader import build
from dataloader.batches.samplers import SampleKey
from dataloader.build import DeviceLoader, build_eval_loader, build_train_loader
from dataloader.crop.prepare import prepare
from src.config import RunConfig
from src.errors import ConfigError, DataError
from src.runtime.ranks.distributed import DistContext
from src.schema import HandSample
from tests.dataloader.ho3d.test_truth import meshes
from tests.dataloader.tree import FanHand, Tree, dataset_of, run_config, write_tree
from tests.log_lines import log_lines

CPU = torch.device("cpu")


def config_of(root: Path, workers: int = 0, **sections: object) -> RunConfig:
    """Batches of two, 18 training and 6 validation frames."""
    settings = {"dataset": {"num_workers": workers}, "split": {"val_percent": 25}}
    settings |= {"training": {"batch_size": 2}, "validation": {"batch_size": 4}}
    return run_config(root, **(settings | sections))


def loader_of(root: Path, split: str = "train", workers: int = 0, **sections: object) -> DeviceLoader:
    """The training or the validation loader of one process."""
    config = config_of(root, workers, **sections)
    make = build_train_loader if split == "train" else build_eval_loader
    return make(config, dataset_of(config, split), 0, 1, CPU)


def equal(a: HandSample, b: HandSample) -> bool:
    """Every field bit for bit."""
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(HandSample))


def test_a_batch_row_is_the_sample_of_its_index(tree: Tree) -> None:
    """sample_index travels with the prediction; naming another frame, every result per sample would lie."""
    dataset = dataset_of(config_of(tree[0]), "val")
    rows = [batch.row(i) for batch in loader_of(tree[0], "val") for i in range(batch.size)]
    assert [int(row.sample_index) for row in rows] == list(range(6))
    assert all(equal(row, dataset[i]) for i, row in enumerate(rows))


def test_loader_processes_do_not_change_an_epoch(tree: Tree) -> None:
    """Runs on machines with other core counts must be the same run, in every epoch.

    An interrupted epoch leaves no batch to the next one, and no loader draws from the global generators, as
    torch's does at each start: weights would depend on validation.
    """
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what is watched
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    alone, loader = loader_of(tree[0]), loader_of(tree[0], workers=2)
    next(iter(loader))
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        loader.set_epoch(epoch)
        one, many = list(alone), list(loader)
        assert len(one) == len(many) == len(loader) == 9
        assert all(equal(a, b) for a, b in zip(one, many, strict=True))
    key = SampleKey(int(one[0].sample_index[0]), 1)
    assert equal(one[0].row(0), prepare(dataset_of(config_of(tree[0]), "train").batch([key])).row(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_resume_continues_with_the_next_step(tree: Tree) -> None:
    """Killed after step 2 of 3, each of two batches: the third one follows, with its augmentation."""
    training = {"batch_size": 2, "accumulation": 2, "max_steps_per_epoch": 3}
    loader = loader_of(tree[0], training=training)
    loader.set_epoch(1)
    whole = list(loader)
    loader.set_epoch(1, start_step=2)
    rest = list(loader)
    assert (len(whole), len(rest), len(loader)) == (6, 2, 2)
    assert all(equal(a, b) for a, b in zip(rest, whole[4:], strict=True))
    with pytest.raises(ConfigError, match="start_step=4"):
        loader.set_epoch(1, start_step=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_stops_the_loop_with_one_line(tree: Tree, tmp_path: Path, workers: int) -> None:
    """torch wraps a process's error in a traceback; users get our line instead."""
    root = tmp_path / "HO3D"
    shutil.copytree(tree[0], root, ignore=shutil.ignore_patterns(".utnet"))
    sequence, frame = dataset_of(config_of(root), "val").frames.frame_id(5).split("/")[1:]
    (root / "train" / sequence / "rgb" / f"{frame}.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match=f"{sequence}/rgb/{frame}.jpg") as caught:
        list(loader_of(root, "val", workers))
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


def test_missing_official_meshes_are_said(tmp_path: Path) -> None:
    """Whoever evaluates without the meshes' file must learn that half of the official scores is left out."""
    frames = write_tree(tmp_path, {"MC1": 2, "SM1": 2}, {"AP10": 2})
    hand = FanHand()
    hand.faces = torch.zeros(1)  # type: ignore[attr-defined]
    config = config_of(tmp_path, split={"by": "sequence"}, validation={"split": "evaluation"})
    context = DistContext(0, 1, 0, CPU, None)
    with log_lines("data") as said:
        build.build_splits(config, context, hand)  # type: ignore[arg-type]
    warning = next(line for line in said if line.startswith("WARNING"))
    assert "no official mesh scores" in warning
    assert "lacks evaluation_verts.json (" in warning
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(meshes(frames).tolist()))
    with log_lines("data") as said:
        build.build_splits(config, context, hand)  # type: ignore[arg-type]
    assert "WARNING" not in "".join(said)
