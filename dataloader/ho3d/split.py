"""How the training list is divided into `train` and `val`: integers and one named stream, nothing global.

By frame, neighbouring frames and other cameras of the same instant stand on the other side, so the score
measures interpolation. By sequence, whole motions (all their cameras) are held out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src.config import SplitConfig
from src.errors import DataError
from src.runtime.files.disk import read_plain
from src.runtime.seed import stream
from src.schema import motion_of

SEED = 42
"""Of the draw of val, apart from the run's seed: all runs validate on the same frames, and scores compare."""

_MOST_BYTES = 1 << 20
"""Longest list of held-out sequences that is read."""

SplitName = Literal["train", "val", "evaluation"]


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of an annotation index."""

    name: SplitName
    rows: NDArray[np.int64]
    """(N,) rows of the index, ascending: sample `i` of the split is row `rows[i]` of the index."""
    sha256: str
    """Hex digest of the list file's content, the division, the rows, and the labels that it is scored by."""
    note: str
    """How it was divided, for the log."""
    kind: str
    """What a score on it means, in a few words."""

    @property
    def id(self) -> str:
        """16 hex digits that name it wherever it is named: 63 bits of `sha256`."""
        return f"{int(self.sha256[:16], 16) >> 1:016x}"

    def scored_by(self, labels_sha256: str) -> Split:
        """The same rows, scored by labels of that content: other labels make another split."""
        digest = hashlib.sha256(f"{self.sha256}:{labels_sha256}".encode()).hexdigest()
        return dataclasses.replace(self, sha256=digest)


def divide(
    name: Literal["train", "val"],
    config: SplitConfig,
    sequence_of_row: NDArray[np.integer],
    sequences: tuple[str, ...],
    list_sha256: str,
    held_out_names: Sequence[str] | None = None,
) -> Split:
    """One side of the training list.

    Args:
        name: which side.
        config: division and share of val.
        sequence_of_row: (N,) number of each row's sequence.
        sequences: names by that number.
        list_sha256: digest of the list file, so that the split's hash tells two data sets apart.
        held_out_names: sequences whose motions are val, by sequence only; None: motions are drawn.

    Raises:
        DataError: a side would be empty, or a name is not in the list.
    """
    total = len(sequence_of_row)
    if config.by == "frame":
        count = total * config.val_percent // 100
        # Integers: int(83325 * 0.9) would leave 8333 frames.
        held_out = np.zeros(total, bool)
        held_out[stream(SEED, "split", "frame").permutation(total)[:count]] = True
        kind = "random frames held out: measures interpolation"
        note = f"seed {SEED}; {kind}"
    else:
        held_out, note = _held_out_motions(config, sequence_of_row, sequences, held_out_names)
        kind = "whole motions held out"
    rows = np.flatnonzero(held_out if name == "val" else ~held_out).astype(np.int64)
    if len(rows) == 0:
        raise DataError(
            f"split {name}: no frame left of {total:,} (split.by={config.by}, split.val_percent="
            f"{config.val_percent}). Use a larger data set, another split.val_percent or a shorter "
            "split.held_out_list."
        )
    note = f"{len(rows):,} of {total:,} frames, by {config.by}; {note}"
    return Split(name, rows, split_digest(name, rows, list_sha256), note, f"by {config.by}, {kind}")


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


def read_held_out(path: Path) -> tuple[str, ...]:
    """Names of sequences, one a line; blank lines and lines after # are passed over.

    Raises:
        DataError: the file cannot be read, or names nothing.
    """
    try:
        lines = read_plain(path, _MOST_BYTES).decode("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(
            f"split.held_out_list: {path} cannot be read ({error}). Name a text file with one sequence a "
            "line; a relative path starts at dataset.root_dir."
        ) from error
    names = tuple(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise DataError(f"split.held_out_list: {path} names no sequence.")
    return names


def _held_out_motions(
    config: SplitConfig,
    sequence_of_row: NDArray[np.integer],
    sequences: tuple[str, ...],
    names: Sequence[str] | None,
) -> tuple[NDArray[np.bool_], str]:
    """Mask of the rows whose motion is held out, and how many motions that are."""
    motions = sorted(set(map(motion_of, sequences)))
    if len(motions) < 2:
        raise DataError(
            f"split.by=sequence holds whole motions out, but the list has only {len(motions)} "
            f"({', '.join(motions)}). Use a data set with more motions, or split.by=frame."
        )
    if names is None:
        count = max(1, len(motions) * config.val_percent // 100)
        chosen = {motions[i] for i in stream(SEED, "split", "sequence").permutation(len(motions))[:count]}
        how = f"seed {SEED}"
    else:
        unknown = sorted(set(names) - set(sequences))
        if unknown:
            raise DataError(
                f"split.held_out_list names {len(unknown)} sequences that the training list does not have "
                f"(first: {', '.join(unknown[:5])}). It has {', '.join(sequences[:5])}, ..."
            )
        chosen, how = set(map(motion_of, names)), "named in split.held_out_list"
    held = np.array([motion_of(sequence) in chosen for sequence in sequences], bool)
    note = (
        f"{how}; {len(chosen)} of {len(motions)} whole motions held out "
        f"({int(held.sum())} of {len(sequences)} sequences)"
    )
    return held[np.asarray(sequence_of_row, np.int64)], note
