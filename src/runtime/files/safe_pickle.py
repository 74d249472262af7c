"""Reading pickles that somebody else wrote, without running anything that they name.

A pickle is a program: GLOBAL looks a name up, REDUCE calls what was found, BUILD hands it a state. Here a
name is looked up in an allow-list and nowhere else; any other name is refused before it is imported. Nor is
an allowed name the library's own object: each is one of the classes and functions below, so that no byte of
the file reaches the C code of numpy, scipy or chumpy as a state.

- numpy's arrays, dtypes and scalars are recorded, checked (numbers and text only, as many bytes as the shape
  asks for, no objects, no fields), and made into arrays by `np.frombuffer`. A forged dtype state, which numpy
  itself would take for pointers, is refused; a forged shape allocates nothing.
- `_codecs.encode` only encodes text as latin-1; `bytes` takes no arguments; `set` makes a set.
- scipy's sparse matrix, chumpy's `Ch` and `Select` become inert `Record`s: BUILD fills their own state.

BUILD on a *function* would set attributes on it, so each file is handed fresh wrappers. Persistent ids and
the extension registry are refused. Nor may a file cost more than its length suggests: `pickle_bounds` walks
it first, and what the functions below make of it is counted. Writing (`dumps`) is for our own files only.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from src.errors import AssetError, UTNetError
from src.runtime.files.disk import read_plain
from src.runtime.files.pickle_bounds import require_bounded

MOST_BYTES = 1 << 24
"""Longest file that is read where nothing else is said; MANO's has 4 MB."""

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


class _DtypeRecord:
    """`numpy.dtype` of numbers, booleans or text; its state may only set the byte order."""

    def __init__(self, code: object = None, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of type {_named(code)}; only numbers and text are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """The state numpy writes for plain types: (3, byte order, None, None, None, -1, -1, 0)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("a dtype with fields")
        order: object = state[1]
        if not isinstance(order, str) or order not in _BYTE_ORDERS:
            raise pickle.UnpicklingError("a dtype without byte order")
        self.dtype = self.dtype.newbyteorder(_BYTE_ORDERS[order])


class _ArrayRecord:
    """`numpy.ndarray`: made by `_reconstruct`, filled by its state, an array once that is counted."""

    parts: tuple[object, object, object, object]
    """Of `_array`."""

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError("an array that is built by hand")

    def __setstate__(self, state: object) -> None:
        """The state numpy writes: (1, shape, dtype, Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array with an odd state")
        _, shape, kind, fortran, content = state
        self.parts = content, kind, shape, "F" if fortran else "C"


def _array(content: object, kind: object, shape: object, order: object) -> NDArray[Any]:
    """A read-only array over checked bytes; it is also numpy's `_frombuffer`, which protocol 5 uses."""
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(kind, _DtypeRecord) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("an array without bytes or type")
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_AXES
        or not all(isinstance(n, int) and 0 <= n < _LONGEST_AXIS for n in shape)
    ):
        raise pickle.UnpicklingError("an array with an odd shape")
    if order not in ("C", "F") or math.prod(shape) * kind.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
    content = memoryview(content).toreadonly()  # a file may set elements of what can be written to
    return np.frombuffer(content, dtype=kind.dtype).reshape(shape, order="C" if order == "C" else "F")


def _reconstruct(subtype: object, *_: object) -> _ArrayRecord:
    """`numpy`'s `_reconstruct`: an empty array whose state follows."""
    if subtype is not _ArrayRecord:
        raise pickle.UnpicklingError("an array of a subclass")
    return _ArrayRecord.__new__(_ArrayRecord)


def _scalar(kind: object, content: object = None) -> Any:
    """`numpy`'s `scalar`."""
    return _array(content, kind, (), "C")[()]


def _latin1(text: object, encoding: object = "latin1") -> bytes:
    """`_codecs.encode` for the one encoding that numpy's pickles use."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoding {_named(encoding)}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes()`: how protocols 0 to 2 spell the empty string of an empty array; it takes no arguments."""
    return b""


def _set(items: Any = ()) -> set[Any]:
    """`set`."""
    return set(items)


def _named(value: object) -> str:
    """For messages: text as it stands, the kind of anything else, which may be of any length."""
    return repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"


_MOST_AXES, _LONGEST_AXIS = 32, 1 << 40
_BYTE_ORDERS: dict[str, Literal["<", ">", "|", "="]] = {"<": "<", ">": ">", "|": "|", "=": "="}
_DTYPE_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6})")

_NUMPY: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _ArrayRecord,
    ("numpy", "dtype"): _DtypeRecord,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _NUMPY[f"{_core}.multiarray", "scalar"] = _scalar
    _NUMPY[f"{_core}.numeric", "_frombuffer"] = _array

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


_MADE, _MADE_BASE = 4, 10_000
"""Bytes that may be made of a file's content: per byte of it, and at all. Protocols 0 to 2 make an array's
bytes of text, and the array of them."""
_HOLDS_ARRAYS = (tuple, dict, list, Record, _ArrayRecord, np.ndarray)


class _Unpickler(pickle.Unpickler):
    """Resolves names in an allow-list only; remembers the first one it refused."""

    def __init__(self, content: bytes, allow: AllowList) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._allow = allow
        self._left = _MADE * len(content) + _MADE_BASE
        self._done: dict[int, tuple[Any, Any]] = {}
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
        return self._fresh(found)

    def _fresh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A throw-away wrapper: a hostile BUILD may set attributes on it, not on the shared function."""

        def call(*arguments: Any) -> Any:
            made = function(*arguments)
            self._count(sys.getsizeof(made))
            return made

        return call

    def _count(self, made: int) -> None:
        """One long text, turned into bytes or arrays again and again, would fill the memory."""
        self._left -= made
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more than its length suggests")

    def read(self) -> Any:
        """The object, with arrays for what was recorded of them."""
        return self._resolve(self.load())

    def _resolve(self, value: Any) -> Any:
        """`value` with arrays, inside dictionaries, lists, tuples and `Record`s.

        `_done` holds each container (so that its id stays its own) and what became of it: a tuple that stands
        in a thousand places is turned once.
        """
        if isinstance(value, _DtypeRecord):
            return value.dtype
        if not isinstance(value, _HOLDS_ARRAYS):
            return value
        if (known := self._done.get(id(value))) is not None:
            return known[1]
        turned: Any = value
        if isinstance(value, (_ArrayRecord, np.ndarray)):
            if isinstance(value, _ArrayRecord):
                content = value.parts[0]
                self._count(len(content) if isinstance(content, str) else 0)  # bytes are made of text
                array = _array(*value.parts)
            else:
                array = value
            self._count(array.nbytes)
            turned = array.copy(order="K")  # one that can be written to
        elif isinstance(value, tuple):
            turned = tuple(self._resolve(item) for item in value)
        self._done[id(value)] = value, turned
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = self._resolve(item)
        elif isinstance(value, list):
            value[:] = [self._resolve(item) for item in value]
        elif isinstance(value, Record):
            value.state = self._resolve(value.__dict__.get("state"))
            value.arguments = self._resolve(value.__dict__.get("arguments", ()))
        return turned

    def persistent_load(self, identifier: object) -> NoReturn:
        """Refused: a persistent id asks the reader to fetch something."""
        self.refused = f"persistent id {_named(identifier)}"
        raise pickle.UnpicklingError(f"refused {self.refused}")


def load(
    path: Path,
    *,
    allow: AllowList,
    what: str,
    most_bytes: int = MOST_BYTES,
    error: type[UTNetError] = AssetError,
) -> Any:
    """Read a file that holds one pickle; see `loads`.

    Args:
        path: the file.
        allow: as of `loads`.
        what: the file's role, for messages ("HO3D annotation").
        most_bytes: longest file that is read.
        error: class of the error to raise.

    Raises:
        error: the file cannot be read or is too long; or as of `loads`.
    """
    try:
        content = read_plain(path, most_bytes)
    except (OSError, ValueError) as reason:  # ValueError: a name with a NUL
        why = (reason.strerror if isinstance(reason, OSError) else None) or str(reason)
        raise error(f"{what} {path}: cannot be read ({why}).") from reason
    return loads(content, allow=allow, where=f"{what} {path}", error=error)


def loads(content: bytes, *, allow: AllowList, where: str, error: type[UTNetError] = AssetError) -> Any:
    """Read one pickle (any protocol, text as latin-1) that may name nothing but what `allow` lists.

    Args:
        content: of a file.
        allow: (module, name) -> what stands in for it; see `MANO_GLOBALS` and `META_GLOBALS`.
        where: names it in messages.
        error: class of the error to raise.

    Returns:
        the object; containers, numbers, text, arrays and `Record`s only.

    Raises:
        error: it is truncated or no pickle, names something else, or would cost more memory or time than its
            length suggests.
    """
    reader = _Unpickler(content, allow)
    try:
        require_bounded(content)
        return reader.read()
    except FAILURES as reason:
        if reader.refused is not None:
            allowed = ", ".join(sorted({f"{module}.{name}" for module, name in allow}))
            raise error(
                f"{where}: it names {reader.refused}, which is not allowed; nothing of it was run. "
                f"Allowed are only {allowed}. Do not trust this file; get it again from its official source."
            ) from None
        raise error(
            f"{where}: not a whole pickle of arrays ({len(content)} bytes; {type(reason).__name__}: "
            f"{str(reason)[:120]}). Copy or download it again."
        ) from reason


UnpicklingError = pickle.UnpicklingError

FAILURES = (
    UnpicklingError,
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
"""Everything that a broken or hostile stream was seen to raise in the interpreter of pickles."""


def dumps(content: object) -> bytes:
    """Protocol-2 pickle of our own data: what Python 2 era readers of MANO and HO3D files understand."""
    return pickle.dumps(content, protocol=2)
