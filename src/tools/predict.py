"""Hands in your own frames, with a trained network.

    python -m src.tools.predict --checkpoint CKPT --rgb color/ --depth depth/ --camera cam.yaml \\
        --boxes detect --out DIR

Frames are a picture, a folder, a pattern in quotes, a video, or the root of an HO3D tree. `DIR` gets
predictions.npz and predictions.jsonl, overlays/ and, with --meshes, meshes/. All lengths are metres in the
camera of the picture (OpenCV axes). An interrupted run goes on with the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.errors import ConfigError
from src.pages.files import REPORT, of_prediction
from src.predict.boxes import BoxFinder, open_finder
from src.predict.boxes.track import TrackedBoxes
from src.predict.frames import Source, open_live, open_source
from src.predict.outputs.paths import place
from src.predict.outputs.store import Store
from src.predict.predictor import Predictor
from src.predict.run import Job, Summary, run
from src.render.pictures import read_picture
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.runtime.outlet import optional
from src.runtime.signals import StopRequest

_SHOWN = 5
"""Names of frames without a hand in the summary."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace; argparse leaves with status 2 by itself."""
    parser = make_parser("python -m src.tools.predict", "Hands in your own frames, with a trained network.")
    network = parser.add_argument_group("network").add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", type=Path, metavar="PATH", help="best.pt or another checkpoint")
    network.add_argument("--model", type=Path, metavar="FILE", help=".pt2 or .onnx of src.tools.export")
    add = parser.add_argument
    add("--hand-model", type=Path, metavar="FILE", help="MANO_RIGHT.pkl; default: where the checkpoint says")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add("--batch-size", type=int, metavar="N", help="hands at once; default: as in the network's validation")
    frames = parser.add_argument_group("frames")
    add = frames.add_argument
    add("--rgb", metavar="PATH", help="picture, folder, 'pattern*.png', video, or root of an HO3D tree")
    add("--live", choices=["realsense"], help="frames of a camera instead; Ctrl-C ends")
    add("--depth", metavar="PATH", help="depth aligned to the pictures: file, folder or pattern; PNG or .npy")
    add("--depth-unit-m", type=float, metavar="M", help="metres per unit of 16-bit depth, e.g. 0.001")
    add("--without-depth", action="store_true", help="hide the depth that an HO3D tree has")
    add("--camera", type=Path, metavar="FILE", help="YAML: fx, fy, cx, cy, width, height, depth_unit_m")
    add("--split", choices=["evaluation", "train"], help="list of an HO3D tree; default: evaluation")
    add("--frames", type=int, metavar="N", help="end after N frames")
    add = parser.add_argument_group("hands").add_argument
    add("--boxes", required=True, metavar="HOW", help="labels, detect, depth, or a CSV or JSON file")
    add(
        "--hand", choices=["right", "left", "auto"], default="auto", help="auto: as each box says, else right"
    )
    add = parser.add_argument_group("results").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--overwrite", action="store_true", help="replace the predictions that are there")
    add("--meshes", choices=["obj", "ply"], help="write a mesh for each hand")
    add("--no-overlays", action="store_true", help="draw no pictures")
    add("--smooth", action="store_true", help="filter along the frames of a video (one-euro)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = parse_arguments(argv)
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # its own lines about a broken video say less than ours
    log.configure(rank=0)
    return exit_status(lambda: predict(arguments), alone=True)


def predict(arguments: argparse.Namespace) -> int:
    """Predict; returns the exit status."""
    source = open_frames(arguments)
    finder = box_finder(arguments, source)
    predictor = Predictor.from_checkpoint(
        arguments.checkpoint or arguments.model,
        device=arguments.device,
        hand_model=arguments.hand_model,
        batch_size=arguments.batch_size,
    )
    store = Store.open(
        arguments.out, identity(arguments, source), predictor.facts.faces, overwrite=arguments.overwrite
    )
    job = Job(
        source,
        finder,
        predictor,
        store,
        arguments.out,
        hand=arguments.hand,
        overlays=not arguments.no_overlays,
        meshes=arguments.meshes,
        smooth=arguments.smooth,
        most_frames=arguments.frames,
    )
    print(f"Network: {predictor.facts.named}")
    stop = StopRequest()
    stop.install()
    summary = run(job, stop)
    if summary.stopped is None:
        with optional("the page"):
            of_prediction(
                arguments.out, lambda name: read_picture(place(arguments.out, "overlays", name, ".jpg"))
            ).write(arguments.out / REPORT)
    for line in summary_lines(summary, arguments):
        print(line)
    return 3 if summary.stopped else 0


def open_frames(arguments: argparse.Namespace) -> Source:
    """Where frames come from.

    Raises:
        ConfigError: options that contradict one another.
        DataError: as `open_source`.
    """
    if (arguments.rgb is None) == (arguments.live is None):
        raise ConfigError("want either --rgb PATH or --live realsense")
    for name in ("batch_size", "frames"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: want at least 1")
    if arguments.without_depth and (arguments.depth or arguments.boxes == "depth"):
        raise ConfigError("--without-depth hides what --depth or --boxes depth needs: leave one of them out")
    if arguments.live:
        if clash := [n for n in ("depth", "camera", "split") if getattr(arguments, n) is not None]:
            raise ConfigError(f"--live: the camera says this itself, leave --{clash[0]} out")
        return open_live(arguments.live)
    return open_source(
        arguments.rgb,
        depth=arguments.depth,
        depth_unit_m=arguments.depth_unit_m,
        camera=arguments.camera,
        split=arguments.split,
        without_depth=arguments.without_depth,
    )


def box_finder(arguments: argparse.Namespace, source: Source) -> BoxFinder:
    """Who says where hands are; in a video the last prediction does as long as it is plausible."""
    how = arguments.boxes
    if how == "labels":
        if source.labels is None:
            raise ConfigError("--boxes labels: these frames have no labels. Use detect, depth or a file")
        return source.labels
    finder = open_finder(how, source.names)
    moving = source.fps is not None or source.names is None
    return TrackedBoxes(finder) if moving and how == "detect" else finder


def identity(arguments: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What decides the predictions: a run goes on only where all of it is the same."""
    named = {
        k: str(v)
        for k, v in vars(arguments).items()
        if v is not None and k not in ("overwrite", "out", "frames")
    }
    for name in ("checkpoint", "model", "camera", "boxes"):
        path = Path(named.get(name, ""))
        if path.is_file():
            with path.open("rb") as file:
                named[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if source.names is not None:
        named["frames_sha256"] = hashlib.sha256(
            "\n".join(source.names).encode("utf-8", "surrogateescape")
        ).hexdigest()
    return named


def summary_lines(summary: Summary, arguments: argparse.Namespace) -> list[str]:
    """What was done and where it lies."""
    out, new = arguments.out, summary.frames - summary.before
    if summary.stopped:
        return [
            f"Stopped by {summary.stopped} after {summary.frames} frames. They are kept in {out}: the same "
            "command goes on from there"
        ]
    lines = [f"Predicted {summary.hands} hands in {summary.frames} frames"]
    if new:
        lines[0] += f", {new / max(summary.seconds, 1e-9):.1f} frames/s"
    if summary.before:
        lines[0] += f"; {summary.before} frames were there from an interrupted run"
    if empty := summary.empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        lines.append(f"Frames without a hand: {len(empty)}: {', '.join(empty[:_SHOWN])}{more}")
    lines.append(f"Predictions: {out / 'predictions.npz'}, {out / 'predictions.jsonl'}")
    if not arguments.no_overlays:
        lines.append(f"Overlays: {out / 'overlays'}" + (f", {summary.video}" if summary.video else ""))
    if arguments.meshes:
        lines.append(f"Meshes: {out / 'meshes'}")
    if (out / REPORT).is_file():
        lines.append(f"Page: {out / REPORT}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
