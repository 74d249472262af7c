"""Where the files of a frame stand: names that follow the frame's name and never lead elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_STRANGE = re.compile(r"[%\x00-\x1f\x7f]|^\.{1,2}$")
"""What is spelled as `%` and hexadecimal digits: a sign of this spelling, or special to a disk."""
_LONGEST = 180
"""Bytes of one part of a name; a disk allows 255, and an unfinished file has a longer name."""


def place(out: Path, kind: str, frame: str, ending: str) -> Path:
    """`<out>/<kind>/<frame><ending>`, inside `<out>/<kind>` whatever the name is.

    Args:
        out: folder of the prediction.
        kind: folder in it, e.g. `overlays`.
        frame: name of a frame; its slashes make folders. Names that differ give files that differ.
        ending: `.jpg`, for one.
    """
    *folders, name = frame.split("/")
    parts = [
        _part(folder).replace(".", "%2E") if folder.endswith(ending) else _part(folder) for folder in folders
    ]
    return Path(out, kind, *parts, _part(name) + ending)


def _part(text: str) -> str:
    """One part of a path: the same text where a disk can have it, else one that no other text gets."""
    plain = _STRANGE.sub(lambda found: "".join(f"%{ord(c):02X}" for c in found[0]), text) or "%"
    raw = os.fsencode(plain)
    if len(raw) <= _LONGEST:
        return plain
    return f"{raw[: _LONGEST // 2].decode(errors='ignore')}%~{hashlib.sha256(raw).hexdigest()[:32]}"
