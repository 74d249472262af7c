"""Users' files and cameras -> `src.predict.frame.Frame`. Nothing is written."""

from src.predict.frames.live import open_live
from src.predict.frames.sources import Source, open_source
from src.predict.frames.tree import LabelBoxes

__all__ = ["LabelBoxes", "Source", "open_live", "open_source"]
