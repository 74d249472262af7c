"""The stand-in hand's file, written once for all test processes and ranks of one state of its code."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path

from dataloader.synthetic.hand.standin import write_standin


@functools.cache
def hand_file() -> Path:
    """Path of the file, in the machine's temporary folder under a name made from the code that builds it."""
    digest = hashlib.sha256()
    for room in ("src/hand", "dataloader/synthetic/hand"):
        for source in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            digest.update(source.read_bytes())
    path = Path(tempfile.gettempdir()) / f"utnet-tests-{digest.hexdigest()[:16]}" / "STANDIN_RIGHT.pkl"
    if not path.is_file():
        write_standin(path)
    return path
