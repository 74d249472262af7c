"""What tools have in common: options that are given once, and errors that are one line.

Of two values for one option, one would go unheard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from src.errors import UTNetError
from src.runtime.debug import trace_enabled
from src.runtime.ranks.launch import rank_from_environment


class _Once(argparse.Action):
    """Stores a value; a second one for the same option is an error."""

    given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for each time that an option is given, and for positional arguments."""
        if option_string is not None and self.given:
            parser.error(f"{option_string} is given twice, keep one")
        self.given = self.given or option_string is not None
        setattr(namespace, self.dest, values)


def make_parser(prog: str | None, description: str | None) -> argparse.ArgumentParser:
    """A parser, to be used for one command line, whose options take one value each, once."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.register("action", None, _Once)
    parser.register("action", "store", _Once)
    return parser


def exit_status(work: Callable[[], int | None], *, alone: bool = False) -> int:
    """Do a tool's work; returns its exit status, 0 for None.

    An error that a user can mend is one line on stderr, from rank 0, and status 2; with UTNET_TRACE=1 it is
    raised.

    Args:
        work: what the tool does; returns its status.
        alone: it is no program of several ranks: RANK in its surroundings is of somebody else.
    """
    try:
        return work() or 0
    except (UTNetError, OSError) as error:
        if trace_enabled():
            raise
        if alone or rank_from_environment() == 0:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
