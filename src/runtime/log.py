"""Logging: plain messages, because users grep them literally.

Rank 0 writes to stdout and to the run's log.txt; other ranks only let warnings through, marked with the rank.
An outlet that cannot be written to never ends the run (`src.runtime.outlet`).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from src.errors import plain_text
from src.runtime.outlet import Outlet, say_failures, secure_streams

_ROOT = "utnet"


class _AroundBars(logging.StreamHandler[TextIO]):
    """Prints above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _InFile(logging.Handler):
    """Appends to a file, later where it cannot be written now."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._outlet = Outlet(str(path), path=path)

    def emit(self, record: logging.LogRecord) -> None:
        self._outlet.write(self.format(record) + "\n")

    def close(self) -> None:
        self._outlet.close()
        super().close()


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
    secure_streams()
    root = logging.getLogger(_ROOT)
    root.propagate = False
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    form = _Plain("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s")
    outlets: list[logging.Handler] = [_AroundBars(sys.stdout)]
    if log_file is not None and rank == 0:
        outlets.append(_InFile(log_file))
    for handler in outlets:
        handler.setFormatter(form)
        root.addHandler(handler)
    if log_file is not None and rank == 0:
        say_failures()


logging.getLogger(_ROOT).addHandler(logging.NullHandler())
