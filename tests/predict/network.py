"""A small network's checkpoint, by the code that writes those of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from src.config import DatasetConfig, ManoConfig, ModelConfig, RunConfig, ValidationConfig
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.training.checkpoints import checkpoint as ckpt
from src.training.step import TrainStep
from tests.hand_file import hand_file
from tests.training.toy import ALONE

SIZE = (64, 64)


def write_network(path: Path, dataset: DatasetConfig | None = None) -> RunConfig:
    """Write a tiny network with random weights whose depth branch is not at its zero start."""
    config = RunConfig(
        dataset=dataset or DatasetConfig(),
        model=ModelConfig(preset="tiny", image_size=SIZE),
        mano=ManoConfig(model_path=hand_file()),
        validation=ValidationConfig(batch_size=2),
    )
    torch.manual_seed(0)
    hand = ManoLayer.from_file(hand_file())
    model = UTNet(config.model, hand)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    trainer = TrainStep(model, HandLoss(config.loss, hand), config, ALONE, 10)
    ckpt.save_checkpoint(path, trainer, ckpt.Progress(), config, hand, "abc", ALONE)
    return config
