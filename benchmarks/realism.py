"""How real the synthetic pictures look to a network that was trained on real hands.

    python -m benchmarks.realism TREE [TREE ...] [--frames 150]

MediaPipe's landmark net (`make detector`) looks at label boxes x 1.6, turned twelve ways, and once more
around its surest answer: the mean distance of its 21 points from the labelled joints, over the box's side,
median of the frames. A frame in which it takes fingers for the wrist says nothing of the picture, so no mean.
Trees are in HO3D's files; the first is the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Row, report
from dataloader.pictures.decode import read_rgb
from src.errors import DataError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.predict.boxes.detect import HandDetector, square_of_points, squares_of_box
from src.runtime.command_line import exit_status
from src.runtime.files import safe_pickle

_ORDER = list(permutation(HO3D21, OPENPOSE21))


def main(argv: Sequence[str] = ()) -> None:
    """Ask the net about each tree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.realism", description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE")
    parser.add_argument("--frames", type=int, default=150, help="of each tree, drawn at random")
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error(f"--frames: got {arguments.frames}, want >= 1")
    net = HandDetector()
    errors = {tree: error_of(tree, arguments.frames, net) for tree in arguments.trees}
    first = next(iter(errors.values()))
    report("realism", [
        Row(f"{tree}: {error:.4f}", f"{arguments.trees[0]}: {first:.4f}", first / error, "of the box's side")
        for tree, error in errors.items()
    ])  # fmt: skip


def error_of(tree: Path, frames: int, net: HandDetector) -> float:
    """Median error of the net's points over some frames of `train.txt`, as a share of the box's side."""
    listed = tree / "train.txt"
    if not listed.is_file():
        raise DataError(f"{tree} is no data set in HO3D's files: it has no train.txt")
    lines = listed.read_text(encoding="ascii").split()
    chosen = np.random.default_rng(0).permutation(len(lines))[:frames]
    errors = []
    for line in (lines[k] for k in sorted(chosen)):
        sequence, frame = line.split("/")
        folder = tree / "train" / sequence
        path = folder / "meta" / f"{frame}.pkl"
        meta = safe_pickle.load(path, allow=safe_pickle.META_GLOBALS, what="annotation")
        v3 = folder / "rgb" / f"{frame}.jpg"
        picture = read_rgb(v3 if v3.exists() else v3.with_suffix(".png"))
        joints = np.asarray(meta["handJoints3D"])[_ORDER] * [1.0, -1.0, -1.0]
        points = joints @ np.asarray(meta["camMat"]).T
        points = points[:, :2] / points[:, 2:]
        low, high = points.min(axis=0), points.max(axis=0)
        squares = squares_of_box((*low.tolist(), *high.tolist()))[:12]
        seen = max((net.landmarks(picture, square) for square in squares), key=lambda s: s.score)
        seen = net.landmarks(picture, square_of_points(seen.points_px, seen.square.angle))
        errors.append(np.linalg.norm(seen.points_px - points, axis=1).mean() / (high - low).max())
    return float(np.median(errors))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
