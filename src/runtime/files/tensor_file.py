"""Files of tensors: written with a checksum of every byte, and read only when it is right.

torch.save writes a zip file. The zip has a checksum of each record, which torch.load does not look at, and
none of its headers and padding. So a file written here ends with a seal: the zip's comment, which readers of
zip files pass over, holds the CRC-32 of all bytes before it. That finds every flipped bit, and larger damage
but for one case in four billion, at two to six times the pace of a cryptographic digest. It is no protection
against somebody who means to deceive.

Nor does a file cost more than its length suggests: records are stored as they are, their pickle is bounded
(`pickle_bounds`), and no tensor claims more numbers than its storage holds.

Files of torch.save without a seal (of other programs, or of older code) are checked by their records'
checksums. What torch wrote before its version 1.6 is no zip, and has none.
"""

from __future__ import annotations

import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from src.errors import AssetError
from src.runtime.files.disk import ZIP_FAILURES, atomic_write, crc32
from src.runtime.files.pickle_bounds import require_bounded
from src.runtime.files.safe_pickle import FAILURES, UnpicklingError

ADVICE = ". Use another copy"
"""How the error of a damaged file ends."""
NO_FILE_ADVICE = ". Give the path of an existing one"
"""How the error ends where there is no file."""
_BEGIN = b"PK\3\4"
_OLD = b"\x80"
"""How a pickle begins, and with it a file of torch before 1.6, which has no checksum."""
_LAST = b"PK\5\6"
_LAST_BYTES = 22
"""The zip's last record: a signature, 16 bytes of counts and places, and the length of the comment."""
_NO_COMMENT = b"\0\0"
_MARK = b"utnet crc32 "
_SEAL_BYTES = len(_MARK) + 8
_END_BYTES = len(_NO_COMMENT) + _SEAL_BYTES
"""What is not summed but compared: the length of the comment, and the comment."""
_OLD_PICKLES = 5
"""In a file of torch before 1.6: three of facts, the content, the names of the storages."""
_MOST_STEPS = 500_000
"""Instructions of a pickle of tensors: 35 a tensor, so that a huge network's checkpoint has 150,000."""
_GROWS = frozenset(
    {"_codecs encode", "collections Counter"}
    | {f"{m} {n}" for m in ("builtins", "__builtin__") for n in ("bytearray", "set")}
)
"""What torch's reader would call, and what makes of a number or a short text as much as it is asked for."""
_SHARED = 4
"""Times that a file's bytes may be claimed by tensors: some weights stand in two places."""
_NAME = 200
"""Characters of a container's name that are kept; a hostile file nests without end."""
_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Summing:
    """A file that sums what torch writes to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write and sum."""
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)

    def flush(self) -> None:
        """Torch calls it at the end."""
        self._file.flush()


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values for `load_tensors`; the file is whole or not there.

    The checksum is of the bytes as torch hands them over. They are not read back: that would read memory, not
    the disk.

    Raises:
        OSError, RuntimeError: it could not be written (torch reports a full disk as RuntimeError).
    """
    with atomic_write(path) as file:
        summing = _Summing(file)
        torch.save(state, cast(BinaryIO, summing))
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        file.write(_end(summing.crc))


def copy_tensors(source: Path, target: Path) -> None:
    """Copy a file that was found or written whole; its checksum is looked at on the way.

    Raises:
        OSError: it could not be written, or `source` changed meanwhile; `target` is as it was.
    """
    with source.open("rb") as file, atomic_write(target) as copy:
        crc = _sum(file, source.stat().st_size - _END_BYTES, copy)
        end = file.read()
        copy.write(end)
        if not _has_no_seal(end) and end != _end(crc):
            raise OSError(f"{source} was damaged after it was written")


def load_tensors(path: Path, what: str, *, mapped: bool = False) -> Any:
    """Read a file that `torch.save` wrote, tensors and plain values only (`weights_only=True`), onto the CPU.

    Args:
        path: the file; all of it is read once to look at its checksums.
        what: its role, for messages ("checkpoint").
        mapped: leave the tensors in the file until they are looked at.

    Raises:
        AssetError: no such file, damaged, foreign bytes, or a file that names anything else than tensors.
    """
    if not path.is_file():
        kind = "not a file" if path.exists() else "no such file"
        raise AssetError(f"{what} {path}: {kind}{NO_FILE_ADVICE}")
    try:
        if (damage := _damage(path)) is not None:
            raise AssetError(f"{what} {path} is no whole file of torch.save: {damage}{ADVICE}")
        _require_modest(path)
        with path.open("rb") as file:  # torch opens no name that is not UTF-8
            source = path if mapped and os.fsencode(path).isascii() else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=source is path)
        _require_honest(content, path.stat().st_size)
        return content
    except (*FAILURES, *ZIP_FAILURES) as reason:
        # torch's restricted reader fails on foreign bytes with whatever its parser trips over.
        first = re.split(r"\.\s|\n", str(reason), maxsplit=1)[0] or type(reason).__name__
        if isinstance(reason, UnpicklingError):
            first = "it is no pickle, or names more than plain tensors and values"
        raise AssetError(f"{what} {path} cannot be read as plain tensors ({first}){ADVICE}") from reason


def tensor_bytes(content: object) -> int:
    """Bytes of all tensors in nested containers."""
    return sum(tensor.nbytes for _, tensor in _tensors(content))


def first_nonfinite(content: object) -> str | None:
    """Name of the first tensor in nested containers that holds a number which is not finite, and how many."""
    for name, tensor in _tensors(content):
        if tensor.dtype not in _CHECKED or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor)  # nan goes through; thirty times as fast as isfinite, and no memory
        if not bool(torch.isfinite(high - low)) and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            return f"{name} ({bad:,} of {tensor.numel():,} numbers)"
    return None


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested containers with their names, in order; of a container that stands twice, once."""
    left, seen = [("", content)], set[int]()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += reversed([(f"{name[:_NAME]}.{key}".lstrip("."), item) for key, item in inside])


def _require_modest(path: Path) -> None:
    """ValueError: it asks for more than its length suggests, or names what plain tensors do not need."""
    with path.open("rb") as file:
        if file.read(len(_BEGIN)) != _BEGIN:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                end = 0
                for _ in range(_OLD_PICKLES):
                    end = _require_plain(cast(bytes, content), end) if end < len(content) else end
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = next((r.filename for r in records if r.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise ValueError(f"record {packed} is compressed, torch.save does not do that")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records say that they are longer than the file")
        for record in records:
            if record.filename.endswith("data.pkl"):
                _require_plain(archive.read(record), 0)


def _require_plain(content: bytes, start: int) -> int:
    """Where the pickle at `start` ends; ValueError: it is not modest."""
    found = require_bounded(content, start, _MOST_STEPS)
    if grows := sorted(found.names & _GROWS):
        raise ValueError(f"it names {grows[0]}, which plain tensors do not need")
    return found.end


def _require_honest(content: object, size: int) -> None:
    """ValueError: tensors claim more numbers than `size` bytes hold, or are of a kind without any."""
    claimed = 0
    for _, tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"a tensor of kind {tensor.layout} on {tensor.device}, want plain numbers")
        claimed += tensor.nbytes
        if tensor.nbytes > tensor.untyped_storage().nbytes() or claimed > _SHARED * size:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} claims more numbers than there are")


def _damage(path: Path) -> str | None:
    """What is wrong with the bytes of a file of torch.save; None if they are whole, or have no checksum."""
    with path.open("rb") as file:
        begin = file.read(len(_BEGIN))
        if begin != _BEGIN:
            return None if begin.startswith(_OLD) else "it does not begin as one"
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LAST_BYTES - _SEAL_BYTES))
        end = file.read()
        if _has_no_seal(end):
            return _damaged_record(path)
        if not end.startswith(_LAST):
            return "it does not end as one"
        file.seek(0)
        crc = _sum(file, size - _END_BYTES)
        good = end.endswith(_end(crc))
        return None if good else "its bytes are not those that its checksum was made of"


def _damaged_record(path: Path) -> str | None:
    """What is wrong with a zip file by the checksums of its records."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = archive.testzip()
    except ZIP_FAILURES as error:
        return str(error) or type(error).__name__
    return None if name is None else f"record {name} is not what its checksum was made of"


def _has_no_seal(end: bytes) -> bool:
    """Whether a file that ends with these 22 bytes or more is a zip without a comment, as torch writes it."""
    return end[-_LAST_BYTES:].startswith(_LAST) and end.endswith(_NO_COMMENT)


def _sum(file: BinaryIO, length: int, copy: BinaryIO | None = None) -> int:
    """CRC-32 of the next `length` bytes, then of a comment's length of 0; they are written to `copy` too."""
    return zlib.crc32(_NO_COMMENT, crc32(file, length, copy))


def _end(crc: int) -> bytes:
    """The last bytes of a sealed file, by the CRC-32 of what torch wrote."""
    return _SEAL_BYTES.to_bytes(2, "little") + _MARK + b"%08x" % crc
