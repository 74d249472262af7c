"""What stands where a tree is to be made: nothing, the very tree, or something that is not touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataloader.synthetic.domains import DOMAINS
from src.errors import DataError

RECORD_NAME = "synthetic.json"
HELD_OUT_NAME = "held_out.txt"


def is_there(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether `out` is a complete tree made with `wanted`; an error where it is anything else but empty or
    absent."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if trouble := _trouble(out, wanted):
        raise DataError(f"{out} {trouble}. Name another --out, or remove it yourself.")
    return True


def _trouble(out: Path, wanted: dict[str, Any]) -> str | None:
    """What keeps `out` from being the tree that is wanted, in words."""
    if not out.is_dir():
        return "is a file; want a folder to write or reuse"
    try:
        record = json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"is not empty and holds no {RECORD_NAME}: no complete synthetic set"
    except (OSError, ValueError) as reason:
        return f"holds a {RECORD_NAME} that cannot be read: {reason}"
    if different := _differences(record, wanted):
        return f"was made otherwise: {'; '.join(different)}"
    parameters = wanted["parameters"]
    names = ["train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json"]
    for name in [*names, HELD_OUT_NAME] if parameters["held_out_sequences"] else names:
        if not (out / name).is_file():
            return f"is partial: {name} is missing"
    train = parameters["sequences"] + parameters["held_out_sequences"]
    for i, (name, frames) in enumerate(record["folders"].items()):
        for kind in ("rgb", "depth", "meta"):
            folder = out / ("train" if i < train else "evaluation") / name / kind
            found = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
            if found != frames:
                return f"is partial: {folder} holds {found} files, want {frames}"
    return None


def _differences(record: Any, wanted: dict[str, Any]) -> list[str]:
    """What a record says that differs from what is wanted, in words."""
    parts = ("parameters", "folders")
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in parts):
        return ["its record is not ours"]
    # What a record does not name was as its world has it; older ones name what there was once.
    asked = wanted["parameters"]
    once: dict[str, str | int] = {"domain": "table", "orientations": "table", "version": "v3"}
    once |= {"pace": DOMAINS[asked["domain"]].habits.pace, "held_out_cameras": asked["cameras"]}
    got = {"held_out_sequences": 0, "held_out_frames": 1, **once, **record, **record["parameters"]}
    flat = {**once, **wanted, **asked}
    del flat["parameters"]
    return [f"{key} is {got.get(key)}, want {value}" for key, value in flat.items() if got.get(key) != value]
