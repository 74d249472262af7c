"""The allow-list unpickler: arrays come back whole, nothing else runs."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AssetError, DataError
from src.runtime.files.safe_pickle import MANO_GLOBALS, META_GLOBALS, load, loads


def _read(content: bytes, **options: Any) -> Any:
    return loads(content, allow=META_GLOBALS, where="HO3D annotation x", **options)


META = {
    "camMat": np.array([[614.627, 0, 320.262], [0, 614.101, 238.469], [0, 0, 1]]),
    "handPose": np.arange(48, dtype=np.float32),
    "handJoints3D": np.asfortranarray(np.arange(63.0).reshape(21, 3)),
    "handBoundingBox": [1, 2, np.int64(3), np.float32(4)],
    "objName": "003_cracker_box",
    "camIDList": np.array(["0", "12"]),
    "big_endian": np.arange(5, dtype=">i2"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "scalar_array": np.array(5.0),
    "nothing": None,
    "nested": ({"a": [np.ones(2)]},),
}


@pytest.mark.parametrize("protocol", range(6))
def test_annotations_come_back_whole(protocol: int) -> None:
    """A label is what was written, whatever Python wrote it."""
    read = _read(pickle.dumps(META, protocol=protocol))
    assert list(read) == list(META)
    for key in (
        "camMat",
        "handPose",
        "handJoints3D",
        "camIDList",
        "big_endian",
        "flags",
        "empty",
        "scalar_array",
    ):
        np.testing.assert_array_equal(read[key], META[key])
        assert read[key].dtype == META[key].dtype, key
        assert read[key].flags.writeable
    assert read["handBoundingBox"] == META["handBoundingBox"]
    np.testing.assert_array_equal(read["nested"][0]["a"][0], np.ones(2))


def test_old_numpy_names() -> None:
    """HO3D's files were written by NumPy 1: the old module name is the same array."""
    content = pickle.dumps(META["camMat"], protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy.core.multiarray" in content
    np.testing.assert_array_equal(_read(content), META["camMat"])


class _Call:
    """Calls `function(*arguments)` when an ordinary reader unpickles it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("allow", [MANO_GLOBALS, META_GLOBALS])
@pytest.mark.parametrize("protocol", range(6))
def test_hostile_annotation_runs_nothing(tmp_path: Path, allow: Any, protocol: int) -> None:
    """Opening somebody's data set cannot run a command; the message names the file and the function."""
    trace, path = tmp_path / "it-ran", tmp_path / "0007.pkl"
    path.write_bytes(pickle.dumps({"camMat": _Call(os.system, f"touch {trace}")}, protocol=protocol))
    with pytest.raises(DataError, match=r"HO3D annotation .*0007\.pkl.*(posix|nt)\.system"):
        load(path, allow=allow, what="HO3D annotation", error=DataError)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file is harmless: this test could not fail"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (eval, ("1",)),
        (getattr, (1, "real")),
        (collections.OrderedDict, ()),
        (np.load, ("x",)),
        (bytearray, (10,)),
    ],
)
def test_any_other_name_is_refused(function: Any, arguments: tuple[Any, ...]) -> None:
    """Harmless looking names are refused as well: the list is the list."""
    with pytest.raises(AssetError, match=function.__name__):
        _read(pickle.dumps(_Call(function, *arguments), protocol=4))


def test_dotted_names_do_not_walk_into_modules() -> None:
    """`numpy` is on the list only as `numpy.ndarray` and `numpy.dtype`, not as a way to all it imports."""
    content = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(AssetError, match=r"numpy\.ndarray\.tofile"):
        _read(content)


def test_persistent_ids_are_refused() -> None:
    """A persistent id asks the reader to fetch something: refused."""
    with pytest.raises(AssetError, match="persistent id"):
        _read(b"Phttp://example.org/x\n.")


def _state(value: np.ndarray) -> Any:
    return value.__reduce__()


@pytest.mark.parametrize(
    "arguments",
    [
        ("O",),
        ("O8", False, True),
        ("V8",),
        ([("a", "f8")],),
        ("f8,O",),
        (("f8", (2,)),),
    ],
)
def test_odd_dtypes_are_refused(arguments: tuple[Any, ...]) -> None:
    """Bytes that numpy would take for object pointers crash or worse: only numbers and text are read."""
    with pytest.raises(AssetError):
        _read(pickle.dumps(_Call(np.dtype, *arguments), protocol=2))


def test_forged_dtype_state_is_refused() -> None:
    """A plain dtype given fields or flags by BUILD would make numpy read outside the array."""

    class Forged:
        def __reduce__(self) -> Any:
            fields = {"a": (np.dtype("f8"), 4096)}
            return np.dtype, ("f8", False, True), (3, "|", None, ("a",), fields, 8, 1, 63)

    with pytest.raises(AssetError, match="fields"):
        _read(pickle.dumps(Forged(), protocol=2))


@pytest.mark.parametrize("shape", [(10**12,), (4, 4), (-3,), (2.0,), "text"])
def test_forged_array_shapes_are_refused(shape: Any) -> None:
    """A shape that does not fit its bytes neither allocates a terabyte nor reads beyond the file."""
    function, first, (version, _, dtype, order, content) = np.arange(3.0).__reduce__()

    class Forged:
        def __reduce__(self) -> Any:
            return function, first, (version, shape, dtype, order, content)

    with pytest.raises(AssetError):
        _read(pickle.dumps(Forged(), protocol=2))


def test_object_arrays_are_refused() -> None:
    """An array of Python objects is not a label."""
    with pytest.raises(AssetError, match="numbers and text"):
        _read(pickle.dumps(np.array([None, {}], dtype=object)))


def test_build_cannot_change_shared_functions() -> None:
    """One hostile file cannot change how the next file is read."""

    class Build:
        def __reduce__(self) -> Any:
            return np.arange(1.0).__reduce__()[0], (), {"__call__": 1}

    before = {key: dict(getattr(value, "__dict__", {})) for key, value in MANO_GLOBALS.items()}
    content = b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb."
    pickletools.dis(content, out=io.StringIO())
    _read(content)
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        with pytest.raises(AssetError):
            _read(b"\x80\x02" + name + b"}X\x01\x00\x00\x00aK\x01sb.")
    assert {key: dict(getattr(value, "__dict__", {})) for key, value in MANO_GLOBALS.items()} == before


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    """One line that names the file, in the class of error the caller wants."""
    with pytest.raises(DataError, match=r"annotation .*none\.pkl.*cannot be read"):
        load(tmp_path / "none.pkl", allow=META_GLOBALS, what="annotation", error=DataError)
    whole = pickle.dumps(META, protocol=2)
    for number, content in enumerate(
        (b"", whole[:-1], whole[: len(whole) // 2], b"\xff\xd8\xff\xe0 jpg", b"{}")
    ):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"annotation .*{number}\.pkl: not a whole pickle"):
            load(path, allow=META_GLOBALS, what="annotation", error=DataError)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_never_escape_the_error(data: st.DataObject) -> None:
    """A flipped byte on disk gives an annotation or one clear error, never another exception."""
    content = bytearray(pickle.dumps(META, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AssetError):
        _read(bytes(content))
