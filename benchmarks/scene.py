"""A small embedded data set and a training step on it, for benchmarks of time."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.hand.standin import build_standin, write_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import RunConfig
from src.config_file import load_config
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, RawBatch
from src.training.setup import backbone_dtype
from src.training.step import TrainStep

CONFIG = Path("config/config.yaml")


@dataclass(frozen=True)
class Scene:
    """Data on disk and the hand that they show."""

    config: RunConfig
    hand: ManoLayer
    train: HO3DDataset

    def raw(self, count: int, *, epoch: int = 0) -> RawBatch:
        """The first `count` training samples, on the host."""
        return self.train.batch([SampleKey(i, epoch) for i in range(count)])

    def batch(self, count: int, device: torch.device) -> HandBatch:
        """The same, ready for the network."""
        return prepare(self.raw(count).to(device))

    def trainer(self, context: DistContext, **settings: object) -> TrainStep:
        """A training step of the scene's configuration with some settings of `model` changed."""
        model = dataclasses.replace(self.config.model, **settings)  # type: ignore[arg-type]
        config = dataclasses.replace(self.config, model=model)
        torch.manual_seed(config.seed)
        hand = ManoLayer.from_file(config.mano.model_path).to(context.device)
        network = UTNet(model, hand).to(context.device)
        network.backbone_dtype = backbone_dtype(config, context.device)
        loss = HandLoss(config.loss, hand).to(context.device)
        return TrainStep(network, loss, config, context, total_steps=10_000)


def alone(device: torch.device) -> DistContext:
    """One process without ranks."""
    return DistContext(0, 1, 0, device, None)


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def scene(*overrides: str, config: Path = CONFIG, sequences: int = 4, frames: int = 16) -> Iterator[Scene]:
    """Write a data set and a stand-in hand into a temporary folder and open them.

    Args:
        overrides: settings as on train.py's command line.
        config: recipe that they change.
        sequences: folders under train/, two of them more for validation.
        frames: of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, hand_file = Path(folder) / "HO3D", Path(folder) / "HAND.pkl"
        write_standin(hand_file)
        parameters = Parameters(
            sequences=sequences, frames=frames, evaluation_sequences=0, cameras=1,
            held_out_sequences=2, held_out_frames=frames,
        )  # fmt: skip
        write_tree(root, parameters, build_standin(), workers=2)
        fixed = (
            f"dataset.root_dir={root}",
            "dataset.expected_train_frames=null",
            f"mano.model_path={hand_file}",
            "split.by=sequence",
            "split.held_out_list=held_out.txt",
        )
        settings = load_config(config, (*fixed, *overrides))
        hand = ManoLayer.from_file(hand_file)
        yield Scene(settings, hand, build_dataset(settings, "train", hand, show_progress=False))


def sync(where: torch.device) -> None:
    """Wait for a device; a CPU has done its work already."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
