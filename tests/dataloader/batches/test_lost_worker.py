"""A loader process that the system kills costs speed, never a batch, and nothing in the middle of a step."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dataloader.batches.samplers import SampleKey
from dataloader.build import DeviceLoader
from dataloader.ho3d_dataset import HO3DDataset
from src.errors import DataError
from src.schema import HandBatch
from tests.dataloader.batches.test_loader import loader_of
from tests.dataloader.tree import Tree
from tests.log_lines import log_lines

WAIT_S = 60.0


def loaders(root: Path, workers: int) -> tuple[DeviceLoader, DeviceLoader]:
    """Training and validation loaders of a tree."""
    train, val = (loader_of(root, split, workers, validation={"batch_size": 1}) for split in ("train", "val"))
    return train, val


def kill_workers(loader: DeviceLoader, number: int = signal.SIGKILL) -> None:
    """As the kernel does when memory ends; returns when they are gone."""
    for process in loader._loader._iterator._workers:  # type: ignore[union-attr]
        os.kill(process.pid, number)
        process.join(WAIT_S)


def same(found: list[HandBatch], wanted: list[HandBatch]) -> bool:
    """Whether two epochs hold the same samples in the same order, pixel by pixel."""
    return len(found) == len(wanted) and all(
        torch.equal(a.sample_index, b.sample_index) and torch.equal(a.rgb, b.rgb)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("which", [0, 1], ids=["training", "validation"])
def test_the_rest_of_the_epoch_is_loaded_here(tree: Tree, which: int) -> None:
    """Each batch once, whatever the dead process had prepared; the next epoch has processes again."""
    wanted = list(loaders(tree[0], 0)[which])
    loader = loaders(tree[0], 2)[which]
    batches = iter(loader)
    found = [next(batches) for _ in range(2)]
    with log_lines("data") as said:
        kill_workers(loader)
        found += list(batches)
    assert same(found, wanted)
    lost = r"a loader process was lost: process \d+ ended by -9, process \d+ ended by -9\. "
    assert re.match(lost, str(loader.died))
    (line,) = said
    assert "This process loads what is left of the epoch." in line
    again = iter(loader)
    first = next(again)
    assert len(loader._loader._iterator._workers) == 2  # type: ignore[union-attr]
    assert same([first, *again], wanted)
    assert loader.died is None


def test_a_process_that_dies_while_it_is_waited_for(tree: Tree) -> None:
    """Nobody may wait for its batch until the longest wait is over."""
    wanted = list(loaders(tree[0], 0)[0])
    loader = loaders(tree[0], 1)[0]
    batches = iter(loader)
    found = [next(batches)]
    (process,) = loader._loader._iterator._workers  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (process.pid, signal.SIGKILL)).start()
    found += list(batches)
    assert same(found, wanted)
    assert f"process {process.pid} ended by -9" in str(loader.died)


def test_processes_that_died_between_two_epochs(tree: Tree) -> None:
    """During a validation, say: whoever waits for them would wait for five minutes."""
    train, val = loaders(tree[0], 2)
    wanted = [list(loader) for loader in loaders(tree[0], 0)]
    assert same(list(train), wanted[0])
    kill_workers(train)
    for loader, epoch in ((val, wanted[1]), (train, wanted[0]), (val, wanted[1])):
        assert same(list(loader), epoch)


def test_a_death_raises_only_where_a_batch_is_waited_for(tree: Tree) -> None:
    """torch raises it from a signal handler: in the middle of a weight update, or of a checkpoint."""
    loader = loaders(tree[0], 1)[0]
    batches = iter(loader)
    next(batches)
    kill_workers(loader, signal.SIGSEGV)
    for _ in range(20):
        time.sleep(0.01)  # where Python answers signals
    assert loader.died is None
    assert len(list(batches)) == len(loader) - 1
    assert loader.died is not None


def test_a_process_that_hangs_is_an_error(tree: Tree) -> None:
    """Whatever holds it up would hold this process up too."""
    loader = loaders(tree[0], 0)[0]
    with pytest.raises(DataError, match="a loader process hangs: DataLoader timed out after 300 seconds"):
        loader._here(0, "DataLoader timed out after 300 seconds")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("heals", [True, False], ids=["a moment", "for good"])
def test_a_batch_that_cannot_be_read(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, heals: bool
) -> None:
    """A server that is away for a moment costs nothing; a broken file ends a run that has saved its steps."""
    train, val = loaders(tree[0], workers)
    batch, wanted = HO3DDataset.batch, list(loaders(tree[0], 0)[0])

    def failing(self: HO3DDataset, keys: Sequence[SampleKey]) -> Any:
        bad = [k.index for k in keys] == [int(i) for i in wanted[2].sample_index]
        if (keys[0].index == 2 if self is not train_set else bad) and not (
            heals and (tmp_path / "tried").exists()
        ):
            (tmp_path / "tried").touch()
            raise OSError(errno.EIO, "Input/output error")
        return batch(self, keys)

    train_set = cast(Any, train._loader.dataset).dataset
    monkeypatch.setattr(HO3DDataset, "batch", failing)
    with log_lines("data") as said:
        found = list(train)
    assert same(found, wanted if heals else [*wanted[:2], wanted[1], *wanted[3:]])
    why = "a batch could not be made (OSError: [Errno 5] Input/output error). Look at memory and /dev/shm"
    if heals:
        assert said == [f"WARNING: {why}. Read at the second try."]
        assert train.died is None
    else:
        assert train.died == f"{why}. The last step took the batch before it twice"
        batches = iter(val)
        assert next(batches).sample_index.tolist() == [0]
        with pytest.raises(DataError, match="could not be made"):  # a validation makes up no sample
            list(batches)
