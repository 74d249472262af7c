"""Run all short benchmarks, or those named: python -m benchmarks [hand_layer] [collection] [official] ..."""

from __future__ import annotations

import argparse
import importlib

NAMES = (
    "hand_layer",
    "collection",
    "official",
    "nearest_pose",
    "data_path",
    "startup",
    "loader",
    "train_step",
    "validation",
    "scaling",
    "memory",
)
LONG = ("ablation",)
"""Take an hour or more and run only when named."""


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(NAMES + LONG)}; none: the first {len(NAMES)}"
    )
    names = parser.parse_args().names
    unknown = [n for n in names if n not in NAMES + LONG]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES + LONG)}")
    for name in names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
