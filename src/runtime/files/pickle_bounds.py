"""What a pickle would cost, counted before anything reads it.

A pickle is a program for a machine with a stack and a memo. Few bytes of it can ask for gigabytes (a memo
index, the length of a string) or for hours (tuples that hold the same tuple twice, twenty times over: whoever
hashes the last one visits a million). Here the program is run on sizes alone, by the stack effects that
`pickletools` states, and whatever costs more than the file's length suggests is refused.
"""

from __future__ import annotations

import pickletools
from typing import NamedTuple

MOST_STEPS = 200_000
"""Instructions of one pickle. Annotations of HO3D have 150, MANO's file a few thousand."""
MOST_NESTED = 10_000
"""Values inside one tuple, with those of tuples in it. Who hashes deeper ones overflows the stack."""
_SHARED = 4
"""Values fetched from the memo again, per byte of the file."""
_MEMO_GAP = 1000
"""How far a memo index may run ahead of the number of entries; who writes pickles counts up by one."""


class Bounded(NamedTuple):
    """A pickle that costs what its length suggests."""

    end: int
    """First byte behind it."""
    names: frozenset[str]
    """What it looks up by `GLOBAL` and `INST`, as `module name`."""


_ATOM, _TUPLE, _OTHER, _KEEP, _FETCH, _MARK, _NAME, _POP, _STOP = range(9)
"""What the walk does at an instruction; of `_OTHER`, whatever is made has no tuple to walk through."""
_ROLES = (
    (_TUPLE, ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")),
    (_KEEP, ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")),
    (_FETCH, ("GET", "BINGET", "LONG_BINGET")),
    (_MARK, ("MARK",)),
    (_NAME, ("GLOBAL", "INST")),
    (_POP, ("POP",)),
    (_STOP, ("STOP",)),
)
_LENGTHS = {-2: 1, -3: 4, -4: 4, -5: 8}
"""Bytes of an argument's length, by pickletools' codes; -1 is a line."""

_Step = tuple[int, int, int, tuple[int, bool, int]]
"""Role; bytes with the argument, 0 if that differs; pickletools' code of the argument; and the effect: values
taken beside those above a mark, whether those are taken, values made."""


def _table() -> list[_Step | None]:
    """The step of each first byte."""
    table: list[_Step | None] = [None] * 256
    for op in pickletools.opcodes:
        if op.name == "DUP":
            continue  # nobody writes it, and what stands twice would have to be counted
        to_mark = pickletools.markobject in op.stack_before
        pops = 0 if op.name == "OBJ" else len(op.stack_before) - 2 * to_mark  # OBJ's class is above the mark
        pushes = len(op.stack_after)
        argument = 0 if op.arg is None else op.arg.n
        role = next((role for role, names in _ROLES if op.name in names), None)
        if role is None:
            role = _ATOM if pushes == 1 and not op.stack_before else _OTHER
        # A frame's argument is the length of what follows, which is walked anyway.
        table[ord(op.code)] = role, max(0, 1 + argument), argument, (pops, to_mark, pushes)
    return table


_STEPS = _table()


def require_bounded(content: bytes, start: int = 0, most_steps: int = MOST_STEPS) -> Bounded:
    """Walk one pickle without reading it.

    Args:
        content: bytes that hold it.
        start: where it begins.
        most_steps: instructions that it may have.

    Raises:
        ValueError, LookupError: it is cut short or no pickle, or would cost more than its length suggests.
    """
    at, length, shared = start, len(content), 0
    stack: list[int] = []
    """Of each value, how many a walk through its tuples visits."""
    marks: list[int] = []
    memo: dict[int, int] = {}
    names: set[str] = set()
    for _ in range(most_steps):
        step = _STEPS[content[at]] if at < length else None
        if step is None:
            raise ValueError("it is cut short" if at >= length else f"no instruction at byte {at:,}")
        role, size, argument, effect = step
        begin = at + 1
        at = at + size if size else _end(content, begin, argument, 1 + (role == _NAME))
        if at > length:
            raise ValueError(f"the instruction at byte {begin - 1:,} ends behind the file")
        if role == _KEEP:  # an index of one byte needs no function: most instructions have one
            memo[content[begin] if argument == 1 else _place(memo, content[begin:at], argument)] = stack[-1]
        elif role == _ATOM:
            stack.append(1)
        elif role == _FETCH:
            stack.append(memo[content[begin] if argument == 1 else _index(content[begin:at], argument)])
            shared += stack[-1]
            if shared > _SHARED * length:
                raise ValueError("it holds the same values in one another, again and again")
        elif role == _MARK:
            marks.append(len(stack))
        elif role == _STOP:
            return Bounded(at, frozenset(names))
        elif role == _POP and marks and marks[-1] == len(stack):
            marks.pop()  # it takes a mark where one is on top
        else:
            if role == _NAME:
                names.add(content[begin : at - 1].decode("utf-8", "replace").replace("\n", " "))
            _change(stack, marks, role, effect)
    raise ValueError(f"more than {most_steps:,} instructions")


def _change(stack: list[int], marks: list[int], role: int, effect: tuple[int, bool, int]) -> None:
    """Take values from the stack and put others there."""
    pops, to_mark, pushes = effect
    floor = (marks.pop() if to_mark else len(stack)) - pops
    if floor < (marks[-1] if marks else 0):
        raise ValueError("it takes more than there is")
    weight = 1 + sum(stack[floor:]) if role == _TUPLE else 1
    if weight > MOST_NESTED:
        raise ValueError(f"more than {MOST_NESTED:,} values in one tuple")
    stack[floor:] = (weight,) * pushes


def _place(memo: dict[int, int], argument: bytes, kind: int) -> int:
    """Memo index of PUT and MEMOIZE."""
    index = _index(argument, kind) if argument else len(memo)
    if index > len(memo) + _MEMO_GAP:
        raise ValueError(f"memo index {index:,} where {len(memo):,} are in use")
    return index


def _end(content: bytes, begin: int, kind: int, lines: int) -> int:
    """Where an argument of its own length ends; behind the file where it is cut short."""
    if kind == -1:
        for _ in range(lines):
            begin = content.find(b"\n", begin) + 1 or len(content) + 1
        return begin
    size = _LENGTHS[kind]
    return begin + size + int.from_bytes(content[begin : begin + size], "little")


def _index(argument: bytes, kind: int) -> int:
    """Memo index of PUT and GET: a line of digits, or bytes."""
    return int(argument) if kind == -1 else int.from_bytes(argument, "little")
