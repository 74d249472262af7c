"""YAML text -> keys and plain values, numbers and words as YAML 1.2 reads them (its core schema).

In YAML 1.1, which PyYAML reads, `010` is 8, `12:30` is 750, `1e3` is text and `on` is true. Here `010` is 10,
`1e3` a number, and `12:30`, `on`, `no` are text, which a field of another type then refuses by name. Only
sections, lists and single values are read; other tags, which name types of a program, are not.
Source: YAML 1.2.2, section 10.3.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

MOST_BYTES = 1 << 16
"""Longest file that is read; the longest of this repository has 4 kB."""
_MOST_VALUES = 2000
"""Keys and values of a file. A few aliases of aliases stand for more than a memory holds."""
_MOST_DEPTH = 20


class YamlError(Exception):
    """Text that is not read, and why."""


class Entry(NamedTuple):
    """A key of a file."""

    key: str
    """Dotted."""
    line: int
    value: Any
    rule: str = ""
    """Which rule it breaks; empty: none."""


_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], str, Callable[[str], Any]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), "~nN\0", lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF", lambda text: text.lower() == "true"),
    "int": (
        re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}"),
        "-+0123456789",
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        "-+.0123456789",
        lambda text: float(text.replace(".", "", 1) if text.lstrip("-+.")[:1] in "iInN" else text),
    ),
}
"""By tag: how it is spelled, how it begins (a NUL: or nothing), and what it is."""


class _Loader(yaml.SafeLoader):
    """Without YAML 1.1's numbers and words."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way)


class CoreDumper(yaml.SafeDumper):
    """Quotes text that either YAML would read as something else."""


for _name, (_pattern, _begins, _) in _SCALARS.items():
    for _class in (_Loader, CoreDumper):
        _begin = ["" if c == "\0" else c for c in _begins]
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), _begin)


def read_entries(text: str) -> list[Entry]:
    """Every key of a file of nested sections, in order.

    Raises:
        YamlError: it is no YAML, no mapping of sections, or larger or deeper than a configuration is.
    """
    root = _compose(text)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise YamlError("must be a mapping of sections")
    entries: list[Entry] = []
    _walk(root, "", entries, _Budget())
    return entries


def read_value(text: str) -> Any:
    """One value, as a command line gives it.

    Raises:
        YamlError: it is none.
    """
    node = _compose(text)
    return None if node is None else _value(node, _Budget())


class _Budget:
    """Counts values."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def take(self, depth: int) -> None:
        """Count one."""
        self._left -= 1
        if self._left < 0 or depth > _MOST_DEPTH:
            raise YamlError(
                f"holds more than {_MOST_VALUES:,} values, aliases counted where they stand, or more than "
                f"{_MOST_DEPTH} inside one another"
            )


def _compose(text: str) -> yaml.Node | None:
    """The text's nodes; YamlError: it is no YAML."""
    if text.count("[") + text.count("{") > _MOST_VALUES:  # PyYAML's time grows with the square of these
        raise YamlError(f"holds more than {_MOST_VALUES:,} values")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise YamlError(
            f"holds the character {error.character:#x}, which no text has: save it as UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        tab = ". Indent with spaces, not with tabs" if "\\t" in (error.problem or "") else ""
        raise YamlError(f"not valid YAML: {where}{error.problem or error.context}{tab}") from None
    except RecursionError:
        raise YamlError(f"holds more than {_MOST_DEPTH} values inside one another") from None
    except (ValueError, OverflowError):
        raise YamlError("not valid YAML: a number or an escape in it is out of range") from None
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from None


def _walk(node: yaml.MappingNode, prefix: str, entries: list[Entry], budget: _Budget, depth: int = 0) -> None:
    """Add the keys of a section."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        budget.take(depth)
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            entries.append(Entry(prefix.rstrip("."), line, None, "a list or a section is no key"))
            continue
        key = f"{prefix}{key_node.value}"
        if key in seen:
            entries.append(Entry(key, line, None, f"written twice (first on line {seen[key]}), keep one"))
            continue
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _walk(value_node, f"{key}.", entries, budget, depth + 1)
            continue
        try:
            entries.append(Entry(key, line, _value(value_node, budget, depth)))
        except _NoValueError as reason:
            entries.append(Entry(key, line, None, str(reason)))


class _NoValueError(YamlError):
    """A value of another kind than a configuration has."""


def _value(node: yaml.Node, budget: _Budget, depth: int = 0) -> Any:
    """A single value, or a list."""
    budget.take(depth)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_value(item, budget, depth + 1) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        if node.tag == f"{_TAG}str":
            return node.value
        pattern, _, convert = _SCALARS.get(node.tag.removeprefix(_TAG), (None, "", str))
        if pattern is not None and pattern.fullmatch(node.value):
            return convert(node.value)
    raise _NoValueError(f"must be a single value or a list of such, got {node.tag}")
