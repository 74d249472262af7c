"""Files of tensors: what is damaged is refused by name, what is whole is read."""

from __future__ import annotations

import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.errors import AssetError
from src.runtime.files.tensor_file import copy_tensors, first_nonfinite, load_tensors, save_tensors

STATE = {
    "format": 3,
    "model": {f"layer{k}.weight": torch.arange(100.0 + k) for k in range(6)},
    "rng": [torch.arange(9, dtype=torch.uint8)],
    "text": "a",
}


def same(found: dict) -> bool:
    return (
        found.keys() == STATE.keys()
        and all(torch.equal(found["model"][k], v) for k, v in STATE["model"].items())
        and torch.equal(found["rng"][0], STATE["rng"][0])
        and (found["format"], found["text"]) == (3, "a")
    )


def flip(path: Path, whole: bytes, bit: int) -> None:
    """Write `whole` with one bit changed."""
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """A flipped bit of a weight changes what is scored, and torch.load looks at no checksum.

    Headers, padding, names and the checksum itself are no exception.
    """
    path = tmp_path / "a.pt"
    save_tensors(STATE, path)
    whole = path.read_bytes()
    bits = 8 * len(whole)
    places = random.Random(1).sample(range(bits), 60)
    for bit in (*range(0, 8 * 30, 3), *places, *range(bits - 8 * 44, bits)):
        flip(path, whole, bit)
        with pytest.raises(
            AssetError, match=f"thing {re.escape(str(path))} is no whole file of torch"
        ) as caught:
            load_tensors(path, "thing", mapped=bool(bit % 2))
        assert str(caught.value).endswith(". Use another copy")
    path.write_bytes(whole)
    assert same(load_tensors(path, "thing"))
    assert same(load_tensors(path, "thing", mapped=True))


def test_the_seal_is_invisible_to_others(tmp_path: Path) -> None:
    """Checkpoints are read by other people's scripts: with torch.load, from disk, mapped or a stream."""
    path = tmp_path / "a.pt"
    save_tensors(STATE, path)
    assert same(torch.load(path, weights_only=True))
    assert same(torch.load(path, weights_only=True, mmap=True))
    with path.open("rb") as file:
        assert same(torch.load(file, weights_only=True))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_file_without_a_seal_is_checked_by_its_records(tmp_path: Path) -> None:
    """Older checkpoints and pretrained weights have zip's checksums: a flipped weight is found by them."""
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    assert same(load_tensors(path, "thing"))
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    assert len(records) >= 9
    for record in records:
        lengths = struct.unpack("<HH", whole[record.header_offset + 26 : record.header_offset + 30])
        begin = record.header_offset + 30 + sum(lengths)  # of its name and of its padding
        for at in (begin, begin + record.file_size // 2, begin + record.file_size - 1):
            flip(path, whole, 8 * at + 6)
            with pytest.raises(AssetError, match=re.escape(f"torch.save: record {record.filename} ")):
                load_tensors(path, "thing")
    changed = 0
    for bit in random.Random(2).sample(range(8 * len(whole)), 200):
        flip(path, whole, bit)
        try:
            changed += not same(load_tensors(path, "thing"))  # padding: it is not read
        except AssetError:
            continue
    assert changed == 0


ENDS = "it does not end as one"
DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda whole: b"", "it does not begin as one"),
    (lambda whole: bytes(len(whole)), "it does not begin as one"),
    (lambda whole: whole[: len(whole) // 2] + bytes(1000) + whole[len(whole) // 2 + 1000 :], ""),
    (lambda whole: whole + bytes(512), ENDS),
    (lambda whole: whole + whole[: len(whole) // 2], ENDS),  # half of another behind it
    *((lambda whole, n=n: whole[:-n], ENDS) for n in (1, 8, 20, 22)),
    (lambda whole: whole[: len(whole) // 2], ENDS),
]


@pytest.mark.parametrize("sealed", [True, False])
def test_what_is_no_whole_file_is_refused(tmp_path: Path, sealed: bool) -> None:
    """A copy that was cut short, grew, or is something else altogether: one sentence with its name."""
    path = tmp_path / "a.pt"
    save_tensors(STATE, path) if sealed else torch.save(STATE, path)
    whole = path.read_bytes()
    for damage, why in DAMAGES:
        path.write_bytes(damage(whole))
        with pytest.raises(AssetError, match=re.escape(f"{path} is no whole file of torch.save: {why}")):
            load_tensors(path, "thing")


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    """Weights that were published before torch 1.6 have no checksum, and are the only ones there are."""
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert same(load_tensors(path, "thing"))


def test_a_copy_is_a_file_of_its_own_and_whole_or_not_there(tmp_path: Path) -> None:
    """Two names of one file are damaged together; a source that was damaged must not spread."""
    source, target = tmp_path / "best.pt", tmp_path / "last.pt"
    save_tensors(STATE, source)
    copy_tensors(source, target)
    assert source.stat().st_ino != target.stat().st_ino
    assert source.read_bytes() == target.read_bytes()
    flip(source, source.read_bytes(), 8 * 1000)
    assert same(load_tensors(target, "thing"))
    with pytest.raises(OSError, match="damaged after it was written"):
        copy_tensors(source, target)
    assert same(load_tensors(target, "thing"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]
    torch.save(STATE, source)  # of older code: no seal
    copy_tensors(source, target)
    assert source.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_named(dtype: torch.dtype, bad: float) -> None:
    """One NaN in a weight makes every prediction NaN: which tensor, before hours of scoring."""
    largest = torch.finfo(dtype).max
    state = {
        "model": {"a": torch.tensor([largest, -largest], dtype=dtype), "b": torch.ones(3, 4, dtype=dtype)},
        "ema": None,
        "optimizer": {"step": torch.tensor(3.0), "empty": torch.zeros(0), "ids": torch.tensor([1, 2])},
    }
    assert first_nonfinite(state) is None
    state["model"]["b"][1, 2:] = bad
    assert first_nonfinite(state) == "model.b (2 of 12 numbers)"
