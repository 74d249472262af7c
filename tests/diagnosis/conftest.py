"""The embedded data set of the end-to-end tests, as batches in this process."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch

from dataloader.build import build_dataset, build_eval_loader, build_train_loader
from dataloader.ho3d.split import SplitName
from src.config import RunConfig
from src.config_file import load_config
from src.hand.mano import ManoLayer
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch
from tests.end_to_end.conftest import Embedded, embedded
from tests.rooms.sources import ROOT

__all__ = ["embedded"]

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)


class Clinic:
    """Makes batches and networks of the embedded set under any setting."""

    def __init__(self, data: Embedded) -> None:
        self.data = data
        self.hand = ManoLayer.from_file(data.hand)

    def config(self, *overrides: str) -> RunConfig:
        """The demo's configuration on small crops, batches of 8."""
        arguments = self.data.settings("training.batch_size=8", *overrides)
        return load_config(ROOT / Path(arguments[1]), arguments[2:])

    def stream(self, *overrides: str, split: SplitName = "train") -> Iterator[HandBatch]:
        """Batches of the first epoch, or of the validation, each made when it is asked for."""
        config = self.config(*overrides)
        dataset = build_dataset(config, split, self.hand, show_progress=False)
        if split == "val":
            yield from build_eval_loader(config, dataset, 0, 1, ALONE.device)
            return
        loader = build_train_loader(config, dataset, 0, 1, ALONE.device)
        loader.set_epoch(0)
        yield from loader

    @functools.cache  # noqa: B019  (one clinic lives as long as its tests)
    def batches(self, *overrides: str, count: int = 3, split: SplitName = "train") -> list[HandBatch]:
        """The first of them; for healthy data only, as they are kept."""
        return list(islice(self.stream(*overrides, split=split), count))


@pytest.fixture(scope="session")
def clinic(embedded: Embedded) -> Clinic:
    """One for all tests of a process."""
    return Clinic(embedded)


def names(findings: Sequence[object]) -> list[str]:
    """`what` of findings that are not OK, in their order."""
    return [f.what for f in findings if f.status != "OK"]  # type: ignore[attr-defined]
