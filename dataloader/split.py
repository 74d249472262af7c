"""How the training list is divided into `train` and `val`: integers and one named stream, nothing global.

By frame, neighbouring frames and other cameras of the same instant stand on the other side, so the score
measures interpolation. By sequence, whole motions (all their cameras) are held out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src.config import SplitConfig
from src.errors import DataError
from src.runtime.seed import stream

SplitName = Literal["train", "val", "evaluation"]


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of an annotation index."""

    name: SplitName
    rows: NDArray[np.int64]
    """(N,) rows of the index, ascending: sample `i` of the split is row `rows[i]` of the index."""
    sha256: str
    """Hex digest of the list file's content, the division and the rows."""
    note: str
    """How it was divided, for the log."""
    kind: str
    """What a score on it means, in a few words."""

    @property
    def hash64(self) -> int:
        """The first 63 bits of `sha256`: fits the int64 header that ranks compare."""
        return int(self.sha256[:16], 16) >> 1


def motion_of(sequence: str) -> str:
    """Name of the motion that a sequence films: without the camera digit (ABF10 ... ABF14 -> ABF1)."""
    return sequence[:-1] if len(sequence) > 1 and sequence[-1].isdigit() else sequence


def divide(
    name: Literal["train", "val"],
    config: SplitConfig,
    sequence_of_row: NDArray[np.integer],
    sequences: tuple[str, ...],
    list_sha256: str,
) -> Split:
    """One side of the training list.

    Args:
        name: which side.
        config: division, share of val and seed.
        sequence_of_row: (N,) number of each row's sequence.
        sequences: names by that number.
        list_sha256: digest of the list file, so that the split's hash tells two data sets apart.

    Raises:
        DataError: a side would be empty.
    """
    total = len(sequence_of_row)
    if config.by == "frame":
        count = total * config.val_percent // 100
        # Integers: int(83325 * 0.9) would leave 8333 frames.
        held_out = np.zeros(total, bool)
        held_out[stream(config.seed, "split", "frame").permutation(total)[:count]] = True
        note = kind = "random frames held out: measures interpolation"
    else:
        held_out, note = _held_out_motions(config, sequence_of_row, sequences)
        kind = "whole motions held out"
    rows = np.flatnonzero(held_out if name == "val" else ~held_out).astype(np.int64)
    if len(rows) == 0:
        raise DataError(
            f"split {name}: no frame left of {total:,} (split.by={config.by}, "
            f"split.val_percent={config.val_percent}). "
            "Use a larger data set or another split.val_percent."
        )
    share = f"{len(rows):,} of {total:,} frames"
    return Split(
        name,
        rows,
        split_digest(name, rows, list_sha256),
        f"{share}, by {config.by}, seed {config.seed}; {note}",
        f"by {config.by}, {kind}",
    )


def whole_list(total: int, list_sha256: str) -> Split:
    """HO3D's official evaluation list, every row in the order of the file."""
    rows = np.arange(total, dtype=np.int64)
    note = f"{total:,} frames, HO3D's official evaluation list in its order"
    return Split("evaluation", rows, split_digest("evaluation", rows, list_sha256), note, "official list")


def split_digest(name: str, rows: NDArray[np.int64], list_sha256: str) -> str:
    """Hex digest of which frames a split holds."""
    digest = hashlib.sha256(f"{name}:{list_sha256}:".encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return digest.hexdigest()


def _held_out_motions(
    config: SplitConfig, sequence_of_row: NDArray[np.integer], sequences: tuple[str, ...]
) -> tuple[NDArray[np.bool_], str]:
    """Mask of the rows whose motion is held out, and how many motions that are."""
    motions = sorted({motion_of(sequence) for sequence in sequences})
    if len(motions) < 2:
        raise DataError(
            f"split.by=sequence holds whole motions out, but the list has only {len(motions)} "
            f"({', '.join(motions)}). "
            "Use a data set with more motions, or split.by=frame."
        )
    count = max(1, len(motions) * config.val_percent // 100)
    drawn = stream(config.seed, "split", "sequence").permutation(len(motions))[:count]
    chosen = {motions[i] for i in drawn}
    held = np.array([motion_of(sequence) in chosen for sequence in sequences], bool)
    note = (
        f"{count} of {len(motions)} whole motions held out ({int(held.sum())} of {len(sequences)} sequences)"
    )
    return held[np.asarray(sequence_of_row, np.int64)], note
