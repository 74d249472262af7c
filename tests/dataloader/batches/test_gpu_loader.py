"""Batches on their way to a GPU: in one block, page-locked, one ahead, on a stream of their own."""

from __future__ import annotations

import dataclasses
import types
from typing import Any
from unittest import mock

import pytest
import torch

from dataloader import build
from dataloader.batches import loader as loading
from dataloader.build import DeviceLoader, build_eval_loader, build_train_loader
from dataloader.crop.prepare import prepare
from src.config import ManoConfig, RunConfig
from src.hand.mano import ManoLayer
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, RawBatch
from tests.dataloader.batches.test_loader import CPU, config_of
from tests.dataloader.tree import Tree, dataset_of
from tests.fake_gpu import GPU, fake_gpu
from tests.hand_file import hand_file
from tests.training.test_step import raw
from tests.waits import Waits

FIELDS = len(dataclasses.fields(HandBatch))


@pytest.mark.gpu
def test_batches_made_ahead_on_a_gpu_are_those_of_the_cpu() -> None:
    """A batch read before its copy has ended, or overwritten while it is read, is a wrong batch."""
    device = torch.device("cuda")
    parcels = [raw(k).pack(shared=False).pin_memory() for k in range(8)]
    made = loading._one_ahead((prepare(parcel.unpack(device)) for parcel in parcels), device)
    for parcel, batch in zip(parcels, made, strict=True):
        want = prepare(parcel.unpack(CPU))
        assert torch.allclose(batch.rgb.cpu(), want.rgb, atol=1e-5)
        assert torch.allclose(batch.depth.cpu(), want.depth, atol=1e-5)
        assert torch.equal(batch.sample_index.cpu(), want.sample_index)


def test_batches_are_made_ahead_and_handed_over_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch read before its copy has ended, or whose memory is given away while it is read, is a wrong
    batch; one that is not made ahead leaves the device idle.
    """
    made: list[int] = []
    parcels = [raw(k).pack(shared=False) for k in range(3)]
    with fake_gpu() as gpu:

        def prepared(batch: RawBatch) -> HandBatch:
            gpu.did(f"batch {len(made)} made on {gpu.stream.name}")
            made.append(len(made))
            return prepare(batch)

        monkeypatch.setattr(loading, "prepare", prepared)
        loader = DeviceLoader(None, [], GPU, num_workers=0, generator=torch.Generator())  # type: ignore[arg-type]
        monkeypatch.setattr(loader, "_parcels", lambda: (parcel.pin_memory() for parcel in parcels))
        with Waits("cuda") as waits:
            for k, batch in enumerate(loader):
                gpu.did(f"batch {k} used on {gpu.stream.name}")
                assert batch.rgb.device == GPU
    assert waits.seen == []
    assert [what for what in gpu.done if " reads " not in what] == [
        "batch 0 made on side1",
        "main waits for side1",
        "batch 1 made on side1",
        "batch 0 used on main",
        "main waits for side1",
        "batch 2 made on side1",
        "batch 1 used on main",
        "main waits for side1",
        "batch 2 used on main",
    ]
    for k in range(3):  # told of every field, by the reader, before it is handed over
        ready = [i for i, what in enumerate(gpu.done) if what == "main waits for side1"][k]
        assert [what.partition(" (")[0] for what in gpu.done[ready + 1 :][:FIELDS]] == ["main reads"] * FIELDS


@pytest.mark.parametrize(("device", "starts"), [(GPU, "forkserver"), (CPU, "fork")])
def test_loaders_of_a_gpu_pin_and_do_not_fork(tree: Tree, device: torch.device, starts: str) -> None:
    """Copies from ordinary memory make the host wait; a process forked beside a GPU inherits its context."""
    config = config_of(tree[0], workers=1)
    for make, split in ((build_train_loader, "train"), (build_eval_loader, "val")):
        loader = make(config, dataset_of(config, split), 0, 1, device)._loader
        assert loader.pin_memory is (device == GPU)
        assert loader.multiprocessing_context.get_start_method() == starts


def test_labels_are_read_with_a_hand_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loader processes decode wrists with it, and have no GPU."""
    config = RunConfig(mano=ManoConfig(model_path=hand_file()))
    hand: Any = types.SimpleNamespace(faces=types.SimpleNamespace(is_cuda=True))
    opened = mock.MagicMock(**{"return_value.frames.missing_truth.return_value": None})
    monkeypatch.setattr(build, "build_dataset", opened)
    build.build_splits(config, DistContext(0, 1, 0, CPU, None), hand)
    given = [call.args[2] for call in opened.call_args_list]
    assert [isinstance(used, ManoLayer) and used.faces.device.type for used in given] == ["cpu"] * 2
