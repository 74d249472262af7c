"""Command lines on which everything is said once: of two values for one option, one would go unheard."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


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
