"""Frames that cannot be used: why, how many of them a run goes on without, and what a user reads of them.

Each has exactly one reason, the most basic of those that hold. They stand in no split; more of them than
dataset.max_unusable names is an error, which says all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
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


class Reason(StrEnum):
    """Why a frame cannot be used, the most basic first."""

    ANNOTATION = "annotation unreadable"
    MISSING = "picture missing"
    RELEASE = "picture of the other release"
    EMPTY = "picture empty"
    FORMAT = "picture not what its name says"
    SIZE = "picture of another size"
    CAMERA = "camMat no camera matrix"
    BEHIND = "hand not in front of the camera"
    HAND = "hand not of a hand's size"
    OUTSIDE = "hand outside the picture"
    DECODE = "joints not what the hand model decodes"


_ORDER = {reason: place for place, reason in enumerate(Reason)}


class Fault(NamedTuple):
    """What is wrong with a frame."""

    reason: Reason
    detail: str
    """With what was got and what was wanted; the path, where a file is to blame."""


class FrameError(DataError):
    """A fault met while a frame was read."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # what a process pool makes it of again
        self.fault = Fault(reason, detail)

    def __str__(self) -> str:
        return plain_text(self.fault.detail)


def add_fault(faults: dict[int, Fault], row: int, fault: Fault) -> None:
    """Note a row's fault unless a more basic one is known already."""
    known = faults.get(row)
    if known is None or _ORDER[fault.reason] < _ORDER[known.reason]:
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

    def __len__(self) -> int:
        return len(self.faults)

    def rows(self) -> list[str]:
        """The table: a line for each reason, the most frequent first: count, reason, first names."""
        return [
            f"{len(names):,} {reason}: {', '.join(names[:NAMES_SHOWN])}"
            + (f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else "")
            for reason, names in self._by_reason()
        ]

    def table(self) -> str:
        """`rows` one below the other, each with the detail of its first frame."""
        details = [self.faults[names[0]].detail for _, names in self._by_reason()]
        return "\n".join(f"  {row}\n    {detail}" for row, detail in zip(self.rows(), details, strict=True))

    def write(self, path: Path) -> None:
        """All frames, a line each: name, reason and detail with tabs between."""
        lines = [f"{name}\t{fault.reason}\t{fault.detail}\n" for name, fault in self.faults.items()]
        path.write_bytes(os.fsencode("".join(lines)))

    def to_facts(self) -> list[list[str]]:
        """Name, reason and detail of each, as JSON holds them; `from_facts` reads them back."""
        return [[name, fault.reason.name, fault.detail] for name, fault in self.faults.items()]

    @classmethod
    def from_facts(cls, name: ListName, listed: int, facts: list[list[str]]) -> UnusableFrames:
        """The inverse of `to_facts`.

        Raises:
            DataError: other facts.
        """
        try:
            return cls(
                name, listed, {frame: Fault(Reason[reason], detail) for frame, reason, detail in facts}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"HO3D index: its list of unusable frames is damaged ({error!r}). Delete the folder of the "
                "index (dataset.index_dir, or .utnet in the data set); it is made anew."
            ) from error

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
        is_train = self.name == "train"
        allowed = config.unusable_allowed(self.listed) if is_train else 0
        left = self.listed - len(self)
        what = f"HO3D {self.name}: {len(self):,} of {self.listed:,} frames are unusable"
        if len(self) <= allowed and left:
            _log.warning(
                f"WARNING: {what}. They are left out of every split, as dataset.max_unusable="
                f"{config.max_unusable} allows ({allowed:,}); all of them: {listing}\n{self.table()}"
            )
            return
        parts = [
            f"{what}, {self._limit(config, allowed, left)}",
            f"{'; '.join(self.rows())}.",
            f"First: {self._first().removesuffix('.')}.",
            f"All with their reasons: {listing}.",
            *self._cause(config),
        ]
        if not is_train:
            parts.append("Its rows are the rows of a submission, so none is left out: re-extract them.")
        elif left:
            parts.append(f"Mend them, or go on without them: dataset.max_unusable={len(self)}.")
        raise DataError(" ".join(parts))

    def _by_reason(self) -> list[tuple[Reason, list[str]]]:
        """Names for each reason that occurs, the most frequent first, else the most basic."""
        found: dict[Reason, list[str]] = {reason: [] for reason in Reason}
        for name, fault in self.faults.items():
            found[fault.reason].append(name)
        return sorted(((r, names) for r, names in found.items() if names), key=lambda item: -len(item[1]))

    def _first(self) -> str:
        """The first frame of the most frequent reason, in full."""
        name = self._by_reason()[0][1][0]
        return f"{name}: {self.faults[name].detail}"

    def _limit(self, config: DatasetConfig, allowed: int, left: int) -> str:
        """Which rule they break."""
        if not left:
            return "so none is left:"
        if self.name == "train":
            return f"and dataset.max_unusable={config.max_unusable} allows {allowed:,}:"
        return "and none may be:"

    def _cause(self, config: DatasetConfig) -> list[str]:
        """What explains a reason that more than half of all frames share."""
        reason, names = self._by_reason()[0]
        if 2 * len(names) <= self.listed:
            return []
        other = {"v2": "v3", "v3": "v2"}[config.version]
        causes = {
            Reason.ANNOTATION: "meta/ is not complete, or of another release: extract it again",
            Reason.MISSING: "The download or its extraction is not complete: extract it again",
            Reason.RELEASE: f"This is the other release: set dataset.version={other}",
            Reason.EMPTY: "Its extraction ran out of space or was broken off: extract it again",
            Reason.SIZE: "HO3D aligns depth to its picture: same camera, same size",
            Reason.CAMERA: "camMat belongs to another resolution than the pictures', or is transposed",
            Reason.BEHIND: "Hands stand behind the camera: handJoints3D must be OpenGL, z < 0 in front",
            Reason.HAND: "Labels must be in metres, joints in HO3D's order",
            Reason.OUTSIDE: "Axes (handJoints3D must be OpenGL) or camMat are not those of these pictures",
            Reason.DECODE: "mano.model_path is not the hand of these labels (the stand-in on real HO3D, or "
            "MANO on synthetic data), or the labels have another unit or joint order",
        }
        return [f"{causes[reason]}."] if reason in causes else []
