"""Command line of the stand-in hand: `python -m dataloader.synthetic.hand --out FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from dataloader.synthetic.hand.standin import DEFAULT_PATH, build_standin, write_standin
from src.errors import UTNetError
from src.runtime.command_line import make_parser


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or find it there; returns the exit status."""
    parser = make_parser("python -m dataloader.synthetic.hand", "Write the stand-in hand.")
    parser.add_argument("--out", type=Path, default=DEFAULT_PATH, help="file to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        path = write_standin(options.out)
    except UTNetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"stand-in hand {build_standin().fingerprint} at {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
