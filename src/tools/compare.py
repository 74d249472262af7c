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

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.split import motion_of
from src.errors import ConfigError, DataError, UTNetError, plain_text
from src.evaluation.collect import MESH_USABLE
from src.evaluation.official import MESH_SCORES
from src.evaluation.statistics import LEVEL, Interval, bootstrap_mean, mean
from src.runtime.command_line import make_parser
from src.runtime.debug import trace_enabled
from src.runtime.files.disk import atomic_write, read_npz, require_place

FEW_GROUPS = 10
"""With fewer groups a percentile interval is narrower than it says."""
MESH_METRICS = ("mpvpe_mm", "pa_mpvpe_mm", *MESH_SCORES)
"""Metrics of meshes: their labels can be missing where those of the joints are there."""
_FACTS = {"frame": 1, "label_usable": 1, "columns": 1, "units": 1, "split": 0, "split_hash": 0}
"""What a per-sample file holds whatever was scored, and with how many axes."""
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
    unit: str
    """Of the metric, as the file says."""
    values: Numbers
    """(N,) the metric; nan where there is no label or no finite prediction."""
    split: str
    """Name of the split."""
    split_hash: str
    """Which frames and labels that is."""

    def rows(self, rows: Sequence[int]) -> PerSample:
        """Some frames of it."""
        frames = tuple(self.frames[row] for row in rows)
        place = np.asarray(rows, np.int64)
        return dataclasses.replace(self, frames=frames, usable=self.usable[place], values=self.values[place])


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 compared, whatever came out; 2 not comparable."""
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
    arguments = parser.parse_args(argv)
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
    metric, group = arguments.metric, arguments.group
    if arguments.top < 0:
        raise ConfigError(f"--top: got {arguments.top}, want 0 or more")
    if arguments.csv is not None:
        require_place(arguments.csv)
    a, b = (read_per_sample(path, metric) for path in (arguments.a, arguments.b))
    lines = [
        f"{name}: {file.path} ({len(file.frames)} frames of {file.split}, split {file.split_hash})"
        for name, file in (("A", a), ("B", b))
    ]
    require_comparable(a, b, metric)
    a, b, note = same_frames(a, b, common=arguments.common)
    pairs, left_out = paired(a, b, group)
    if not len(pairs.a):
        raise DataError(f"no frame has a finite {metric} in both {a.path} and {b.path}: nothing to compare")
    up = metric.startswith(("f_score", "f_al_score")) or "auc" in metric
    lines += [*note, *left_out, f"Metric: {metric} ({a.unit}), {'higher' if up else 'lower'} is better"]
    lines += [*summary(pairs, group, up=up), *per_group(pairs, group)]
    lines += extremes(pairs, arguments.top, sign=-1.0 if up else 1.0)
    if arguments.csv is not None:
        write_csv(arguments.csv, pairs, metric)
        lines.append(f"Every compared frame: {arguments.csv}")
    return lines


def read_per_sample(path: Path, metric: str) -> PerSample:
    """Read the column `metric` of a per-sample file.

    Raises:
        DataError: no such file, torn, of another program, or without this column.
    """
    try:
        arrays = read_npz(path, lambda name: not name.startswith("pred_"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give a per-sample file, val/*.npz of a run") from None
    except DataError as error:
        raise DataError(f"{error}. Give a per-sample file, val/*.npz of a run, or write it again") from error
    missing = [name for name, axes in _FACTS.items() if name not in arrays or arrays[name].ndim != axes]
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
    mesh_usable = columns.pop(MESH_USABLE, None)
    if metric in MESH_METRICS and mesh_usable is not None:
        usable = usable & (mesh_usable == 1.0)
    if usable.shape != (len(frames),) or len(set(frames)) != len(frames):
        raise DataError(f"{path}: labels do not fit the frames, or a frame is there twice. Write it again")
    if metric not in columns:
        raise DataError(f"{path} has no metric {metric!r}; it has {', '.join(columns)}")
    split, split_hash = str(arrays["split"]), str(arrays["split_hash"])
    return PerSample(path, frames, usable, units[metric], columns[metric].astype(float), split, split_hash)


def require_comparable(a: PerSample, b: PerSample, metric: str) -> None:
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


def same_frames(a: PerSample, b: PerSample, *, common: bool) -> tuple[PerSample, PerSample, list[str]]:
    """Both with the same frames in the same order, and a line that says what was left out for that.

    Raises:
        DataError: the frames differ and only the common ones were not asked for, or there is none.
    """
    if a.frames == b.frames:
        return a, b, []
    in_a, in_b = ({name: row for row, name in enumerate(file.frames)} for file in (a, b))
    both = [name for name in a.frames if name in in_b]
    only = [n for n in a.frames if n not in in_b], [n for n in b.frames if n not in in_a]
    what = f"{len(both)} frames are in both"
    for name, frames in zip("AB", only, strict=True):
        if frames:
            more = ", ..." if len(frames) > _SHOWN else ""
            what += f"; {len(frames)} only in {name} ({', '.join(frames[:_SHOWN])}{more})"
    if not any(only):
        what += ", in another order"
    if not common or not both:
        advice = " Add --common to compare those that both have" if both else ""
        raise DataError(f"{a.path} and {b.path} are not of the same frames: {what}.{advice}")
    a, b = a.rows([in_a[name] for name in both]), b.rows([in_b[name] for name in both])
    return a, b, [f"Frames differ: {what}; the common ones are compared"]


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


def summary(pairs: Pairs, group: str, *, up: bool) -> list[str]:
    """Means, difference with its interval, and what that says; `up`: higher is better."""
    interval = bootstrap_mean(pairs.difference, pairs.groups, seed=0)
    groups = f"{interval.groups} {group}s" if interval.groups != 1 else f"1 {group}"
    difference = f"Difference B - A: {interval.mean:+.4f}"
    if interval.exists:
        difference += f", {LEVEL:.0%} interval [{interval.low:+.4f}, {interval.high:+.4f}] over {groups}"
    gain = pairs.difference if up else -pairs.difference
    return [
        f"Mean: A {mean(pairs.a):.4f}, B {mean(pairs.b):.4f}",
        difference,
        f"Verdict: {verdict(interval, group, up=up)}",
        f"B is better in {np.mean(gain > 0):.1%} of the frames, worse in {np.mean(gain < 0):.1%}, "
        f"equal in {np.mean(gain == 0):.1%}",
    ]


def verdict(interval: Interval, group: str, *, up: bool) -> str:
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
    better = (interval.low > 0.0) == up
    return f"B is {'better' if better else 'worse'} than A at this level ({LEVEL:.0%}). {care}"


def per_group(pairs: Pairs, group: str) -> list[str]:
    """One line for each sequence or motion, the largest B - A first."""
    names, member = np.unique(pairs.groups, return_inverse=True)
    parts = [(str(name), member == k) for k, name in enumerate(names)]
    parts.sort(key=lambda part: (mean(pairs.difference[part[1]]), part[0]), reverse=True)
    width = max(map(len, names))
    return [
        f"By {group}, by falling B - A:",
        *(
            f"  {name:<{width}}  {int(own.sum()):6d} frames  "
            + _numbers(mean(pairs.a[own]), mean(pairs.b[own]), mean(pairs.difference[own]))
            for name, own in parts
        ),
    ]


def extremes(pairs: Pairs, top: int, *, sign: float) -> list[str]:
    """The frames that changed most for the worse and for the better; `sign` 1 where lower is better."""
    worse_by = sign * pairs.difference
    order = np.argsort(-worse_by, kind="stable")
    width = max(map(len, pairs.frames))
    lines = []
    for title, rows, way in (("worse", order[:top], 1.0), ("better", order[::-1][:top], -1.0)):
        changed = [int(row) for row in rows if way * worse_by[row] > 0]
        lines.append(f"Frames that are most {title} in B{'' if changed else ': none'}")
        for row in changed:
            numbers = _numbers(pairs.a[row], pairs.b[row], pairs.difference[row])
            lines.append(f"  {pairs.frames[row]:<{width}}  {numbers}")
    return lines


def _numbers(a: float, b: float, difference: float) -> str:
    return f"A {a:10.4f}  B {b:10.4f}  {difference:+10.4f}"


def write_csv(path: Path, pairs: Pairs, metric: str) -> None:
    """frame, group, A, B, B - A of every compared frame; numbers that give the float64 back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "group", f"a_{metric}", f"b_{metric}", "b_minus_a"])
    columns = (pairs.frames, pairs.groups, pairs.a.tolist(), pairs.b.tolist(), pairs.difference.tolist())
    writer.writerows(zip(*columns, strict=True))
    with atomic_write(path) as file:
        file.write(os.fsencode(text.getvalue()))


if __name__ == "__main__":
    sys.exit(main())
