"""Labels, lists and weights as nobody should write them, for `test_hostile_inputs.py`."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.ho3d.layout import read_list
from dataloader.ho3d.meta import read_meta
from dataloader.ho3d.split import read_held_out
from src.config import DatasetConfig
from src.hand.mano_assets import load_hand_asset
from src.training.checkpoints.checkpoint import load_checkpoint
from tests.checkpoints import write_checkpoint
from tests.hand_file import hand_file

Case = Callable[[Path], object]
"""Writes into an empty folder, reads what it wrote, and raises."""
KINDS: dict[str, dict[str, Case]] = {}


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def long_file(folder: Path, name: str) -> Path:
    """A file of 100 GB that takes no room."""
    with (folder / name).open("wb") as file:
        file.truncate(100 << 30)
    return folder / name


# Annotations and hand models


def tuples(levels: int) -> bytes:
    """A tuple of two that holds the one before twice, `levels` times over, as a key."""
    steps = b"".join(b"q%c0h%ch%c\x86" % (k, k, k) for k in range(levels))
    return b"\x80\x02})" + steps + b"Ns."


def _texts(times: int) -> bytes:
    """One text of 60 kB, encoded many times over."""
    call = b"h\x00h\x01\x85R"
    return (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 60_000) + b"x" * 60_000 + b"q\x01]("
        + call * times + b"e."
    )  # fmt: skip


def _arrays(times: int) -> bytes:
    """One content of 60 kB, made into many arrays."""
    build, empty, _ = np.zeros(0, np.uint8).__reduce__()
    text = "x" * 60_000

    class Shared:
        def __reduce__(self) -> Any:
            return build, empty, (1, (60_000,), np.dtype(np.uint8), False, text)

    return pickle.dumps([Shared() for _ in range(times)], protocol=2)


GOOD = {
    "camMat": np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]),
    "handJoints3D": np.full((21, 3), -0.5),
    "handPose": np.zeros(48),
    "handBeta": np.zeros(10),
    "handTrans": np.zeros(3),
}


def _meta(content: bytes | dict[str, object]) -> Case:
    """An annotation of these bytes, or one with these fields."""

    def case(folder: Path) -> object:
        plain = content if isinstance(content, bytes) else pickle.dumps(GOOD | content, protocol=2)
        return read_meta(written(folder, "0000.pkl", plain), "train")

    return case


def _loop() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _lists_of_lists() -> list[Any]:
    value: list[Any] = [0.0, 0.0]
    for _ in range(40):
        value = [value, value]
    return value


KINDS["annotations"] = {
    "tuples in tuples": _meta(tuples(60)),
    "a tower of tuples": _meta(b"\x80\x02})" + b"\x85" * 250_000 + b"Ns."),
    "memo index": _meta(b"\x80\x02}r\xff\xff\xff\x05."),
    "memo index in words": _meta(b"}p99999999\n."),
    "a length of a terabyte": _meta(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"."),
    "a text again and again": _meta(_texts(30_000)),
    "an array again and again": _meta(_arrays(5_000)),
    "sets without end": _meta(b"\x80\x04" + b"\x8f" * 260_000 + b"."),
    "lists in lists": _meta({"camMat": _lists_of_lists()}),
    "a list in itself": _meta({"camMat": _loop()}),
    "complex": _meta({"camMat": GOOD["camMat"] + 1j}),
    "complex numbers": _meta({"handTrans": [1j, 0, 0]}),
    "text": _meta({"handTrans": np.array(["0.1", "0.2", "0.3"])}),
    "true": _meta({"handTrans": np.array([True, False, True])}),
    "joints of 1e30": _meta({"handJoints3D": np.full((21, 3), 1e30)}),
    "betas of 1e300": _meta({"handBeta": [1e300] * 10}),
    "a number of 400 digits": _meta({"handTrans": [10**400, 0, 0]}),
    "a name that moves the cursor": _meta(b"\x80\x02cos\x1b[2J\nsystem\n."),
    "a pipe": lambda folder: read_meta(pipe(folder, "0000.pkl"), "train"),
    "100 GB": lambda folder: read_meta(long_file(folder, "0000.pkl"), "train"),
}


def _hand(change: Callable[[dict[str, Any]], None]) -> Case:
    """The stand-in with something else in it."""

    def case(folder: Path) -> object:
        fields = pickle.loads(hand_file().read_bytes())
        change(fields)
        return load_hand_asset(written(folder, "MANO_RIGHT.pkl", pickle.dumps(fields, protocol=2)))

    return case


def _columns(fields: dict[str, Any]) -> None:
    fields["J_regressor"].indptr = np.array([0] * 778 + [2**40], np.int64)


KINDS["hand models"] = {
    "columns of a trillion entries": _hand(_columns),
    "faces of 1e300": _hand(lambda fields: fields.update(v_template=np.full((778, 3), 1e300))),
    "complex weights": _hand(lambda fields: fields.update(weights=fields["weights"] + 0j)),
    "tuples in tuples": lambda folder: load_hand_asset(written(folder, "M.pkl", tuples(60))),
    "a pipe": lambda folder: load_hand_asset(pipe(folder, "M.pkl")),
    "100 GB": lambda folder: load_hand_asset(long_file(folder, "M.pkl")),
}


# Lists


def _list(line: bytes) -> Case:
    def case(folder: Path) -> object:
        written(folder, "train.txt", b"ABF10/0000\n" + line + b"\n")
        return read_list(DatasetConfig(root_dir=folder), "train").frames

    return case


def _long_list(folder: Path) -> object:
    long_file(folder, "train.txt")
    return read_list(DatasetConfig(root_dir=folder), "train").frames


KINDS["lists"] = {
    "the folder above": _list(b"../0001"),
    "this folder": _list(b"./0001"),
    "an absolute name": _list(b"/etc/0001"),
    "two levels": _list(b"a/../../0001"),
    "a name that moves the cursor": _list(b"A\x1b[2JB/0001"),
    "a bell and a backspace": _list(b"A\x07\x08/0001"),
    "a NUL": _list(b"A\0B/0001"),
    "other digits": _list("ABF10/٠٠٠١".encode()),
    "100 GB": _long_list,
    "held out: a pipe": lambda folder: read_held_out(pipe(folder, "held_out.txt")),
    "held out: 100 GB": lambda folder: read_held_out(long_file(folder, "held_out.txt")),
}


# Checkpoints


def _checkpoint(change: Callable[[dict[str, Any]], object]) -> Case:
    """A checkpoint of this program with something else in it."""

    def case(folder: Path) -> object:
        path = write_checkpoint(folder / "last.pt")
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        return load_checkpoint(path)

    return case


def _without(*keys: str) -> Case:
    return _checkpoint(lambda state: [state.pop(key) for key in keys])


def _with(**values: object) -> Case:
    return _checkpoint(lambda state: state.update(values))


def _inside(section: str, **values: object) -> Case:
    return _checkpoint(lambda state: state[section].update(values))


def _cycle(state: dict[str, Any]) -> None:
    state["model"]["model"] = state["model"]


def _repacked(change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Case:
    """A checkpoint whose pickle is another one, or whose records are compressed."""

    def case(folder: Path) -> object:
        path = write_checkpoint(folder / "last.pt")
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in records.items():
                archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
        return load_checkpoint(path)

    return case


def _bomb(folder: Path) -> object:
    path = write_checkpoint(folder / "last.pt")
    torch.save(torch.load(path, weights_only=True), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("last/data/99", bytes(64 << 20))
    return load_checkpoint(path)


KINDS["checkpoints"] = {
    "no hand": _without("hand_fingerprint"),
    "no configuration": _without("config"),
    "no commit, no world": _without("commit", "world"),
    "no random states": _without("rng"),
    "the model is a list": _with(model=[1, 2]),
    "weights are text": _with(model={"weight": "0.5"}),
    "a step of text": _with(step="12"),
    "a step of half a million bits": _with(step=1 << 500_000),
    "a step that is true": _with(step=True),
    "the format is a tensor": _with(format=torch.ones(3)),
    "an average without weights": _with(ema={"updates": 3}),
    "a position with a strange key": _inside("progress", epochs=3),
    "a position that is no number": _inside("progress", loss_sum=float("nan")),
    "settings that are tensors": _inside("config", seed=torch.ones(2)),
    "settings without training": _inside("config", training=None),
    "random states of no rank": _with(rng=[]),
    "a model in itself": _checkpoint(_cycle),
    "a number that stands for a trillion": _with(model={"weight": torch.zeros(1).expand(1 << 40)}),
    "weights on no device": _with(model={"weight": torch.zeros(1 << 40, device="meta")}),
    "ten billion bytes by name": _repacked(
        lambda _: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\xe4\x0bT\x02\x85R."
    ),
    "tuples in tuples": _repacked(lambda _: tuples(60)),
    "a memo index": _repacked(lambda _: b"\x80\x02}r\xff\xff\xff\x05."),
    "a compressed record": _bomb,
    "a pipe": lambda folder: load_checkpoint(pipe(folder, "last.pt")),
}
