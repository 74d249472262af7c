"""Command line of the embedded default: `python -m dataloader.synthetic --out DIR`.

Exit status: 0 written or found complete, 2 with one line for whatever a user can mend, 130 after Ctrl-C; in
the last two cases nothing half made is left behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

from dataloader.synthetic.domains import DOMAINS
from dataloader.synthetic.hand.standin import build_standin
from dataloader.synthetic.writer import Parameters, look_first, write_tree
from src.errors import UTNetError
from src.hand.mano_assets import HandAsset, load_hand_asset
from src.runtime import log
from src.runtime.command_line import make_parser


def main(arguments: list[str] | None = None) -> int:
    """Parse, write, and return the exit status."""
    options = _parser().parse_args(arguments)
    log.configure()
    # A polite end, as by Ctrl-C, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        names = [field.name for field in dataclasses.fields(Parameters)]
        parameters = Parameters(**{name: getattr(options, name) for name in names})
        look_first(options.out, parameters)  # before the hand is built, which takes seconds
        write_tree(options.out, parameters, _hand(options.hand), workers=options.workers)
    except UTNetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot write {options.out}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; nothing was left at {options.out}\n")
        return 130
    return 0


def _hand(path: Path | None) -> HandAsset:
    """The hand file named, or the stand-in built here."""
    return build_standin() if path is None else load_hand_asset(path)


def _parser() -> argparse.ArgumentParser:
    """The command line; argparse leaves with status 2 by itself."""
    parser = make_parser("python -m dataloader.synthetic", "Write a synthetic data set in HO3D's layout.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; an equal, complete one is reused")
    add("--sequences", type=int, default=100, help="folders under train/ (a camera's view is a folder)")
    add("--frames", type=int, default=40, help="frames of each folder")
    add("--evaluation-sequences", type=int, default=10, help="folders under evaluation/")
    add("--held-out-sequences", type=int, default=0, help="more folders under train/, named in held_out.txt")
    add("--held-out-frames", type=int, default=1, help="frames of each of those")
    add("--held-out-cameras", type=int, help="as --cameras, of these motions; default: the same")
    add("--seed", type=int, default=0, help="the same seed gives the same files")
    add("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    grey = "one grey picture per folder, shared by hard links; train: in training sequences alone"
    add("--annotations-only", nargs="?", const=True, default=False, choices=["train"], help=grey)
    add("--cameras", type=int, default=3, help="folders that show the same motion")
    add("--domain", choices=list(DOMAINS), default="table", help="HO3D's world, or the one that people bring")
    add("--pace", type=int, help="every how many frames of a training motion one is written")
    add("--hand", type=Path, default=None, help="hand model in MANO's format; default: the stand-in")
    return parser


if __name__ == "__main__":
    sys.exit(main())
