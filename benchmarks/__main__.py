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
    parser.add_argument("names", nargs="*", choices=[[], *NAMES, *LONG], metavar="name",
                        help=f"of {', '.join(NAMES + LONG)}; none: the first {len(NAMES)}")  # fmt: skip
    for name in parser.parse_args().names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    sys.exit(exit_status(main))
