"""Pickles of other people: arrays come back whole, nothing else runs, nothing costs more than its length."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AssetError, DataError
from src.runtime.files.pickle_bounds import MOST_NESTED, require_bounded
from src.runtime.files.safe_pickle import MANO_GLOBALS, META_GLOBALS, load, loads


def read(content: bytes) -> Any:
    return loads(content, allow=META_GLOBALS, where="HO3D annotation x")


META = {
    "camMat": np.array([[614.627, 0, 320.262], [0, 614.101, 238.469], [0, 0, 1]]),
    "handPose": np.arange(48, dtype=np.float32),
    "handJoints3D": np.asfortranarray(np.arange(63.0).reshape(21, 3)),
    "camIDList": np.array(["0", "12"]),
    "big_endian": np.arange(5, dtype=">i2"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "scalar_array": np.array(5.0),
    "handBoundingBox": [1, 2, np.int64(3), np.float32(4)],
    "objName": "003_cracker_box",
    "nothing": None,
    "nested": ({"a": [np.ones(2)]},),
}


@pytest.mark.parametrize("protocol", range(6))
def test_annotations_come_back_whole(protocol: int) -> None:
    """A label is what was written, whatever Python and NumPy wrote it (HO3D's are of NumPy 1)."""
    content = pickle.dumps(META, protocol=protocol)
    for written in (
        (content, content.replace(b"numpy._core.", b"numpy.core.")) if protocol < 4 else (content,)
    ):
        found = read(written)
        assert list(found) == list(META)
        for key, value in META.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(found[key], value)
                assert found[key].dtype == value.dtype, key
                assert found[key].flags.writeable
            elif key != "nested":
                assert found[key] == value
        np.testing.assert_array_equal(found["nested"][0]["a"][0], np.ones(2))


class Call:
    """Calls `function(*arguments)` when an ordinary reader unpickles it, and gives the result a state."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("allow", [MANO_GLOBALS, META_GLOBALS])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_annotation_runs_nothing(tmp_path: Path, allow: Any, protocol: int) -> None:
    """Opening somebody's data set cannot run a command; the message names the file and the function."""
    trace, path = tmp_path / "it-ran", tmp_path / "0007.pkl"
    path.write_bytes(pickle.dumps({"camMat": Call(os.system, f"touch {trace}")}, protocol=protocol))
    with pytest.raises(DataError, match=r"HO3D annotation .*0007\.pkl.*(posix|nt)\.system"):
        load(path, allow=allow, what="HO3D annotation", error=DataError)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file is harmless: this test could not fail"


def forged(shape: Any) -> Call:
    """An array of another shape than its bytes have."""
    function, first, (version, _, dtype, order, content) = np.arange(3.0).__reduce__()
    return Call(function, *first, state=(version, shape, dtype, order, content))


FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("f8"), 4096)}, 8, 1, 63)
FILLED = pickle.dumps(np.zeros(1), protocol=5)[:-1] + b"K\x00K\x01s."
"""An array of which the file sets an element: by lists of places it could ask for any memory."""
REFUSED: list[tuple[Any, str]] = [
    (Call(eval, "1"), "eval"),
    (Call(getattr, 1, "real"), "getattr"),
    (Call(collections.OrderedDict), "OrderedDict"),
    (Call(np.load, "x"), "load"),
    (Call(bytearray, 10), "bytearray"),
    # dotted names would walk from what is on the list to all it imports
    (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"numpy\.ndarray\.tofile"),
    (b"Phttp://example.org/x\n.", "persistent id"),
    # what numpy would take for pointers, or read outside the array
    *(
        (Call(np.dtype, *of), "annotation")
        for of in [("O",), ("O8", False, True), ("V8",), ([("a", "f8")],), ("f8,O",)]
    ),
    (Call(np.dtype, "f8", False, True, state=FIELDS), "fields"),
    (np.array([None, {}], dtype=object), "numbers and text"),
    *((forged(shape), "annotation") for shape in [(10**12,), (4, 4), (-3,), (2.0,), "text"]),
    (FILLED, "read-only"),
    # a state for what is shared between files
    (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "annotation"),
    (b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "annotation"),
]


@pytest.mark.parametrize(("content", "why"), REFUSED, ids=range(len(REFUSED)))
def test_whatever_is_not_plain_arrays_is_refused(content: Any, why: str) -> None:
    """Harmless looking names are refused as well; a forged shape neither allocates nor reads beyond it."""
    with pytest.raises(AssetError, match=why):
        read(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))


def test_one_file_cannot_change_how_the_next_is_read() -> None:
    """A state given to a function becomes its attributes."""
    before = {key: dict(getattr(value, "__dict__", {})) for key, value in MANO_GLOBALS.items()}
    read(b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.")
    assert {key: dict(getattr(value, "__dict__", {})) for key, value in MANO_GLOBALS.items()} == before


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    """One line that names the file, in the class of error the caller wants."""
    path, whole = tmp_path / "a.pkl", pickle.dumps(META, protocol=2)
    with pytest.raises(DataError, match=r"annotation .*a\.pkl: cannot be read \(No such file"):
        load(path, allow=META_GLOBALS, what="annotation", error=DataError)
    for content in (b"", whole[:-1], whole[: len(whole) // 2], b"\xff\xd8\xff\xe0 jpg", b"{}"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"annotation .*a\.pkl: not a whole pickle"):
            load(path, allow=META_GLOBALS, what="annotation", error=DataError)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_never_escape_the_error(data: st.DataObject) -> None:
    """A flipped byte on disk gives an annotation or one clear error, never another exception."""
    content = bytearray(pickle.dumps(META, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AssetError):
        read(bytes(content))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.frozensets(LEAVES, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_the_bounds_let_every_plain_pickle_pass_to_its_last_byte(value: object, protocol: int) -> None:
    """A label that Python wrote is never taken for an attack; what follows it is not its own."""
    content = pickle.dumps(value, protocol=protocol)
    assert require_bounded(content + b"more").end == len(content)


def shared(levels: int) -> bytes:
    """A tuple of two that holds the one before twice."""
    return b"\x80\x02)" + b"".join(b"q%c0h%ch%c\x86" % (k, k, k) for k in range(levels)) + b"."


def test_the_bounds_name_what_is_looked_up_and_count_what_is_shared() -> None:
    """A shape that a hundred arrays share is fetched a hundred times."""
    found = require_bounded(pickle.dumps({"a": np.arange(3), "b": [(21, 3)] * 100}, protocol=2))
    assert {name.split()[-1] for name in found.names} == {"_reconstruct", "ndarray", "dtype", "encode"}
    assert require_bounded(shared(4)).end == len(shared(4))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (shared(20), "again and again"),
        (b"\x80\x02)" + b"\x85" * (MOST_NESTED + 1) + b".", "in one tuple"),
        (b"\x80\x02(" + b"K\x01" * (MOST_NESTED + 1) + b"t.", "in one tuple"),
        (b"}r\xff\xff\xff\x05.", "memo index 100,663,295 where 0 are in use"),
        (b"}p99999999\n.", "memo index 99,999,999"),
        (b"X\xff\xff\xff\x7fabc.", "ends behind the file"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "ends behind the file"),
        (b"I123", "ends behind the file"),
        (b"(" * 200_001, "more than 200,000 instructions"),
        (b"t.", "pop from empty list"),
        (b"\x85.", "takes more than there is"),
        (b"h\x05.", "5"),
        (b"N", "cut short"),
        (b"N2.", "no instruction at byte 1"),
    ],
    ids=range(14),
)
def test_what_costs_more_than_its_length_is_refused(content: bytes, why: str) -> None:
    """400 bytes hung a reader, ten cost it a gigabyte."""
    with pytest.raises((ValueError, LookupError), match=why):
        require_bounded(content)
