"""What a pickle would cost, counted before anything reads it.

A pickle is a program for a machine with a stack and a memo. Few bytes of it can ask for gigabytes (a memo
index, the length of a string) or for hours (tuples that hold the same tuple twice, twenty times over: whoever
hashes the last one visits a million). Here the program is run on sizes alone, by the stack effects that
`pickletools` states, and whatever costs more than the file's length suggests is refused.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from typing import Any, NamedTuple

MOST_STEPS = 200_000
"""Instructions of one pickle. Annotations of HO3D have 150, MANO's file a few thousand."""
MOST_NESTED = 10_000
"""Values inside one tuple, with those of tuples in it. Who hashes deeper ones overflows the stack."""
_SHARED = 4
"""Values fetched from the memo again, per byte of the file."""
_MEMO_GAP = 1000
"""How far a memo index may run ahead of the number of entries; who writes pickles counts up by one."""
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_KEEP = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_FETCH = frozenset({"GET", "BINGET", "LONG_BINGET"})


def _effect(op: pickletools.OpcodeInfo) -> tuple[int, bool, int]:
    """Values taken beside those above a mark, whether those are taken, values made."""
    to_mark = pickletools.markobject in op.stack_before
    pops = 0 if op.name == "OBJ" else len(op.stack_before) - 2 * to_mark  # OBJ's class is above the mark
    return pops, to_mark, len(op.stack_after)


_EFFECTS = {op.name: _effect(op) for op in pickletools.opcodes}


class Bounded(NamedTuple):
    """A pickle that costs what its length suggests."""

    end: int
    """First byte behind it."""
    names: frozenset[str]
    """What it looks up by `GLOBAL` and `INST`, as `module name`."""


def require_bounded(content: bytes | mmap.mmap, most_steps: int = MOST_STEPS) -> Bounded:
    """Walk one pickle without reading it.

    Args:
        content: bytes that begin with it, or a mapped file, in which it begins at the present position; what
            follows it is not looked at.
        most_steps: instructions that it may have.

    Raises:
        ValueError, LookupError: it is cut short or no pickle, or would cost more than its length suggests.
    """
    file: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    stack: list[int] = []
    """Of each value, how many a walk through its tuples visits."""
    marks: list[int] = []
    memo: dict[int, int] = {}
    names: set[str] = set()
    shared = 0
    for step, (op, argument, _) in enumerate(pickletools.genops(file)):
        name = op.name
        if step == most_steps:
            raise ValueError(f"more than {most_steps:,} instructions")
        if name in _KEEP:
            index = len(memo) if argument is None else int(argument)
            if index > len(memo) + _MEMO_GAP:
                raise ValueError(f"memo index {index:,} where {len(memo):,} are in use")
            memo[index] = stack[-1]
        elif name in _FETCH:
            stack.append(memo[int(argument or 0)])
            shared += stack[-1]
            if shared > _SHARED * len(content):
                raise ValueError("it holds the same values in one another, again and again")
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "DUP":
            raise ValueError("it doubles a value, which nobody writes")
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()  # it takes a mark where one is on top
        elif name != "STOP":  # after which there is no more
            if name in ("GLOBAL", "INST"):
                names.add(str(argument))
            _change(stack, marks, name)
    return Bounded(file.tell(), frozenset(names))


def _change(stack: list[int], marks: list[int], name: str) -> None:
    """Take values from the stack and put others there."""
    pops, to_mark, pushes = _EFFECTS[name]
    floor = (marks.pop() if to_mark else len(stack)) - pops
    if floor < (marks[-1] if marks else 0):
        raise ValueError("it takes more than there is")
    weight = 1 + sum(stack[floor:]) if name in _TUPLES else 1
    if weight > MOST_NESTED:
        raise ValueError(f"more than {MOST_NESTED:,} values in one tuple")
    stack[floor:] = (weight,) * pushes
