"""Is this data, this model, this machine fit to train?

    python -m src.tools.doctor --config FILE --leaks [--within 1 5 25] [section.key=value ...]

One line per finding: OK, WARN or FAIL, what was looked at, what was seen and expected, and where to mend it.
Exit status: 0, 1 after a FAIL, 2 with one line for what kept a check from being made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataloader.build import build_dataset
from dataloader.leaks import FrameNames, LeakReport, find_leaks
from src.config import RunConfig
from src.config_file import load_config
from src.errors import UTNetError
from src.hand.mano import ManoLayer
from src.runtime import log

Status = Literal["OK", "WARN", "FAIL"]
_SPLIT_CODE = "dataloader/split.py, split.by"


@dataclass(frozen=True)
class Finding:
    """What one look at data, model or machine has shown."""

    status: Status
    what: str
    """What was looked at."""
    seen: str
    """The evidence."""
    expected: str
    """What a healthy run shows."""
    where: str
    """The file or setting to mend."""

    def line(self) -> str:
        """`WARN  what: seen (expected ...) -> where`."""
        mend = "" if self.status == "OK" else f" -> {self.where}"
        return f"{self.status:<4}  {self.what}: {self.seen} (expected {self.expected}){mend}"


Check = Callable[[RunConfig, argparse.Namespace], Iterator[Finding | str]]
"""Yields findings, and plain lines that say what they are about."""


def check_leaks(config: RunConfig, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """How much of the validation split training has all but shown."""
    hand = ManoLayer.from_file(config.mano.model_path)
    train = build_dataset(config, "train", hand)
    val = build_dataset(config, config.validation.split, hand)
    yield train.describe()
    yield val.describe()
    report = find_leaks(FrameNames(*train.frames()), FrameNames(*val.frames()), arguments.within)
    yield from leak_findings(report)
    yield leak_meaning(report, config)


def leak_findings(report: LeakReport) -> Iterator[Finding]:
    """The counts of a leak report, one finding each."""

    def finding(what: str, count: int, worse: Status) -> Finding:
        share = 100.0 * count / max(1, report.total)
        seen = f"{count:,} of {report.total:,} validation frames ({share:.1f} %)"
        return Finding(worse if count else "OK", what, seen, "0", _SPLIT_CODE)

    yield finding("also in training", report.identical, "FAIL")
    for k, count in report.neighbour.items():
        frames = "frame" if k == 1 else "frames"
        yield finding(f"training frame of the same sequence within {k} {frames}", count, "WARN")
    yield finding("same instant from another camera in training", report.other_camera, "WARN")
    yield finding("motion in training, at any instant from any camera", report.same_motion, "WARN")


def leak_meaning(report: LeakReport, config: RunConfig) -> str:
    """What the counts say about a score on this split."""
    if report.identical:
        return "Scores on this split are worthless: frames that were trained on are scored."
    if report.clean:
        return "No motion is on both sides: scores on this split measure motions that were never seen."
    if config.validation.split == "val" and config.split.by == "frame":
        return (
            "That is what split.by=frame measures: interpolation between frames and cameras that were seen. "
            "Claims about unseen motions need split.by=sequence."
        )
    return "Motions are on both sides: scores on this split partly measure what was seen in training."


CHECKS: dict[str, Check] = {"leaks": check_leaks}
"""Name of the flag -> check; made in this order."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace; leaves with status 2 when no check is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m src.tools.doctor", description="Is this data, this model, this machine fit to train?"
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    for name, check in CHECKS.items():
        parser.add_argument(f"--{name}", action="store_true", help=check.__doc__)
    parser.add_argument(
        "--within", nargs="+", default=["1", "5", "25"], metavar="K", help="distances in frames for --leaks"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
    arguments = parser.parse_intermixed_args(argv)
    # A list without end takes the settings that follow it.
    arguments.overrides += [text for text in arguments.within if "=" in text]
    distances = [text for text in arguments.within if "=" not in text]
    if not all(text.isdecimal() and int(text) > 0 for text in distances) or not distances:
        parser.error(f"--within: got {' '.join(distances) or 'nothing'}, want whole numbers from 1 on")
    arguments.within = [int(text) for text in distances]
    if not any(getattr(arguments, name) for name in CHECKS):
        parser.error(f"no check asked for; there is {', '.join(f'--{name}' for name in CHECKS)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Make the checks that the command line asks for; returns the exit status."""
    arguments = parse_arguments(argv)
    log.configure()
    failed = False
    try:
        config = load_config(arguments.config, arguments.overrides)
        for name, check in CHECKS.items():
            if getattr(arguments, name):
                for found in check(config, arguments):
                    failed |= isinstance(found, Finding) and found.status == "FAIL"
                    print(found.line() if isinstance(found, Finding) else found, flush=True)
    except (UTNetError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
