"""What stands where a tree is to be made: nothing, the very tree, or something that is not touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.errors import DataError

RECORD_NAME = "synthetic.json"
HELD_OUT_NAME = "held_out.txt"


def is_there(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether `out` is a complete tree made with `wanted`; an error where it is anything else but empty or
    absent."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    remedy = "Name another --out, or remove it yourself."
    if not out.is_dir():
        raise DataError(f"{out} is a file; want a folder to write or reuse. {remedy}")
    try:
        record = json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as reason:
        raise DataError(
            f"{out} is not empty and holds no {RECORD_NAME}: no complete synthetic set. {remedy}"
        ) from reason
    except (OSError, ValueError) as reason:
        raise DataError(f"{out / RECORD_NAME} cannot be read: {reason}. {remedy}") from reason
    different = _differences(record, wanted)
    if different:
        raise DataError(f"{out} was made otherwise: {'; '.join(different)}. {remedy}")
    _check_whole(out, record, remedy)
    return True


def _differences(record: Any, wanted: dict[str, Any]) -> list[str]:
    """What a record says that differs from what is wanted, in words."""
    if not isinstance(record, dict):
        return ["its record is not a table"]
    flat = {**{k: v for k, v in wanted.items() if k != "parameters"}, **wanted["parameters"]}
    parameters = record.get("parameters")
    # What a record does not name yet, its tree was made without.
    absent = {"held_out_sequences": 0, "held_out_frames": 1}
    got = {**absent, **record, **(parameters if isinstance(parameters, dict) else {})}
    return [f"{key} is {got.get(key)}, want {value}" for key, value in flat.items() if got.get(key) != value]


def _check_whole(out: Path, record: dict[str, Any], remedy: str) -> None:
    """Raise where a complete tree has since lost files."""
    folders = record.get("folders")
    if record.get("complete") is not True or not isinstance(folders, dict):
        raise DataError(f"{out} is partial: {RECORD_NAME} does not say that it is complete. {remedy}")
    held_out = record["parameters"].get("held_out_sequences", 0)
    names = ["train.txt", "evaluation.txt", "evaluation_xyz.json", "evaluation_verts.json"]
    for name in [*names, HELD_OUT_NAME] if held_out else names:
        if not (out / name).is_file():
            raise DataError(f"{out} is partial: {name} is missing. {remedy}")
    train = record["parameters"]["sequences"] + held_out
    for i, (name, frames) in enumerate(folders.items()):
        for kind in ("rgb", "depth", "meta"):
            folder = out / ("train" if i < train else "evaluation") / name / kind
            found = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
            if found != frames:
                raise DataError(f"{out} is partial: {folder} holds {found} files, want {frames}. {remedy}")
