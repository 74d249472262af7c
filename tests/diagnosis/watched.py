"""A short training with the doctor beside it, and what the doctor said."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch

import train
from dataloader.build import build_dataset
from dataloader.ho3d.leaks import find_leaks
from dataloader.ho3d_dataset import HO3DDataset
from src import build
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.schema import Prediction
from src.training.diagnosis.doctor import Doctor
from src.training.step import TrainStep
from tests.diagnosis.conftest import ALONE, Clinic
from tests.log_lines import log_lines


def heard() -> contextlib.AbstractContextManager[list[str]]:
    """Lines that the doctor logs."""
    return log_lines("doctor")


class Watched:
    """A training run in this process, without its command line."""

    def __init__(self, clinic: Clinic, *overrides: str) -> None:
        self.config = clinic.config(*overrides)
        shown = [o for o in overrides if o.startswith(("dataset.", "seed="))]
        self.batches = clinic.batches(*shown)
        torch.manual_seed(self.config.seed)
        self.model = UTNet(self.config.model, clinic.hand)
        loss = HandLoss(self.config.loss, clinic.hand)
        self.trainer = TrainStep(self.model, loss, self.config, ALONE, total_steps=40)
        self.doctor = Doctor(self.config, ALONE, clinic.hand)
        self._hand = clinic.hand

    @functools.cached_property
    def train_set(self) -> HO3DDataset:
        return build_dataset(self.config, "train", self._hand, show_progress=False)

    @functools.cached_property
    def val_set(self) -> HO3DDataset:
        return build_dataset(self.config, "val", self._hand, show_progress=False)

    @functools.cached_property
    def scoring(self) -> build.Scoring:
        return build.build_scoring(self.config, ALONE, self.train_set, self.val_set, self._hand)

    def begin(self) -> None:
        """What train.py does before the first step."""
        names = [data.frames.names() for data in (self.train_set, self.val_set)]
        self.doctor.setting(self.trainer, lambda: find_leaks(*names))

    def steps(self, count: int) -> None:
        """Optimiser steps on the batches in turn."""
        for _ in range(count):
            group = [self.batches[self.trainer.step % len(self.batches)]]
            report = self.trainer(group)
            self.doctor.after(self.trainer, report, group)

    def validate(self, answer: Callable[..., Prediction] | None = None) -> None:
        """Score the network, or what a hook makes of its answers."""
        hook = self.model.register_forward_hook(answer) if answer is not None else None
        results = train.score(self.model, self.trainer.loss, self.scoring)
        if hook is not None:
            hook.remove()
        self.doctor.validation(self.trainer, results)
