"""Caches, scalars, configurations and pictures as nobody should write them, for `test_hostile_inputs.py`."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataloader.cache.crop_cache import TABLE, TABLE_DTYPE, CropCache
from dataloader.crop.camera import Window
from dataloader.pictures.decode import picture_size, read_depth_bytes, read_rgb
from src.config_file import load_config
from src.errors import UTNetError
from src.runtime.files.derived import Store
from src.runtime.files.disk import read_npz
from src.runtime.files.json_rows import point_rows
from src.training.recorder import Recorder
from tests.end_to_end.inputs.hostile_labels import Case, long_file, pipe, written
from tests.training.toy import ALONE

KINDS: dict[str, dict[str, Case]] = {}

# Caches and per-sample files


def _kept(folder: Path, files: dict[str, Any], facts: dict[str, Any] | None = None) -> Path:
    """Something derived with these arrays; the folder."""

    def make(place: Path) -> dict[str, Any]:
        for name, array in files.items():
            np.save(place / name, array)
        return facts or {}

    derived = Store(folder, "thing", "thing").ensure({"format": 1}, make)
    derived.close()
    return derived.folder


def _found(folder: Path) -> Any:
    """What the store has, or an error that it has nothing."""
    found = Store(folder, "thing", "thing").find({"format": 1})
    if found is None:
        raise UTNetError("thing: nothing whole is there; it is made anew")
    return found


def _derived(change: Callable[[dict[str, Any]], str]) -> Case:
    def case(folder: Path) -> object:
        path = _kept(folder, {"rows.npy": np.zeros(3)}) / "derived.json"
        path.write_text(change(json.loads(path.read_text())))
        return _found(folder).open("rows.npy")

    return case


def _elsewhere(content: dict[str, Any]) -> str:
    name = "../" * 12 + "etc/hostname"
    content["files"][name] = [Path("/etc/hostname").stat().st_size, None]
    return json.dumps(content)


def _objects(folder: Path) -> object:
    """An array of objects: their bytes would be taken for addresses."""
    place = _kept(folder, {"rows.npy": np.arange(8)})
    raw = (place / "rows.npy").read_bytes().replace(b"'<i8'", b"'|O' ")
    (place / "rows.npy").write_bytes(raw)
    content = json.loads((place / "derived.json").read_text())
    content["files"]["rows.npy"] = [len(raw), zlib.crc32(raw)]
    (place / "derived.json").write_text(json.dumps(content))
    return _found(folder).array("rows.npy")[0]


def _crops(change: Callable[[Any], object]) -> Case:
    """A crop cache of two frames with another table."""

    def case(folder: Path) -> object:
        table = np.zeros(2, TABLE_DTYPE)
        table["window"], table["size"] = (0, 0, 4, 4), (8, 8)
        table["rgb"], table["depth"] = (0, 48), (0, 32)
        table["crc"] = zlib.crc32(bytes(48)), zlib.crc32(bytes(32))
        change(table)

        def make(place: Path) -> dict[str, Any]:
            np.save(place / TABLE, table)
            written(place, "part-00000.bin", bytes(64))
            return {}

        derived = Store(folder, "crops", "crops", unsummed="part").ensure({"kind": "raw"}, make)
        frame = CropCache(derived).frame(0, "0000.jpg")
        window = Window(*table["window"][0].tolist())
        return frame.rgb(window), frame.depth(window)

    return case


def _npz(content: bytes, zeros: int = 0) -> Case:
    """A per-sample file of one record: these bytes, and so many megabytes of zeros."""

    def case(folder: Path) -> object:
        path = folder / "per_sample.npz"
        archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open("rows.npy", "w") as record:
            for part in (content, *[bytes(1 << 20)] * zeros):
                record.write(part)
        return read_npz(path)

    return case


def _head(descr: str, shape: str) -> bytes:
    """An array's head and 64 bytes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def _truth(content: bytes, times: int = 1) -> Case:
    """Rows of ground truth."""

    def case(folder: Path) -> object:
        path = folder / "evaluation_xyz.json"
        with path.open("wb") as file:
            file.writelines([content] * times)
        with path.open("rb") as file:
            return list(point_rows(file, 21, str(path)))

    return case


KINDS["ground truth"] = {
    "brackets": _truth(b"[" * 200_000),
    "a number of 400 digits": _truth(b"[[" + b"[1" + b"0" * 400 + b", 0, 0]" + b", [0, 0, 0]" * 20 + b"]]"),
    "a row without end": _truth(b"[[" + b"[0, 0, 0], " * 100_000, 60),
    "blanks without end": _truth(b" " * (1 << 20), 60),
}
KINDS["caches"] = {
    "a store: lists in lists": _derived(lambda content: "[" * 100_000),
    "a store: a file of another folder": _derived(_elsewhere),
    "a store: objects": _objects,
    "crops: a window outside": _crops(lambda table: table["window"].fill(100)),
    "crops: a part that is not there": _crops(lambda table: table["part"].fill(7)),
    "per-sample: a head of a terabyte": _npz(_head("'<f8'", "(137438953472,)")),
    "per-sample: objects": _npz(_head("'|O'", "(8,)")),
    "per-sample: 300 MB in 1 MB": _npz(_head("'<f8'", "(39321608,)"), 300),
}


# Scalars: they bar nothing, so a case says what it kept


def _scalars(*lines: bytes) -> Case:
    def case(folder: Path) -> object:
        good = b'{"step": 1, "minutes": 0.5, "Train/loss": 2.0}\n'
        path = written(folder, "scalars.jsonl", good + b"".join(lines) + good.replace(b"1", b"3", 1))
        recorder = Recorder(folder, ALONE, resume_step=3)
        recorder.scalars(4, {"Train/loss": 1.0})
        recorder.close()
        steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
        raise UTNetError(f"kept steps {steps}")

    return case


KINDS["scalars"] = {
    "another encoding": _scalars('{"step": 2, "note": "手"}\n'.encode("gbk")),
    "no step": _scalars(b'{"Train/loss": 1.0}\n'),
    "a step of 5,000 digits": _scalars(b'{"step": ' + b"9" * 5000 + b"}\n"),
    "brackets": _scalars(b"[" * 50_000 + b"\n"),
    "bytes": _scalars(b"\xff\xfe\0\0\n", b"\n", b"null\n"),
}


# Configurations


def _config(text: str | bytes) -> Case:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: load_config(written(folder, "run.yaml", content))


def _laughs() -> str:
    """Nine aliases of nine aliases, nine times over."""
    lines = [f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]" for before, here in pairwise("abcdefghij")]
    return "\n".join(["a: &a [1, 1]", *lines])


KINDS["configurations"] = {
    "a number of 5,000 digits": _config("seed: " + "9" * 5000),
    "a NUL in a path": _config('dataset: {root_dir: "a\\0b"}'),
    "UTF-16": _config("seed: 1".encode("utf-16")),
    "a type of Python": _config("name: !!python/object/apply:os.getcwd []"),
    "a key that moves the cursor": _config('"\\e[2J": 1'),
    "laughs": _config(_laughs()),
    "a section in itself": _config("model: &a {preset: *a}"),
    "brackets": _config("seed: " + "[" * 60_000),
    "100 GB": lambda folder: load_config(long_file(folder, "run.yaml")),
}


# Pictures


def _png(width: int, height: int) -> bytes:
    """A PNG of no rows whose header says a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    """A JPEG of 16 x 16 whose header says another size."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _scans() -> bytes:
    """A progressive JPEG of 1,600 x 1,600 that paints its last scan over and over."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode(".jpg", np.zeros((1600, 1600, 3), np.uint8), options)[1].tobytes()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + data[-2:]


HUGE = _png(90_000, 90_000)
KINDS["pictures"] = {
    "depth of 90,000 x 90,000": lambda folder: read_depth_bytes(written(folder, "0.png", HUGE)),
    "30,000 x 30,000": lambda folder: read_rgb(written(folder, "0.png", _png(30_000, 30_000))),
    "a JPEG of 65,000 x 65,000": lambda folder: read_rgb(written(folder, "0.jpg", _jpeg(65_000, 65_000))),
    "3,000 scans": lambda folder: read_rgb(written(folder, "0.jpg", _scans())),
    "segments without end": lambda folder: picture_size(
        written(folder, "0.jpg", b"\xff\xd8" + b"\xff\xe0\0\2" * 4_000_000), "rgb"
    ),
    "a pipe": lambda folder: picture_size(pipe(folder, "0.jpg"), "rgb"),
    "100 GB": lambda folder: read_rgb(long_file(folder, "0.jpg")),
}  # fmt: skip
