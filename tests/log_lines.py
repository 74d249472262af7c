"""What a module of the project logs, line by line, whether or not an entry point has set logging up."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from src.runtime.log import get_logger


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def log_lines(name: str) -> Iterator[list[str]]:
    """The lines that the logger of this name gets inside the context, each once."""
    logger, handler = get_logger(name), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
