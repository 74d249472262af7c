"""Pages made from what a run left behind, with neither weights nor data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import ConfigError, DataError
from src.evaluation.evaluator import FILE_ENDS, MODALITY_NAMES, read_per_sample
from src.evaluation.scored import Scored
from src.pages.curves import curve_blocks
from src.pages.page import Json, Page, Section
from src.pages.prediction import Predicted
from src.pages.validation import OVER_EPOCHS, Validation
from src.runtime.files.disk import read_npz, require_place

REPORT = "report.html"
"""Name of a page, in val/ of a run and in the folder of a prediction."""


def page_place(path: Path) -> Path:
    """Where a page is asked for; never in the place of what it is made from.

    Raises:
        ConfigError: another ending than .html.
        DataError: it cannot be written there.
    """
    if path.suffix != ".html":
        raise ConfigError(f"--out {path}: want a name that ends in .html")
    return require_place(path)


def with_curves(page: Page, scalars: Sequence[Mapping[str, Json]]) -> Page:
    """A kept page with the curves of today; as it is, where there are none."""
    if not (blocks := curve_blocks(scalars)):
        return page
    sections = [section for section in page.sections if section.title != OVER_EPOCHS]
    return dataclasses.replace(page, sections=[*sections[:1], Section(OVER_EPOCHS, blocks), *sections[1:]])


def of_per_sample(path: Path, scalars: Sequence[Mapping[str, Json]]) -> Page:
    """What per-sample files say alone: no truth is in them, so nothing is said of single joints.

    Args:
        path: of `write_per_sample`; beside one with depth the one without it is looked for.
        scalars: lines of the run's scalars.jsonl.

    Raises:
        DataError: it is no such file, or the two are of other frames.
    """
    with_depth, without = MODALITY_NAMES["rgbd"], MODALITY_NAMES["rgb"]
    shown = without if path.stem.endswith(FILE_ENDS["rgb"]) else with_depth
    arrays = {shown: read_per_sample(path)}
    first, hidden = arrays[shown], path.with_name(f"{path.stem}{FILE_ENDS['rgb']}.npz")
    if shown == with_depth and hidden.is_file():
        arrays[without] = read_per_sample(hidden)
        if arrays[without]["frame"].tolist() != first["frame"].tolist():
            raise DataError(f"{hidden} is of other frames than {path}: move it away")
    facts = [("File", str(path)), ("Split", f"{first['split']} (split {str(first['split_hash'])[:12]})")]
    return Validation(
        title="Validation",
        facts=facts,
        scored={name: Scored.of_file(columns) for name, columns in arrays.items()},
        total=len(first["frame"]),
        scalars=scalars,
    ).page()


def of_prediction(folder: Path, overlay: Callable[[str], NDArray[np.uint8] | None]) -> Page:
    """The page of `predictions.npz`.

    Args:
        folder: of the prediction.
        overlay: name of a frame -> its picture with the hands drawn, None where there is none.

    Raises:
        DataError: the file is torn, or of another program.
    """
    path = folder / "predictions.npz"
    arrays: dict[str, NDArray[Any]] = read_npz(path)
    try:
        return Predicted(arrays, overlay).page()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path} is no file of a prediction ({type(error).__name__}: {error})") from error
