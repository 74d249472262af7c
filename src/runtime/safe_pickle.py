"""Reading pickles that somebody else wrote, without running anything that they name.

A pickle is a program: GLOBAL looks a name up, REDUCE calls what was found, BUILD hands it a state. Here a name is
looked up in an allow-list and nowhere else; any other name is refused before it is imported. What is on the lists is
safe to call with any argument:

- numpy's `_reconstruct`, `ndarray`, `dtype` and `scalar` allocate and fill arrays. Object arrays are refused by
  `dtype` itself here (the stand-in `_plain_dtype`), so that no hidden object arrives inside one; a forged shape can
  at most ask for memory, which raises.
- `_codecs.encode` is replaced by a function that only encodes text as latin-1.
- scipy's sparse matrix, chumpy's `Ch` and `Select` become inert records (`Record`): they run none of those
  libraries' code, and BUILD only fills their own `__dict__`.
- `set` is replaced by a function that makes a set of what it is given.

BUILD on an allowed *function* would set attributes on it, so each is handed out as a fresh wrapper per file.
Persistent ids and the extension registry are refused. Writing (`dumps`) is for our own files only.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy._core import multiarray

from src.errors import AssetError, UTNetError

AllowList = Mapping[tuple[str, str], object]


class Record:
    """An object of a library that is not imported: it only remembers what the file said about it."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        """Positional arguments of the constructor."""

    def __setstate__(self, state: object) -> None:
        """Remember the state, whatever it is; a dictionary becomes `fields`."""
        self.state = state

    @property
    def fields(self) -> dict[str, Any]:
        """The recorded attributes; empty when the state was no dictionary."""
        state = self.__dict__.get("state")
        if isinstance(state, tuple):
            state = next((part for part in state if isinstance(part, dict)), None)
        return {str(k): v for k, v in state.items()} if isinstance(state, dict) else {}


class CscMatrixRecord(Record):
    """`scipy.sparse.csc_matrix` as recorded: data, indices, indptr, shape."""


class ChRecord(Record):
    """`chumpy.ch.Ch` as recorded: its value is the field `x`."""


class SelectRecord(Record):
    """`chumpy.reordering.Select` as recorded: entries `idxs` of `a`, reshaped to `preferred_shape`."""


def _plain_dtype(*arguments: Any) -> np.dtype[Any]:
    """`numpy.dtype` of numbers, booleans and text; object dtypes are refused."""
    kind = np.dtype(*arguments)
    if kind.hasobject:
        raise pickle.UnpicklingError("an array of Python objects")
    return kind


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` for the one encoding that numpy's pickles use."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoding {encoding!r}")
    return text.encode("latin1")


def _reconstruct(subtype: object, shape: tuple[int, ...], kind: object) -> Any:
    """`numpy`'s `_reconstruct` for plain arrays."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError("an array of a subclass")
    return multiarray._reconstruct(np.ndarray, shape, kind)  # type: ignore[attr-defined]


def _scalar(kind: Any, content: Any = None) -> Any:
    """`numpy`'s `scalar` of a plain dtype."""
    if not isinstance(kind, np.dtype) or kind.hasobject:
        raise pickle.UnpicklingError("a scalar of an odd type")
    if not isinstance(content, (bytes, str)):
        raise pickle.UnpicklingError("a scalar without bytes")
    return multiarray.scalar(kind, content)


def _set(items: Any = ()) -> set[Any]:
    """`set`."""
    return set(items)


_NUMPY: dict[tuple[str, str], object] = {
    **{
        (module, "_reconstruct"): _reconstruct
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    **{(module, "scalar"): _scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
    ("_codecs", "encode"): _latin1,
}

META_GLOBALS: AllowList = _NUMPY
"""What a HO3D annotation may name: numpy's arrays and numbers."""

MANO_GLOBALS: AllowList = {
    **_NUMPY,
    **{(f"scipy.sparse{m}", "csc_matrix"): CscMatrixRecord for m in ("", ".csc", "._csc")},
    ("chumpy.ch", "Ch"): ChRecord,
    ("chumpy.reordering", "Select"): SelectRecord,
    ("__builtin__", "set"): _set,
    ("builtins", "set"): _set,
}
"""What a MANO file may name."""


class _Unpickler(pickle.Unpickler):
    """Resolves names in an allow-list only; remembers the first one it refused."""

    def __init__(self, file: BinaryIO, allow: AllowList) -> None:
        super().__init__(file, encoding="latin1")
        self._allow = allow
        self.refused: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        """The allowed object, or a refusal; nothing is imported."""
        # A dotted name would walk into attributes of what is allowed; it is in no list, so it ends here too.
        found = self._allow.get((module, name))
        if found is None:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(f"refused {self.refused}")
        if isinstance(found, type):
            return found
        assert callable(found), "an allow-list holds classes and functions"
        return _fresh(found)

    def persistent_load(self, identifier: object) -> NoReturn:
        """Refused: a persistent id asks the reader to fetch something."""
        self.refused = f"persistent id {str(identifier)[:40]!r}"
        raise pickle.UnpicklingError(f"refused {self.refused}")


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A throw-away wrapper: a hostile BUILD may set attributes on it, not on the shared function."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def load(
    source: Path | str | BinaryIO,
    *,
    allow: AllowList,
    what: str,
    error: type[UTNetError] = AssetError,
) -> Any:
    """Read one pickle (any protocol, text as latin-1) that may name nothing but what `allow` lists.

    Args:
        source: path, or a binary file open for reading.
        allow: (module, name) -> what stands in for it; see `MANO_GLOBALS` and `META_GLOBALS`.
        what: the file's role, for messages ("MANO file", "HO3D annotation").
        error: class of the error to raise.

    Returns:
        the object; containers, numbers, text, arrays and `Record`s only.

    Raises:
        error: the file cannot be read, is truncated or no pickle, or names something else.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        try:
            content = path.read_bytes()
        except OSError as reason:
            raise error(f"{what} {path}: cannot be read ({reason.strerror or reason}).") from reason
        return _load_bytes(content, allow, f"{what} {path}", error)
    return _load_bytes(source.read(), allow, f"{what} {getattr(source, 'name', '<stream>')}", error)


def _load_bytes(content: bytes, allow: AllowList, where: str, error: type[UTNetError]) -> Any:
    """Unpickle and turn every failure into one clear line."""
    reader = _Unpickler(io.BytesIO(content), allow)
    try:
        return reader.load()
    except _FAILURES as reason:
        if reader.refused is not None:
            allowed = ", ".join(sorted({f"{module}.{name}" for module, name in allow}))
            raise error(
                f"{where}: it names {reader.refused}, which is not allowed; nothing of it was run. "
                f"Allowed are only {allowed}. Do not trust this file; get it again from its official source."
            ) from None
        raise error(
            f"{where}: not a whole pickle ({len(content)} bytes; {type(reason).__name__}: {str(reason)[:120]}). "
            "Copy or download it again."
        ) from reason


# Everything that a broken or hostile stream was seen to raise in the interpreter of pickles.
_FAILURES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    ImportError,
    RecursionError,
    AssertionError,
)


def dumps(content: object) -> bytes:
    """Protocol-2 pickle of our own data: what Python 2 era readers of MANO and HO3D files understand."""
    return pickle.dumps(content, protocol=2)


def iterate_records(value: object) -> Iterator[Record]:
    """All `Record`s inside nested containers, outermost first."""
    if isinstance(value, Record):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iterate_records(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iterate_records(item)
