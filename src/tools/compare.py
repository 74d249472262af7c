"""Two validations frame by frame: is B better than A, how sure is that, and where.

    python -m src.tools.compare A.npz B.npz [--metric NAME] [--top 20] [--group sequence|motion] [--common]
                                            [--csv FILE]

A and B are per-sample files of the same frames. Their frames are paired, so the difference is much surer than
the two means; its interval draws whole sequences with replacement, because neighbouring frames resemble each
other. Differences are B - A.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.split import motion_of
from src.errors import ConfigError, DataError, UTNetError, plain_text
from src.evaluation.metrics import mean
from src.evaluation.shard import MESH_USABLE
from src.evaluation.statistics import Interval, bootstrap_mean
from src.runtime.command_line import make_parser
from src.runtime.debug import trace_enabled
from src.runtime.files.disk import atomic_write, read_npz, require_place

LEVEL = 0.95
FEW_GROUPS = 10
"""With fewer groups a percentile interval is narrower than it says."""
MESH_METRICS = ("mpvpe", "pa_mpvpe", "mesh_", "f_score_", "f_al_score_")
"""How metrics of meshes begin: their labels can be missing where those of the joints are there."""
_SHOWN = 3
"""Frames named where two files differ."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerSample:
    """What is read of a per-sample file."""

    path: Path
    frames: tuple[str, ...]
    """(N,) `<list>/<sequence>/<frame>`."""
    usable: NDArray[np.bool_]
    """(N,) the label that the metric needs is complete."""
    metric: str
    """Name of the column that is compared."""
    unit: str
    """Its unit, as the file says."""
    values: Numbers
    """(N,) the column; nan where there is no label or no finite prediction."""
    split: str
    """Name of the split."""
    split_hash: str
    """Which frames and labels that is."""

    def rows(self, rows: NDArray[np.int64]) -> PerSample:
        """Some frames of it."""
        frames = tuple(self.frames[row] for row in rows)
        usable, values = self.usable[rows], self.values[rows]
        return dataclasses.replace(self, frames=frames, usable=usable, values=values)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Frames that have a number in both files, in A's order."""

    frames: tuple[str, ...]
    groups: NDArray[np.str_]
    """(n,) sequence or motion of each frame."""
    a: Numbers
    b: Numbers

    @property
    def difference(self) -> Numbers:
        """(n,) B - A."""
        return self.b - self.a


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace; argparse leaves with status 2 by itself."""
    parser = make_parser("python -m src.tools.compare", "Compare two validations of the same frames.")
    add = parser.add_argument
    add("a", type=Path, metavar="A.npz", help="per-sample file of the first validation")
    add("b", type=Path, metavar="B.npz", help="per-sample file of the second")
    add("--metric", default="mpjpe_mm", help="column to compare (default: %(default)s)")
    add("--top", type=int, default=20, help="frames to show in each direction (default: %(default)s)")
    add("--group", choices=("sequence", "motion"), default="sequence",
        help="what is drawn as a whole; motion: all cameras of one motion together")  # fmt: skip
    add("--common", action="store_true", help="compare the frames that both files have")
    add("--csv", type=Path, metavar="FILE", help="write every compared frame to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 compared, whatever came out; 2 not comparable."""
    arguments = parse_arguments(argv)
    try:
        lines = compare(arguments)
    except (UTNetError, OSError) as error:
        if trace_enabled():
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(plain_text, lines)))
    return 0


def compare(arguments: argparse.Namespace) -> list[str]:
    """Lines of the report.

    Raises:
        ConfigError: --top is negative.
        DataError: a file is torn or another program's, has no such metric, split, labels, unit or frames
            differ, or no frame has a number in both; or --csv cannot be written.
    """
    if arguments.top < 0:
        raise ConfigError(f"--top: got {arguments.top}, want 0 or more")
    if arguments.csv is not None:
        require_place(arguments.csv)
    a, b = (read_per_sample(path, arguments.metric) for path in (arguments.a, arguments.b))
    lines = [
        f"{name}: {file.path} ({len(file.frames)} frames of {file.split}, split {file.split_hash})"
        for name, file in (("A", a), ("B", b))
    ]
    require_comparable(a, b)
    a, b, note = same_frames(a, b, common=arguments.common)
    pairs, left_out = paired(a, b, arguments.group)
    lines += [*note, *left_out]
    if not len(pairs.a):
        raise DataError(f"no frame has a finite {a.metric} in both {a.path} and {b.path}: nothing to compare")
    interval = bootstrap_mean(pairs.difference, pairs.groups, seed=0, level=LEVEL)
    lines += summary(pairs, interval, a, arguments.group)
    lines += per_group(pairs, arguments.group)
    lines += extremes(pairs, arguments.top, sign=-1.0 if higher_is_better(a.metric) else 1.0)
    if arguments.csv is not None:
        write_csv(arguments.csv, pairs, a.metric)
        lines.append(f"Every compared frame: {arguments.csv}")
    return lines


def read_per_sample(path: Path, metric: str) -> PerSample:
    """Read the column `metric` of a per-sample file.

    Raises:
        DataError: no such file, torn, of another program, or without this column.
    """
    arrays = _load(path)
    facts = {"frame": 1, "label_usable": 1, "columns": 1, "units": 1, "split": 0, "split_hash": 0}
    missing = [name for name, axes in facts.items() if name not in arrays or arrays[name].ndim != axes]
    if missing or len(arrays["columns"]) != len(arrays["units"]):
        what = f"it holds no {', '.join(missing)}" if missing else "its columns and units differ in number"
        raise DataError(f"{path} is not a per-sample file (val/*.npz of a run): {what}")
    frames = tuple(str(name) for name in arrays["frame"])
    units = dict(zip(arrays["columns"].tolist(), arrays["units"].tolist(), strict=True))
    columns = {
        name: arrays[name]
        for name in units
        if name in arrays and arrays[name].dtype.kind == "f" and arrays[name].shape == (len(frames),)
    }
    usable = np.asarray(arrays["label_usable"], dtype=bool)
    if metric.startswith(MESH_METRICS) and MESH_USABLE in columns:
        usable = usable & (columns[MESH_USABLE] == 1.0)
    if usable.shape != (len(frames),) or len(set(frames)) != len(frames):
        raise DataError(f"{path}: labels do not fit the frames, or a frame is there twice. Write it again")
    if metric not in columns or metric == MESH_USABLE:
        known = [name for name in columns if name != MESH_USABLE]
        raise DataError(f"{path} has no metric {metric!r}; it has {', '.join(known)}")
    values = columns[metric].astype(np.float64)
    split, split_hash = str(arrays["split"]), str(arrays["split_hash"])
    return PerSample(path, frames, usable, metric, units[metric], values, split, split_hash)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz but the predictions.

    Raises:
        DataError: no such file, torn, or another kind of file.
    """
    try:
        return read_npz(path, lambda name: not name.startswith("pred_"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give a per-sample file, val/*.npz of a run") from None
    except DataError as error:
        raise DataError(f"{error}. Give a per-sample file, val/*.npz of a run, or write it again") from error


def require_comparable(a: PerSample, b: PerSample) -> None:
    """Refuse files whose numbers are of other things: their difference would be a verdict about nothing.

    Raises:
        DataError: the metric's unit or the split differs; or frames are the same and their labels are not.
    """
    what = ""
    if a.unit != b.unit:
        what = f"{a.metric} is in {a.unit!r} in A and in {b.unit!r} in B"
    elif a.split != b.split:
        what = f"A is of split {a.split!r}, B of {b.split!r}"
    elif a.split_hash != b.split_hash and a.frames == b.frames:
        what = f"frames are the same, and A is of split {a.split_hash}, B of {b.split_hash}: other labels"
    if what:
        raise DataError(f"{a.path} and {b.path} cannot be compared: {what}. Evaluate both on one split")


def same_frames(a: PerSample, b: PerSample, *, common: bool) -> tuple[PerSample, PerSample, list[str]]:
    """Both with the same frames in the same order, and a line that says what was left out for that.

    Raises:
        DataError: the frames differ and only the common ones were not asked for, or there is none.
    """
    if a.frames == b.frames:
        return a, b, []
    place = {name: row for row, name in enumerate(b.frames)}
    rows = [row for row, name in enumerate(a.frames) if name in place]
    in_a = set(a.frames)
    only = ([n for n in a.frames if n not in place], [n for n in b.frames if n not in in_a])
    what = f"{len(rows)} frames are in both"
    for name, frames in zip("AB", only, strict=True):
        if frames:
            more = ", ..." if len(frames) > _SHOWN else ""
            what += f"; {len(frames)} only in {name} ({', '.join(frames[:_SHOWN])}{more})"
    if not any(only):
        what += ", in another order"
    if not common or not rows:
        advice = " Add --common to compare those that both have" if rows else ""
        raise DataError(f"{a.path} and {b.path} are not of the same frames: {what}.{advice}")
    both = np.array(rows), np.array([place[a.frames[row]] for row in rows])
    return a.rows(both[0]), b.rows(both[1]), [f"Frames differ: {what}; the common ones are compared"]


def paired(a: PerSample, b: PerSample, group: str) -> tuple[Pairs, list[str]]:
    """Frames with a number in both, and lines that count the others."""
    labelled = a.usable & b.usable
    broken = [labelled & ~np.isfinite(file.values) for file in (a, b)]
    kept = np.flatnonzero(labelled & ~broken[0] & ~broken[1])
    lines = [f"Compared: {len(kept)} of {len(a.frames)} frames"]
    if not labelled.all():
        lines.append(f"Left out: {int((~labelled).sum())} frames without a usable label")
    for name, bad in zip("AB", broken, strict=True):
        if bad.any():
            first = a.frames[int(np.flatnonzero(bad)[0])]
            count = f"{int(bad.sum())} frames not finite in {name} (first: {first})"
            lines.append(f"Left out: {count}: this flatters {name}")
    frames = tuple(a.frames[row] for row in kept)
    groups = np.array([group_of(name, group) for name in frames], dtype=np.str_)
    return Pairs(frames, groups, a.values[kept], b.values[kept]), lines


def group_of(frame: str, group: str) -> str:
    """`train/ABF10/0042` -> `train/ABF10`, by motion `train/ABF1`."""
    folder, _, sequence = frame.rpartition("/")[0].rpartition("/")
    name = motion_of(sequence) if group == "motion" else sequence
    return f"{folder}/{name}" if folder else name


def higher_is_better(metric: str) -> bool:
    """F-scores and areas under a curve grow with quality, errors and losses do not."""
    return metric.startswith(("f_score", "f_al_score")) or "auc" in metric


def summary(pairs: Pairs, interval: Interval, a: PerSample, group: str) -> list[str]:
    """Means, difference with its interval, and what that says."""
    better_up = higher_is_better(a.metric)
    groups = f"{interval.groups} {group}s" if interval.groups != 1 else f"1 {group}"
    difference = f"Difference B - A: {interval.mean:+.4f}"
    if interval.exists:
        difference += f", {LEVEL:.0%} interval [{interval.low:+.4f}, {interval.high:+.4f}] over {groups}"
    gain = pairs.difference if better_up else -pairs.difference
    return [
        f"Metric: {a.metric} ({a.unit}), {'higher' if better_up else 'lower'} is better",
        f"Mean: A {mean(pairs.a):.4f}, B {mean(pairs.b):.4f}",
        difference,
        f"Verdict: {verdict(interval, better_up, group)}",
        f"B is better in {np.mean(gain > 0):.1%} of the frames, worse in {np.mean(gain < 0):.1%}, "
        f"equal in {np.mean(gain == 0):.1%}",
    ]


def verdict(interval: Interval, better_up: bool, group: str) -> str:
    """What the interval says, in words."""
    if not interval.exists:
        return (
            f"none: all frames are of one {group}, and frames of one {group} are not independent; the "
            "difference says nothing about others"
        )
    care = f"Frames of one {group} are not independent, so whole {group}s were drawn"
    if interval.groups < FEW_GROUPS:
        care += f"; with only {interval.groups} of them the interval is narrower than it should be"
    if interval.low <= 0.0 <= interval.high:
        return f"no difference seen at this level ({LEVEL:.0%}). {care}"
    better = (interval.low > 0.0) == better_up
    return f"B is {'better' if better else 'worse'} than A at this level ({LEVEL:.0%}). {care}"


def per_group(pairs: Pairs, group: str) -> list[str]:
    """One line for each sequence or motion, worst change of the mean first as sorted by difference."""
    rows = []
    for name in np.unique(pairs.groups):
        part = pairs.groups == name
        rows.append(
            (
                mean(pairs.difference[part]),
                str(name),
                mean(pairs.a[part]),
                mean(pairs.b[part]),
                int(part.sum()),
            )
        )
    width = max(len(name) for _, name, *_ in rows)
    lines = [f"By {group}, by falling B - A:"]
    for difference, name, in_a, in_b, count in sorted(rows, reverse=True):
        lines.append(
            f"  {name:<{width}}  {count:6d} frames  A {in_a:10.4f}  B {in_b:10.4f}  {difference:+10.4f}"
        )
    return lines


def extremes(pairs: Pairs, top: int, *, sign: float) -> list[str]:
    """The frames that changed most for the worse and for the better; `sign` 1 where lower is better."""
    order = np.argsort(-sign * pairs.difference, kind="stable")
    lines = []
    width = max(len(name) for name in pairs.frames)
    for title, rows in (("worse", order[:top]), ("better", order[::-1][:top])):
        wanted = 1.0 if title == "worse" else -1.0
        changed = [int(row) for row in rows if wanted * sign * pairs.difference[row] > 0]
        lines.append(f"Frames that are most {title} in B{'' if changed else ': none'}")
        for row in changed:
            lines.append(
                f"  {pairs.frames[row]:<{width}}  A {pairs.a[row]:10.4f}  B {pairs.b[row]:10.4f}  "
                f"{pairs.difference[row]:+10.4f}"
            )
    return lines


def write_csv(path: Path, pairs: Pairs, metric: str) -> None:
    """frame, group, A, B, B - A of every compared frame; numbers that give the float64 back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "group", f"a_{metric}", f"b_{metric}", "b_minus_a"])
    for row, name in enumerate(pairs.frames):
        numbers = (pairs.a[row], pairs.b[row], pairs.difference[row])
        writer.writerow([name, pairs.groups[row], *(repr(float(number)) for number in numbers)])
    with atomic_write(path) as file:
        file.write(os.fsencode(text.getvalue()))


if __name__ == "__main__":
    sys.exit(main())
