"""A checkpoint's predictions on HO3D's official split, as the files that its server takes.

    python -m src.tools.export_submission --checkpoint PATH [--config FILE] [--out DIR] [section.key=...]

The configuration is the checkpoint's own unless --config names another. Every frame of evaluation.txt is
predicted in its order, in the global batches of a validation, and turned back into the image camera; the
files are read back and refused if a check fails. Ground truth is not needed; where it is, the official scores
of these very files are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.build import build_dataset, build_eval_loader
from dataloader.crop.augment import Modality
from dataloader.ho3d.layout import frame_name, read_list
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.errors import ConfigError, DataError
from src.evaluation.metrics import official_ho3d
from src.evaluation.submission import (
    NUM_VERTICES,
    joints_to_official,
    points_to_official,
    require_free,
    write_submission,
)
from src.hand.joints import OPENPOSE21
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.models.utnet import UTNet
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.runtime.files.disk import require_place
from src.runtime.machine import configure_torch
from src.runtime.progress import progress
from src.runtime.ranks.distributed import DistContext, setup_distributed
from src.runtime.ranks.launch import rank_from_environment
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import open_checkpoint
from src.training.checkpoints.settings import command_settings
from src.training.setup import build_model

OFFICIAL_FRAMES = {"v2": 11_524, "v3": 20_137}
"""Lines of evaluation.txt in each release."""

Float32 = NDArray[np.float32]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace; argparse leaves with status 2 by itself."""
    parser = make_parser(
        "python -m src.tools.export_submission",
        "Write pred.json and pred.zip of HO3D's official split from a checkpoint.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="PATH", help="best.pt or another checkpoint")
    add("--config", type=Path, metavar="FILE", help="YAML file; default: the checkpoint's own configuration")
    add("--out", type=Path, metavar="DIR", help="folder to write; default: `submission` in the run folder")
    add("--without-depth", action="store_true", help="hide depth from the network: an RGB-only submission")
    add("--overwrite", action="store_true", help="replace a pred.zip that is there")
    add("overrides", nargs="*", metavar="section.key=value", help="settings that win over the configuration")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = parse_arguments(argv)
    log.configure(rank=rank_from_environment())
    return exit_status(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> None:
    """Predict, write, check and, where there is ground truth, score.

    Raises:
        ConfigError: torchrun started several ranks, which would write the same files at once.
    """
    if (world := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(
            f"export_submission runs in one process, torchrun started {world}. Start it with python -m "
            "src.tools.export_submission"
        )
    modality: Modality = "rgb" if arguments.without_depth else "rgbd"
    out = output_folder(arguments)
    require_free(out, arguments.overwrite)
    require_place(out / "pred.zip")
    config = run_config(arguments)
    state = open_checkpoint(arguments.checkpoint)
    context = setup_distributed(config.runtime.device)
    configure_torch(config.runtime)
    hand, model, _ = build_model(config, context, fresh=False)
    ckpt.check_hand(state, hand, arguments.checkpoint)
    ckpt.load_weights(model, state, arguments.checkpoint)
    asset = load_hand_asset(config.mano.model_path)
    dataset = build_dataset(config, "evaluation", ManoLayer.from_asset(asset))
    print(f"Checkpoint: {ckpt.named(state, arguments.checkpoint)}")
    print(dataset.frames.describe())
    joints, vertices = predict(model, config, dataset, context, modality)
    print(f"Writing {out / 'pred.zip'} and reading it back ...", flush=True)
    frames = frames_in_order(config, dataset)
    checks = write_submission(
        out, joints, vertices, asset.joint_regressor, frames=frames, overwrite=arguments.overwrite
    )
    for line in ("frames: the lines of evaluation.txt, in its order", *checks):
        print(f"PASS {line}")
    report(out, len(frames), config.dataset.version, modality)
    score(dataset, joints, vertices)


def output_folder(arguments: argparse.Namespace) -> Path:
    """Where the files go: as asked, or beside the checkpoints of the run."""
    folder: Path = arguments.checkpoint.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return arguments.out or run / ("submission_rgb" if arguments.without_depth else "submission")


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the export: the official split, whatever the run was validated on.

    Raises:
        ConfigError: a setting is wrong, or asks for another split.
    """
    settings = command_settings(arguments.config, arguments.overrides, evaluate=arguments.checkpoint)
    settings.log()
    config = settings.config
    named = any(text.partition("=")[0].strip() == "validation.split" for text in arguments.overrides)
    if named and config.validation.split != "evaluation":
        raise ConfigError("a submission is of the official split: leave validation.split out")
    return dataclasses.replace(config, validation=dataclasses.replace(config.validation, split="evaluation"))


@torch.no_grad()
def predict(
    model: UTNet, config: RunConfig, dataset: HO3DDataset, context: DistContext, modality: Modality
) -> tuple[Float32, Float32]:
    """Joints and vertices of every sample, in the order of the split; nan where none was predicted.

    Returns:
        (N, 21, 3) `OPENPOSE21` and (N, 778, 3), image camera (OpenCV), metres.

    Raises:
        DataError: a frame cannot be read.
    """
    model.eval()
    loader = build_eval_loader(config, dataset, 0, 1, context.device, modality)
    joints = np.full((len(dataset), len(OPENPOSE21), 3), np.nan, np.float32)
    vertices = np.full((len(dataset), NUM_VERTICES, 3), np.nan, np.float32)
    for batch in progress(loader, total=len(loader), desc="prediction"):
        hand = model(batch).hand
        rows = batch.sample_index.cpu().numpy()
        joints[rows] = batch.to_image_camera(hand.joints_cam_m).float().cpu().numpy()
        vertices[rows] = batch.to_image_camera(hand.vertices_cam_m).float().cpu().numpy()
    return joints, vertices


def frames_in_order(config: RunConfig, dataset: HO3DDataset) -> list[str]:
    """Names of the rows, which must be the lines of evaluation.txt.

    Raises:
        DataError: they are not.
    """
    lines = read_list(config.dataset, "evaluation").frames
    listed = [f"{sequence}/{frame_name(number)}" for sequence, number in lines]
    frames = [dataset.frames.frame_id(row).removeprefix("evaluation/") for row in range(len(dataset))]
    if frames != listed:
        raise DataError(
            "the rows are not the lines of evaluation.txt: the list changed meanwhile. Start again"
        )
    return frames


def report(folder: Path, count: int, version: str, modality: Modality) -> None:
    """Say what was written and where it goes."""
    file, text = folder / "pred.zip", folder / "pred.json"
    print(f"Predictions: {count} frames, {'RGB-D' if modality == 'rgbd' else 'RGB only'}")
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB (pred.json {text.stat().st_size / 1e6:.1f} MB)")
    if count != OFFICIAL_FRAMES[version]:
        print(
            f"NOTE: HO3D_{version}'s evaluation split has {OFFICIAL_FRAMES[version]} frames: the server "
            "refuses this file"
        )
    print(
        f"Upload pred.zip to the HO-3D_{version} challenge on CodaLab, linked from the project's page "
        "https://github.com/shreyashampali/ho3d"
    )


def score(dataset: HO3DDataset, joints: Float32, vertices: Float32) -> None:
    """Print the official scores, or what they need."""
    truth_joints, truth_vertices = dataset.frames.truth_joints(), dataset.frames.truth_vertices()
    if (missing := dataset.frames.missing_truth()) is not None:
        print(f"No official {'scores' if truth_joints is None else 'mesh scores'}: {missing}")
    if truth_joints is None:
        return
    pairs = [joints_to_official(joints), joints_to_official(truth_joints)]
    if truth_vertices is not None:
        pairs += [points_to_official(vertices), points_to_official(truth_vertices)]
    print("Official scores (lengths in cm):")
    for name, value in official_ho3d(*pairs).items():
        print(f"  {name}: {value:.6f}")


if __name__ == "__main__":
    sys.exit(main())
