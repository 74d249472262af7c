"""Frames that cannot be used: why, how many of them a run goes on without, and what a user reads of them.

Each has exactly one reason, the most basic of those that hold. They stand in no split; more of them than
dataset.max_unusable names is an error, which says all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from dataloader.ho3d.layout import FrameList, frame_name
from dataloader.ho3d.meta import ListName
from src.config import DatasetConfig
from src.errors import DataError, plain_text
from src.runtime.log import get_logger

NAMES_SHOWN = 20
"""Frames that a table names for each reason."""

_log = get_logger(__name__)


class Reason(Enum):
    """Why a frame cannot be used, the most basic first; and the likely cause where most frames share it."""

    ANNOTATION = "annotation unreadable", "meta/ is not complete, or of another release: extract it again."
    MISSING = "picture missing", "The download or its extraction is not complete: extract it again."
    RELEASE = "picture of the other release", "This is the other release: set dataset.version={other}."
    EMPTY = "picture empty", "Its extraction ran out of space or was broken off: extract it again."
    FORMAT = "picture not what its name says", ""
    SIZE = "picture of another size", "HO3D aligns depth to its picture: same camera, same size."
    CAMERA = (
        "camMat no camera matrix",
        "camMat belongs to another resolution than the pictures', or is transposed.",
    )
    BEHIND = (
        "hand not in front of the camera",
        "Hands stand behind the camera: handJoints3D must be OpenGL, z < 0 in front.",
    )
    HAND = "hand not of a hand's size", "Labels must be in metres, joints in HO3D's order."
    OUTSIDE = (
        "hand outside the picture",
        "Axes (handJoints3D must be OpenGL) or camMat are not those of these pictures.",
    )
    DECODE = (
        "joints not what the hand model decodes",
        "mano.model_path is not the hand of these labels (the stand-in on real HO3D, or MANO on synthetic "
        "data), or the labels have another unit or joint order.",
    )

    def __init__(self, words: str, cause: str) -> None:
        self.words = words
        self.cause = cause
        self.place = len(type(self).__members__)


class Fault(NamedTuple):
    """What is wrong with a frame."""

    reason: Reason
    detail: str
    """With what was got and what was wanted; the path, where a file is to blame."""


class FrameError(DataError):
    """A fault met while a frame was read: its reason and its detail."""

    @property
    def fault(self) -> Fault:
        """What a frame has that raises it."""
        return Fault(*self.args)

    def __str__(self) -> str:
        return plain_text(self.fault.detail)


def add_fault(faults: dict[int, Fault], row: int, fault: Fault) -> None:
    """Note a row's fault unless one as basic is known already."""
    if row not in faults or fault.reason.place < faults[row].reason.place:
        faults[row] = fault


@dataclass(frozen=True)
class UnusableFrames:
    """The unusable frames of one list file."""

    name: ListName
    listed: int
    """Frames of the list file."""
    faults: Mapping[str, Fault]
    """`train/MC1/0007` -> what is wrong; in the order of the list."""

    @classmethod
    def of(cls, frames: FrameList, faults: Mapping[int, Fault]) -> UnusableFrames:
        """From faults by row of the list."""
        named = {}
        for row in sorted(faults):
            sequence, frame = frames.frames[row]
            named[f"{frames.name}/{sequence}/{frame_name(frame)}"] = faults[row]
        return cls(frames.name, len(frames.frames), named)

    def write(self, path: Path) -> None:
        """All frames, a line each: name, reason and detail with tabs between."""
        lines = [f"{name}\t{fault.reason.words}\t{fault.detail}\n" for name, fault in self.faults.items()]
        path.write_bytes(os.fsencode("".join(lines)))

    def to_facts(self) -> list[list[str]]:
        """Name, reason and detail of each, as JSON holds them; `from_facts` reads them back."""
        return [[name, fault.reason.name, fault.detail] for name, fault in self.faults.items()]

    @classmethod
    def from_facts(cls, name: ListName, listed: int, facts: list[list[str]]) -> UnusableFrames:
        """The inverse of `to_facts`."""
        return cls(name, listed, {frame: Fault(Reason[reason], detail) for frame, reason, detail in facts})

    def require(self, config: DatasetConfig, listing: Path) -> None:
        """Go on without these frames, with one warning that shows the table, or refuse the data set.

        The evaluation list allows none: its rows are the rows of a submission.

        Args:
            config: says how many may be left out.
            listing: where `write` wrote.

        Raises:
            DataError: more than dataset.max_unusable, or no other frame is left; one line with the table,
                the setting that would go on and, where one reason explains most of it, its likely cause.
        """
        if not self.faults:
            return
        count, left = len(self.faults), self.listed - len(self.faults)
        what = f"HO3D {self.name}: {count:,} of {self.listed:,} frames are unusable"
        setting = f"dataset.max_unusable={config.max_unusable}"
        allowed = config.unusable_allowed(self.listed) if self.name == "train" else 0
        table = self._table()
        if count <= allowed and left:
            rows = "".join(f"\n  {row}\n    {self.faults[names[0]].detail}" for _, names, row in table)
            _log.warning(
                f"WARNING: {what}. They are left out of every split, as {setting} allows ({allowed:,}); "
                f"all of them: {listing}{rows}"
            )
            return
        limit = f"and {setting} allows {allowed:,}"
        mend = f"Mend them, or go on without them: dataset.max_unusable={count}."
        if self.name == "evaluation":
            limit = "and none may be"
            mend = "Its rows are the rows of a submission, so none is left out: re-extract them."
        elif not left:
            limit, mend = "so none is left", ""
        reason, names, _ = table[0]
        other = {"v2": "v3", "v3": "v2"}[config.version]
        parts = (
            f"{what}, {limit}: {'; '.join(row for *_, row in table)}.",
            f"First: {names[0]}: {self.faults[names[0]].detail.removesuffix('.')}.",
            f"All with their reasons: {listing}.",
            reason.cause.format(other=other) if 2 * len(names) > self.listed else "",
            mend,
        )
        raise DataError(" ".join(filter(None, parts)))

    def _table(self) -> list[tuple[Reason, list[str], str]]:
        """Reason, names, and a line of both; the most frequent first, else the most basic."""
        found: dict[Reason, list[str]] = {reason: [] for reason in Reason}
        for name, fault in self.faults.items():
            found[fault.reason].append(name)
        table = []
        for reason, names in sorted(found.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
            row = f"{len(names):,} {reason.words}: {', '.join(names[:NAMES_SHOWN])}{more}"
            table += [(reason, names, row)] if names else []
        return table
