"""Two validations frame by frame: is B better than A, how sure is that, and where.

    python -m src.tools.compare A B [--metric NAME] [--top 20] [--common]

A and B are runs, folders of --evaluate, or per-sample files (val/*.npz) of the same frames. Their frames are
paired, so the difference is much surer than the two means; its interval draws whole motions with replacement,
because neighbouring frames, and the cameras that film one motion, see nearly the same hand. Differences are
B - A. A page is written beside B's file, with the frames that changed most.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.build import build_dataset
from dataloader.ho3d.split import SplitName
from src.config_file import load_config
from src.errors import ConfigError, DataError, UTNetError, plain_text
from src.evaluation.collect import MESH_USABLE
from src.evaluation.evaluator import read_per_sample
from src.evaluation.official import MESH_SCORES
from src.evaluation.scored import motions_of, number_of, sequence_of, sequences_of
from src.evaluation.statistics import FEW_GROUPS, LEVEL, TOO_FEW_GROUPS, Interval, Rows, bootstrap_mean, mean
from src.hand.mano import ManoLayer
from src.pages.chosen import apart
from src.pages.comparison import Comparison
from src.pages.files import page_place
from src.pages.samples import Hand, Sample
from src.runtime.command_line import exit_status, make_parser
from src.runtime.outlet import optional
from src.show import with_picture

MESH_METRICS = ("mpvpe_mm", "pa_mpvpe_mm", *MESH_SCORES)
"""Metrics of meshes: their labels can be missing where those of the joints are there."""
_SHOWN = 3
"""Frames named where two files differ."""
_PICTURES = 6
"""Frames on the page with pictures, in each direction."""

Change = tuple[str, float, float, float]
"""A frame with its numbers in A and B, and B - A."""


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of a per-sample file."""

    path: Path
    frames: list[str]
    """N names `<list>/<sequence>/<frame>`."""
    usable: NDArray[np.bool_]
    """(N,) the label that the metric needs is complete."""
    joints_m: NDArray[np.float32]
    """(N, 21, 3) predictions, image camera."""
    values: Rows
    """(N,) the metric; nan where there is no label or no finite prediction."""
    unit: str
    """Of the metric, as the file says."""
    split: str
    """Name of the split."""
    split_hash: str
    """Which frames and labels that is."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Frames that have a number in both files, in A's order."""

    frames: list[str]
    sequences: NDArray[np.str_]
    """(n,) of the frames."""
    a: Rows
    b: Rows

    @property
    def difference(self) -> Rows:
        """(n,) B - A."""
        return self.b - self.a


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 compared, whatever came out; 2 not comparable."""
    parser = make_parser("python -m src.tools.compare", "Compare two validations of the same frames.")
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="run, or per-sample file, of the first validation")
    add("b", type=Path, metavar="B", help="of the second")
    add("--metric", default="mpjpe_mm", help="column to compare (default: %(default)s)")
    add("--top", type=int, default=20, help="frames to show in each direction (default: %(default)s)")
    add("--common", action="store_true", help="compare the frames that both files have")
    add("--out", type=Path, metavar="FILE.html", help="the page; default: compare.html beside B's file")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: compare(arguments), alone=True)


def compare(arguments: argparse.Namespace) -> None:
    """Print what came out, and write its page.

    Raises:
        ConfigError: --top is negative.
        DataError: a file is torn or another program's, has no such metric, split, labels, unit or frames
            differ, or no frame has a number in both; or the page's place cannot be written.
    """
    metric = arguments.metric
    if arguments.top < 0:
        raise ConfigError(f"--top: got {arguments.top}, want 0 or more")
    of_a, of_b = per_sample(arguments.a), per_sample(arguments.b)
    out = page_place(arguments.out) if arguments.out else of_b.with_name("compare.html")
    a, b = (read_column(path, metric) for path in (of_a, of_b))
    files = {
        name: f"{file.path} ({len(file.frames)} frames of {file.split}, split {file.split_hash})"
        for name, file in (("A", a), ("B", b))
    }
    require_comparable(a, b, metric)
    pairs, left_out = paired(a, b, common=arguments.common)
    if not pairs.frames:
        raise DataError(f"no frame has a finite {metric} in both {a.path} and {b.path}: nothing to compare")
    up = metric.startswith(("f_score", "f_al_score")) or "auc" in metric
    about = f"{metric} ({a.unit}), {'higher' if up else 'lower'} is better"
    said, sequences = summary(pairs, up=up), by_sequence(pairs)
    changed = extremes(pairs, sign=-1.0 if up else 1.0)
    listed = {kind: rows[: arguments.top] for kind, rows in changed.items()}
    lines = [f"{name}: {file}" for name, file in files.items()]
    lines += [*left_out, f"Metric: {about}", *said]
    lines += ["By sequence, by falling B - A:", *_sequence_lines(sequences)]
    for kind, rows in listed.items():
        lines.append(f"Frames that are most {kind} in B{'' if changed[kind] else ': none'}")
        lines += _frame_lines(rows, pairs.frames)
    with optional("the page"):
        shown, reason = samples_of(a, b, changed)
        facts = [*files.items(), ("Metric", about)]
        Comparison(
            facts, [*said, *left_out], pairs.a, pairs.b, sequences, listed, shown, reason
        ).page().write(out)
        lines.append(f"Page: {out}")
    print("\n".join(map(plain_text, lines)))


def per_sample(path: Path) -> Path:
    """The per-sample file that is meant: itself, or that of the last epoch of a run.

    Raises:
        DataError: there is none.
    """
    if not path.is_dir():
        return path
    files = [file for file in (path / "val").glob("*.npz") if not file.stem.endswith(("_rgb", "_boxes"))]
    if not files:
        raise DataError(
            f"{path}: no val/*.npz of a validation is there. Name a run, or the folder of --evaluate"
        )
    return max(files, key=lambda file: file.name)


def samples_of(
    a: Column, b: Column, changed: Mapping[str, Sequence[Change]]
) -> tuple[dict[str, list[Sample]], str]:
    """The frames that changed most, with both predictions, on pictures of the data set of B's run.

    Returns:
        `worse` and `better` -> samples; and why they have no pictures, '' where they do.
    """
    dataset, reason = None, ""
    try:
        config = load_config(b.path.absolute().parent.parent / "config.yaml")
        split: SplitName = "evaluation" if b.split == "evaluation" else "val"
        dataset = build_dataset(config, split, show_progress=False)
        if dataset.frames.split.id != b.split_hash:
            raise DataError(f"{config.dataset.root_dir} holds another split, {dataset.frames.split.id}, now")
    except (UTNetError, OSError) as error:
        dataset, reason = None, f"{error}"
    rows = [{name: row for row, name in enumerate(file.frames)} for file in (a, b)]
    hand = None if dataset is None else ManoLayer.from_file(config.mano.model_path)
    shown: dict[str, list[Sample]] = {}
    for kind, frames in changed.items():
        shown[kind] = own = []
        sequences = [sequence_of(frame) for frame, *_ in frames]
        numbers = [number_of(frame) for frame, *_ in frames]
        for row in apart(range(len(frames)), sequences, numbers, _PICTURES):
            frame, old, new, difference = frames[row]
            at = [places[frame] for places in rows]
            hands = {n: Hand(f.joints_m[k]) for n, f, k in zip("AB", (a, b), at, strict=True)}
            text = f"A {old:.3f}, B {new:.3f}, B - A {difference:+.3f}."
            sample = Sample(at[1], frame, text, hands)
            own.append(sample if dataset is None or hand is None else with_picture(sample, dataset, hand))
    return shown, reason


def read_column(path: Path, metric: str) -> Column:
    """Read the column `metric` of a per-sample file.

    Raises:
        DataError: as `read_per_sample`, or the file has no such metric.
    """
    arrays = read_per_sample(path)
    units = dict(zip(arrays["columns"].tolist(), arrays["units"].tolist(), strict=True))
    known = [n for n in units if n != MESH_USABLE and arrays[n].dtype.kind == "f" and arrays[n].ndim == 1]
    if metric not in known:
        raise DataError(f"{path} has no metric {metric!r}; it has {', '.join(known)}")
    usable = arrays["label_usable"].astype(bool)
    if metric in MESH_METRICS and MESH_USABLE in units:
        usable &= arrays[MESH_USABLE] == 1.0
    split, split_hash = str(arrays["split"]), str(arrays["split_hash"])
    values = arrays[metric].astype(float)
    frames, joints = arrays["frame"].tolist(), arrays["pred_joints_cam_m"]
    return Column(path, frames, usable, joints, values, units[metric], split, split_hash)


def require_comparable(a: Column, b: Column, metric: str) -> None:
    """Refuse files whose numbers are of other things: their difference would be a verdict about nothing.

    Raises:
        DataError: the metric's unit or the split differs; or frames are the same and their labels are not.
    """
    what = ""
    if a.unit != b.unit:
        what = f"{metric} is in {a.unit!r} in A and in {b.unit!r} in B"
    elif a.split != b.split:
        what = f"A is of split {a.split!r}, B of {b.split!r}"
    elif a.split_hash != b.split_hash and a.frames == b.frames:
        what = f"frames are the same, and A is of split {a.split_hash}, B of {b.split_hash}: other labels"
    if what:
        raise DataError(f"{a.path} and {b.path} cannot be compared: {what}. Evaluate both on one split")


def paired(a: Column, b: Column, *, common: bool) -> tuple[Pairs, list[str]]:
    """Frames with a number in both, and lines that count the others.

    Raises:
        DataError: the frames differ and only the common ones were not asked for, or there is none.
    """
    in_b = {name: row for row, name in enumerate(b.frames)}
    of_a = np.array([row for row, name in enumerate(a.frames) if name in in_b], dtype=np.int64)
    of_b = np.array([in_b[a.frames[row]] for row in of_a], dtype=np.int64)
    lines = []
    if a.frames != b.frames:
        what = _difference(a.frames, b.frames, len(of_a))
        if not common or not len(of_a):
            advice = " Add --common to compare those that both have" if len(of_a) else ""
            raise DataError(f"{a.path} and {b.path} are not of the same frames: {what}.{advice}")
        lines.append(f"Frames differ: {what}; the common ones are compared")
    values = a.values[of_a], b.values[of_b]
    labelled = a.usable[of_a] & b.usable[of_b]
    broken = [labelled & ~np.isfinite(numbers) for numbers in values]
    kept = labelled & ~broken[0] & ~broken[1]
    lines.append(f"Compared: {int(kept.sum())} of {len(kept)} frames")
    if not labelled.all():
        lines.append(f"Left out: {int((~labelled).sum())} frames without a usable label")
    for name, bad in zip("AB", broken, strict=True):
        if bad.any():
            first = a.frames[of_a[bad][0]]
            count = f"{int(bad.sum())} frames not finite in {name} (first: {first})"
            lines.append(f"Left out: {count}: this flatters {name}")
    frames = [a.frames[row] for row in of_a[kept]]
    return Pairs(frames, sequences_of(frames), values[0][kept], values[1][kept]), lines


def _difference(a: Sequence[str], b: Sequence[str], both: int) -> str:
    """How two lists of frames differ."""
    what = f"{both} frames are in both"
    for name, own, other in (("A", a, set(b)), ("B", b, set(a))):
        if only := [frame for frame in own if frame not in other]:
            more = ", ..." if len(only) > _SHOWN else ""
            what += f"; {len(only)} only in {name} ({', '.join(only[:_SHOWN])}{more})"
    return what + (", in another order" if both == len(a) == len(b) else "")


def summary(pairs: Pairs, *, up: bool) -> list[str]:
    """Means, difference with its interval, and what that says; `up`: higher is better."""
    interval = bootstrap_mean(pairs.difference, motions_of(pairs.sequences), seed=0)
    difference = f"Difference B - A: {interval.mean:+.4f}"
    if interval.exists:
        difference += f", {LEVEL:.0%} interval [{interval.low:+.4f}, {interval.high:+.4f}] "
        difference += f"over {interval.groups} motions"
    gain = pairs.difference if up else -pairs.difference
    return [
        f"Mean: A {mean(pairs.a):.4f}, B {mean(pairs.b):.4f}",
        difference,
        f"Verdict: {verdict(interval, up=up)}",
        f"B is better in {np.mean(gain > 0):.1%} of the frames, worse in {np.mean(gain < 0):.1%}, "
        f"equal in {np.mean(gain == 0):.1%}",
    ]


def verdict(interval: Interval, *, up: bool) -> str:
    """What the interval says, in words."""
    care = "Frames of one motion are not independent, so whole motions were resampled"
    if interval.groups < TOO_FEW_GROUPS:
        motions = f"{interval.groups} motion" + ("" if interval.groups == 1 else "s")
        return f"none: all frames are of {motions}, too few to say anything about others. {care}"
    if interval.groups < FEW_GROUPS:
        care += f"; with only {interval.groups} of them the interval is narrower than it should be"
    if interval.certainty == "not sure":
        return f"no difference seen at this level ({LEVEL:.0%}). {care}"
    likely = "likely " if interval.certainty == "likely" else ""
    better = "better" if (interval.low > 0.0) == up else "worse"
    return f"B is {likely}{better} than A at this level ({LEVEL:.0%}). {care}"


def by_sequence(pairs: Pairs) -> list[tuple[str, int, float, float, float]]:
    """Name, frames, A, B, B - A of each sequence, the largest B - A first."""
    names, member = np.unique(pairs.sequences, return_inverse=True)
    parts = [(str(name), member == k) for k, name in enumerate(names)]
    rows = [
        (name, int(own.sum()), mean(pairs.a[own]), mean(pairs.b[own]), mean(pairs.difference[own]))
        for name, own in parts
    ]
    return sorted(rows, key=lambda row: (row[-1], row[0]), reverse=True)


def _sequence_lines(rows: Sequence[tuple[str, int, float, float, float]]) -> list[str]:
    width = max(len(name) for name, *_ in rows)
    return [f"  {name:<{width}}  {count:6d} frames  {_numbers(*rest)}" for name, count, *rest in rows]


def extremes(pairs: Pairs, *, sign: float) -> dict[str, list[Change]]:
    """The frames that became `worse` and `better` in B, the largest change first: frame, A, B, B - A.

    Args:
        pairs: what is compared.
        sign: 1 where lower is better.
    """
    worse_by = sign * pairs.difference
    order = np.argsort(-worse_by, kind="stable")
    return {
        kind: [
            (pairs.frames[row], float(pairs.a[row]), float(pairs.b[row]), float(pairs.difference[row]))
            for row in rows.tolist()
            if way * worse_by[row] > 0
        ]
        for kind, rows, way in (("worse", order, 1.0), ("better", order[::-1], -1.0))
    }


def _frame_lines(rows: Sequence[Change], frames: Sequence[str]) -> list[str]:
    width = max(map(len, frames))
    return [f"  {frame:<{width}}  {_numbers(*numbers)}" for frame, *numbers in rows]


def _numbers(a: float, b: float, difference: float) -> str:
    return f"A {a:10.4f}  B {b:10.4f}  {difference:+10.4f}"


if __name__ == "__main__":
    sys.exit(main())
