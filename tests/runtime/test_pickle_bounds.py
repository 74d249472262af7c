"""What a pickle costs is known before it is read, and what is harmless passes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.runtime.files.pickle_bounds import MOST_NESTED, require_bounded

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.frozensets(_LEAVES, max_size=4)
    ),
    max_leaves=40,
)


@settings(max_examples=100, deadline=None)
@given(_VALUES, st.integers(0, 5))
def test_every_plain_pickle_passes_to_its_last_byte(value: object, protocol: int) -> None:
    """A label that Python wrote is never taken for an attack; what follows it is not its own."""
    content = pickle.dumps(value, protocol=protocol)
    assert require_bounded(content + b"more").end == len(content)


def test_names_and_arrays() -> None:
    """Arrays of both protocols, and what they look up by name."""
    content = pickle.dumps({"a": np.arange(3), "b": np.float32(1)}, protocol=2)
    found = require_bounded(content)
    assert found.end == len(content)
    assert {name.split()[-1] for name in found.names} == {
        "_reconstruct",
        "ndarray",
        "dtype",
        "scalar",
        "encode",
    }


def _shared(levels: int) -> bytes:
    """A tuple of two that holds the one before twice."""
    return b"\x80\x02)" + b"".join(b"q%c0h%ch%c\x86" % (k, k, k) for k in range(levels)) + b"."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_shared(20), "again and again"),
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
        (b"\xff", "no instruction at byte 0"),
        (b"N2.", "no instruction at byte 1"),
    ],
)
def test_what_costs_more_than_its_length_is_refused(content: bytes, why: str) -> None:
    """400 bytes hung a reader, ten cost it a gigabyte."""
    with pytest.raises((ValueError, LookupError), match=why):
        require_bounded(content)


def test_sharing_is_counted_not_refused() -> None:
    """A shape that a hundred arrays share is fetched a hundred times."""
    shape = (21, 3)
    assert require_bounded(pickle.dumps([shape] * 100, protocol=2)).end
    assert require_bounded(_shared(4)).end
