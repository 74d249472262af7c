"""What a run is configured by: frozen dataclasses with the unit and the range of every field.

`src/config_file/` reads them from strict YAML with dotted overrides. Precedence, last wins: the defaults
here, the YAML's bases, the YAML, the command line. Paths are relative to the working directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from src.errors import ConfigError

COUNT_OR_SHARE = "a whole number such as 26, at least 0, or a share such as 0.1%, at least 0 and below 100 %"
_SHARE = re.compile(r"(?P<percent>[0-9]+(\.[0-9]+)?) ?%")


def count_or_share(value: Any, of: int) -> int | None:
    """How many of `of` things a setting means, a share rounded down; None: it is not COUNT_OR_SHARE."""
    if isinstance(value, str):
        match = _SHARE.fullmatch(value)
        percent = Fraction(match["percent"]) if match else None
        return int(of * percent / 100) if percent is not None and percent < 100 else None
    return value if type(value) is int and value >= 0 else None  # bool is a subclass of int


def _number(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A field whose value, or each of whose elements, must keep the bounds given."""
    return field(default=default, metadata={"ge": ge, "gt": gt, "le": le, "lt": lt})


DERIVED_FOLDER = ".utnet"
"""Where the index and what else is made of a data set stand, inside it."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which files are read, and how."""

    root_dir: Path = Path("data/HO3D_v3")
    """Folder with train/, evaluation/, train.txt and evaluation.txt."""
    version: Literal["v2", "v3"] = "v3"
    """HO3D release: v2 has .png pictures, v3 .jpg."""
    expected_train_frames: int | None = _number(None, ge=1)
    """Frames that train.txt must list; null: any number. HO3D_v3 has 83,325, v2 66,034."""
    index_dir: Path | None = None
    """Folder of the packed annotation index; null: DERIVED_FOLDER inside root_dir."""
    num_workers: int = _number(4, ge=0, le=64)
    """Loader processes per rank; 0 loads in the training process."""
    cache: str = "off"
    """Decoded pixels around each hand, written once and memory-mapped.

    off: every picture is decoded each time; auto: beside the annotation index; else the folder to write in.
    """
    cache_format: Literal["raw", "compact"] = "raw"
    """raw: the same pixels as without a cache. compact: JPEG (PSNR >= 42 dB) and lossless depth, a quarter of
    the space."""
    max_unusable: int | str = field(default=0, metadata={"count_or_share": True})
    """Training frames that may be unusable: a count such as 26, or a share of the listed frames such as 0.1%.

    They are left out of every split and counted. More is an error. Share: at least 0 and below 100 %.
    """
    p_drop_depth: float = _number(0.4, ge=0.0, le=1.0)
    """Probability that a training sample is shown without depth."""
    box_scale: float = _number(1.6, ge=1.0, le=4.0)
    """Side of the square crop over the longer side of the hand's box."""

    def unusable_allowed(self, listed: int) -> int:
        """How many of `listed` frames max_unusable lets a run leave out; a share is rounded down."""
        allowed = count_or_share(self.max_unusable, listed)
        if allowed is None:
            raise ConfigError(f"dataset.max_unusable: want {COUNT_OR_SHARE}, got {self.max_unusable!r}")
        return allowed


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the training list is divided into `train` and `val`."""

    by: Literal["frame", "sequence"] = "frame"
    """frame: random frames (interpolation); sequence: whole motions held out (what claims are made on)."""
    val_percent: int = _number(10, ge=1, le=50)
    """Percent of the frames in val, floor(N * val_percent / 100).

    By sequence: of the motions, at least one. Not used with `held_out_list`.
    """
    held_out_list: Path | None = None
    """Text file with the names of the sequences in val, one a line; only with `by: sequence`.

    A motion of which one camera is named is held out with all its cameras. A relative path starts at
    `dataset.root_dir`; null: motions are drawn.
    """


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    preset: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Width and depth of the backbone, and how it reads the picture; see src/models/vit.py."""
    image_size: tuple[int, int] = _number((256, 192), ge=32, le=1024)
    """(H, W) of the crop in pixels, multiples of 16."""
    drop_path: float = _number(0.0, ge=0.0, lt=1.0)
    """Drop probability of the last block's residual branches, rising linearly from 0 at the first."""
    refine_iterations: int = _number(1, ge=0, le=4)
    """Passes of the mesh refinement, with shared weights; 0 leaves it out."""
    second_look: bool = False
    """What is predicted is seen in the crop turned upright by a first prediction, for twice the time; most
    training crops are upright."""
    pretrained: Path | None = None
    """Backbone weights (torchvision ViT, timm ViT, ViTPose or UTNet), a local file; null: from scratch."""


@dataclass(frozen=True, kw_only=True)
class ManoConfig:
    """The hand model."""

    model_path: Path = Path("data/mano/MANO_RIGHT.pkl")
    """Right hand in MANO's file format: the licensed file, or the stand-in of dataloader/synthetic/hand."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms; each term is of order 1 at the start of training. 0 leaves a term out."""

    joints_3d: float = _number(1.0, ge=0.0)
    """Wrist-relative joints, smooth L1, metres over a hand's 0.1 m; weighs the voted joints too."""
    joints_canonical: float = _number(4.0, ge=0.0)
    """The same with each hand's wrist rotation undone: fingers alone."""
    vertices: float = _number(0.5, ge=0.0)
    """Wrist-relative vertices, as the joints."""
    joints_2d: float = _number(0.3, ge=0.0)
    """Projected joints, L1 in fractions of the crop over 0.1; weighs the voted places too."""
    rotations: float = _number(0.5, ge=0.0)
    """Wrist and local rotation matrices, mean squared difference of elements."""
    heatmap: float = _number(2.0, ge=0.0)
    """Votes of joints inside the crop: divergence from a Gaussian of one cell, over log of the cells."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Epochs, batches and checkpoints."""

    num_epochs: int = _number(60, ge=1)
    """Passes over the training split."""
    batch_size: int = _number(32, ge=1)
    """Samples per rank and forward pass."""
    accumulation: int = _number(1, ge=1)
    """Forward passes per optimiser step; global batch = batch_size * ranks * accumulation."""
    max_steps_per_epoch: int | None = _number(None, ge=1)
    """Optimiser steps after which an epoch ends early; null: all."""
    clip_grad_norm: float = _number(20.0, gt=0.0)
    """Largest global gradient norm; the share of clipped steps is logged."""
    ema_decay: float = _number(0.999, ge=0.0, lt=1.0)
    """Decay per optimiser step of the averaged weights that are validated; 0: none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone: tokens, transformer and feature maps.

    auto: bf16 on GPUs and CPUs that compute it themselves, fp32 elsewhere. fp32 means all digits, never TF32,
    as it does for the rest of the network whatever is set here.
    """
    save_every_steps: int = _number(500, ge=0)
    """Optimiser steps between writes of last.pt inside an epoch; 0: at epoch ends only."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for matrices and AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon learns from scratch in fewer samples; pretrained weights are usually fine-tuned with adamw."""
    lr: float = _number(3e-4, gt=0.0, le=1.0)
    """Peak learning rate."""
    reference_batch: int | None = _number(None, ge=1)
    """Global batch that lr is meant for; a run's rate is in proportion to its own. Null: lr as given."""
    layer_decay: float = _number(1.0, gt=0.0, le=1.0)
    """Factor on the rate from each block of the backbone to the one below it; below 1 if pretrained.

    What no pretrained ViT has, the layers of depth and the queries, learns at the full rate.
    """
    weight_decay: float = _number(0.05, ge=0.0, le=1.0)
    """Decoupled decay of all that has two axes or more, but a ViT's positions and class token."""
    betas: tuple[float, float] = _number((0.9, 0.999), ge=0.0, lt=1.0)
    """Decay of the two moments."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Learning rate by optimiser step: linear warm-up, then straight down to a hundredth of the peak."""

    warmup_fraction: float = _number(0.05, ge=0.0, lt=1.0)
    """Share of all steps in which the rate rises from near 0 to its peak."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What is done to training samples; validation sees none of it."""

    enabled: bool = True
    """false: training samples look like validation samples (modality sampling goes on).

    Crops move with the spread of boxes in `dataloader/crop/augment.py`; one that roll, scale and shift would
    leave with less than 2 % of the picture keeps its place.
    """
    roll_deg: float = _number(180.0, ge=0.0, le=180.0)
    """Roll about the optical axis, uniform in +-roll_deg degrees; not of crops that are turned upright."""
    colour: float = _number(0.3, ge=0.0, lt=1.0)
    """Strength of brightness, contrast, saturation and white balance."""
    p_occluder: float = _number(0.3, ge=0.0, le=1.0)
    """Probability that shapes are painted over picture and depth."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is scored, and when."""

    split: Literal["val", "evaluation"] = "val"
    """val: held out of the training list; evaluation: HO3D's official split, for --evaluate alone."""
    batch_size: int = _number(64, ge=1)
    """Samples per forward pass; part of the protocol, independent of ranks and of training.batch_size."""
    every_epochs: int = _number(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    boxes: str = "labels"
    """labels; detect, depth or a CSV of boxes scores the weights a second time, with the hands found there.

    The score of the labels' boxes decides all the same. See `src/predict/boxes/`.
    """
    pictures: int = _number(12, ge=0, le=36)
    """Samples to look at on the page of each validation, a quarter each of the worst, the best, those in the
    middle and a spread of all; 0: none."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run writes down."""

    runs_dir: Path = Path("runs")
    """Folder in which each run makes its own."""
    every: int = _number(50, ge=1)
    """Optimiser steps between scalars."""
    doctor_stops: bool = False
    """A FAIL of the doctor ends the run after the next step, saved, with status 3."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU for each rank if this machine has enough, else the CPU."""
    threads: int = _number(1, ge=1, le=256)
    """Torch threads per rank on the CPU.

    Sums depend on it in the last bit, so it does not follow the machine.
    """
    timeout_s: float = _number(1800.0, gt=0.0, le=604_800.0)
    """Longest wait for a collective of training, for a message of the collection, and for a sign of life of a
    rank, seconds.

    A rank that lives and works alone may take longer: the others wait for it.
    """
    deterministic: bool = True
    """Deterministic kernels: two runs on one machine give the same weights bit for bit."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run."""

    name: str = "ho3d_v3"
    """Part of the run folder's name: letters, digits, '-', '_', '.'."""
    seed: int = _number(0, ge=0)
    """Root of every random stream of training."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mano: ManoConfig = field(default_factory=ManoConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
