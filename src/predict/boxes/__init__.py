"""Frames -> boxes around the hands in them."""

from collections.abc import Sequence
from pathlib import Path

from src.errors import ConfigError
from src.predict.boxes.depth import DepthBoxes
from src.predict.boxes.detect import HandDetector
from src.predict.boxes.files import FileBoxes
from src.predict.boxes.finder import BoxFinder

__all__ = ["BoxFinder", "open_finder"]


def open_finder(how: str, names: Sequence[str] | None) -> BoxFinder:
    """What finds hands.

    Args:
        how: `detect`, `depth`, or a CSV or JSON file of boxes.
        names: of all frames, of which alone a file may hold boxes; None: a live camera's, which no file has.

    Raises:
        AssetError, ConfigError: what the detector needs is not there, or there is no such file.
        DataError: the file's content.
    """
    if how == "depth":
        return DepthBoxes()
    if how == "detect":
        return HandDetector()
    if names is None:
        raise ConfigError(f"boxes {how}: a live camera's frames have no boxes in a file. Use detect or depth")
    if not Path(how).is_file():
        raise ConfigError(f"boxes {how}: no such file; want labels, detect, depth, or a CSV or JSON file")
    return FileBoxes(Path(how), names)
