"""Run all short benchmarks, or those named: python -m benchmarks [collection] [data_path] ..."""

from __future__ import annotations

import argparse
import importlib
import sys

from src.runtime.command_line import exit_status

NAMES = ("collection", "data_path", "startup", "train_step")
LONG = ("ablation", "peers")
"""Take an hour or more and run only when named."""


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join(NAMES + LONG)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {known}; none: the first {len(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES + LONG]:
        parser.error(f"there is no {unknown[0]}; want {known}")
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    sys.exit(exit_status(main))
