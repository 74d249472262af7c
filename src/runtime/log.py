"""Logging: plain messages, because users grep them literally.

Rank 0 writes to stdout and to the run's log.txt; other ranks only let warnings through, marked with the rank.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from src.errors import plain_text

_ROOT = "utnet"


class _AroundBars(logging.StreamHandler[TextIO]):
    """Prints above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _Plain(logging.Formatter):
    """Lines as a terminal may show them, whatever names are in them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(plain_text, super().format(record).split("\n")))


def get_logger(name: str) -> logging.Logger:
    """Logger of a module, below `utnet`; silent until an entry point calls `configure`."""
    return logging.getLogger(f"{_ROOT}.{name}")


def configure(*, rank: int = 0, log_file: Path | None = None) -> None:
    """Send messages to stdout and, if given, append them to a file.

    Args:
        rank: 0 prints everything from INFO; others print warnings with their rank in front.
        log_file: rank 0's log; None writes none. Calling again replaces the outlets.
    """
    root = logging.getLogger(_ROOT)
    root.propagate = False
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    form = _Plain("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s")
    outlets: list[logging.Handler] = [_AroundBars(sys.stdout)]
    if log_file is not None and rank == 0:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        outlets.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in outlets:
        handler.setFormatter(form)
        root.addHandler(handler)


logging.getLogger(_ROOT).addHandler(logging.NullHandler())
