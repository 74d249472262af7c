"""Strict YAML and dotted overrides -> `RunConfig`; every fault of all sources is reported at once.

A YAML file may name a parent with `base: other.yaml` (relative to itself), which may have one too. Each leaf
remembers where it was written, so an error names the file and line, the key and the rule that it breaks.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import os
import reprlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import yaml

from src.config import COUNT_OR_SHARE, RunConfig, count_or_share
from src.config_file.replaced import REPLACED, TRAINING_ONLY
from src.config_file.yaml_text import MOST_BYTES, CoreDumper, YamlError, read_entries, read_value
from src.errors import ConfigError

WRITTEN_TO = ("dataset.cache", "dataset.index_dir", "logging.runs_dir")
"""Keys that say where something is written.

The command line, a file that it names or the defaults decide them, never a checkpoint: whoever sends one
would choose where others write.
"""
MAX_FILES = 16
"""Longest chain of files by `base:`."""
_FAULTS_SHOWN = 20
"""Of a message that names all faults at once."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


class _Key(NamedTuple):
    """A key of the configuration."""

    hint: Any
    metadata: Mapping[str, Any]


def _keys_of(cls: type, prefix: str) -> dict[str, _Key]:
    """The fields of a section, or of the whole, by dotted key."""
    hints = typing.get_type_hints(cls)
    return {f"{prefix}{f.name}": _Key(hints[f.name], f.metadata) for f in dataclasses.fields(cls)}


_WHOLE = _keys_of(RunConfig, "")
_SECTIONS: dict[str, type] = {
    name: cast(type, key.hint) for name, key in _WHOLE.items() if dataclasses.is_dataclass(key.hint)
}
_FIELDS = {"": _WHOLE, **{name: _keys_of(cls, f"{name}.") for name, cls in _SECTIONS.items()}}
"""Section -> its keys; under the empty name those of the whole, the sections among them."""


@dataclass(frozen=True)
class _Leaf:
    """A value and where it stands."""

    value: Any
    origin: str


class _Faults:
    """Collects messages, to be raised together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, origin: str, key: str, rule: str) -> None:
        self.lines.append(f"{origin}: {key}: {rule}" if key else f"{origin}: {rule}")

    def check(self) -> None:
        if self.lines:
            more = len(self.lines) - _FAULTS_SHOWN
            rest = [f"and {more:,} faults more"] if more > 0 else []
            raise ConfigError("; ".join(self.lines[:_FAULTS_SHOWN] + rest))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and its base, apply `section.key=value` overrides, check everything.

    Args:
        path: YAML file.
        overrides: from the command line, applied in order; values are YAML (`null`, `[256, 192]`, `1e-4`).

    Raises:
        ConfigError: all faults in one message: unreadable file, duplicate or unknown key (with the nearest
            known one), wrong type, value out of range.
    """
    faults = _Faults()
    leaves = _read_with_base(Path(path), faults)
    _override(leaves, overrides, faults)
    return _checked(leaves, faults)


def config_from_dict(tree: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `config_to_dict` wrote into a checkpoint, checked like a file.

    The keys of WRITTEN_TO are not taken from `tree`: they have their defaults, or what `overrides` say.

    Args:
        tree: what was written, by this version or by one whose keys have been replaced.
        origin: names it in messages.
        overrides: as for `load_config`.

    Raises:
        ConfigError: as `load_config`, naming `origin`.
    """
    faults = _Faults()
    leaves: dict[str, _Leaf] = {}

    for name, value in tree.items():  # sections and keys; what lies deeper is no value of any key
        if isinstance(value, Mapping):
            leaves |= {f"{name}.{key}": _Leaf(inner, origin) for key, inner in value.items()}
        else:
            leaves[f"{name}"] = _Leaf(value, origin)
    for key in WRITTEN_TO:
        leaves.pop(key, None)
    for key in sorted(REPLACED.keys() & leaves.keys()):
        leaf, replaced = leaves.pop(key), REPLACED[key]
        if replaced.by is not None:
            leaves.setdefault(replaced.by, leaf)
        elif replaced.was != TRAINING_ONLY and leaf.value != replaced.was:
            faults.add(origin, key, f"{replaced.sentence}, got {_shown(leaf.value)}")
    _override(leaves, overrides, faults)
    return _checked(leaves, faults)


def config_to_dict(config: Any) -> Any:
    """Plain tree of a configuration; `config_from_dict` reads it back, all but the keys of WRITTEN_TO."""
    if dataclasses.is_dataclass(config):
        return {f.name: config_to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, list | tuple):
        return [config_to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def config_to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.dump(config_to_dict(config), Dumper=CoreDumper, sort_keys=False, allow_unicode=True)


def _override(leaves: dict[str, _Leaf], overrides: Sequence[str], faults: _Faults) -> None:
    """Put `section.key=value` settings over the leaves; what they mean is checked later."""
    given: dict[str, str] = {}
    for text in overrides:
        name, sign, value = text.partition("=")
        key = name.strip()
        if not sign or not key:
            faults.add("command line", "", f"{text!r} is not of the form section.key=value")
            continue
        if key in given:
            faults.add("command line", key, f"given twice ({given[key]!r} and {text!r}), keep one")
            continue
        given[key] = text
        if key in _SECTIONS:
            faults.add("command line", key, f"is a section: set its keys, as in {key}.KEY=VALUE")
            continue
        try:
            leaves[key] = _Leaf(_given(value), "command line")
        except YamlError:
            faults.add("command line", key, f"{_shown(value)} is not a YAML value")


def _given(value: str) -> Any:
    """A value of the command line. What is no text, a name in another encoding, stands for itself."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value
    return read_value(value)


def _shown(value: Any) -> str:
    """A value for a message; long and deep ones are cut short."""
    return _SHORT.repr(value)


def _checked(leaves: Mapping[str, _Leaf], faults: _Faults) -> RunConfig:
    """The whole configuration, each key by itself and then the rules between keys."""
    values: dict[str, dict[str, Any]] = {name: {} for name in _FIELDS}
    for key, leaf in leaves.items():
        if key in _SECTIONS and leaf.value is None:  # a section of which nothing is set
            continue
        section = _section_of(key)
        known = None if key in _SECTIONS else _FIELDS[section].get(key)
        problem, value = _value(known, leaf.value) if known else (_no_key(key, section), None)
        if problem:
            got = f", got {_shown(leaf.value)}" if known or key in _SECTIONS else ""
            faults.add(leaf.origin, key, problem + got)
        else:
            values[section][key.rpartition(".")[2]] = value
    faults.check()
    sections = {name: cls(**values[name]) for name, cls in _SECTIONS.items()}
    config = RunConfig(**values[""], **sections)
    _check_relations(config, leaves, faults)
    faults.check()
    return config


def _section_of(key: str) -> str:
    """The section that a dotted key lies in; empty: in none."""
    section = key.partition(".")[0]
    return section if section != key and section in _SECTIONS else ""


def _no_key(key: str, section: str) -> str:
    """Why something is no key, and what its writer may have meant."""
    if key in _SECTIONS:
        return "is a section of keys"
    if key in REPLACED:
        return REPLACED[key].sentence + ("" if REPLACED[key].by else ". Leave it out")
    prefix = f"{section}." if section else ""
    name, dot, rest = key[len(prefix) :].partition(".")
    fields = [field.removeprefix(prefix) for field in _FIELDS[section]]
    if name in fields:
        return f"{prefix}{name} is a value, not a section"
    near = [f"{prefix}{other}{dot}{rest}" for other in difflib.get_close_matches(name, fields, n=1)]
    near += [f"{other}.{name}" for other, keys in _FIELDS.items() if f"{other}.{name}" in keys]
    return (
        f"unknown key, did you mean {near[0]}?" if near else f"unknown key, known here: {', '.join(fields)}"
    )


def _read_with_base(path: Path, faults: _Faults) -> dict[str, _Leaf]:
    """Leaves of `path` over those of its base, of whose base, and so on."""
    leaves: dict[str, _Leaf] = {}
    chain, asked_by = [path], ""
    while True:
        found = _read(chain[-1], faults, asked_by)
        base = found.pop("base", None)
        leaves = {**found, **leaves}
        if base is None:
            return leaves
        if not isinstance(base.value, str) or not base.value or "\0" in base.value:
            faults.add(base.origin, "base", f"must name one YAML file, got {_shown(base.value)}")
            return leaves
        parent = chain[-1].parent / base.value
        named = " -> ".join(map(str, [*chain, parent]))
        if os.path.realpath(parent) in map(os.path.realpath, chain):
            faults.add(base.origin, "base", f"the files name each other in a circle: {named}")
            return leaves
        if len(chain) == MAX_FILES:
            faults.add(base.origin, "base", f"more than {MAX_FILES} files in a row: {named}")
            return leaves
        chain.append(parent)
        asked_by = f"base in {base.origin}" + (f", by {named}" if len(chain) > 2 else "")


def _read(path: Path, faults: _Faults, asked_by: str) -> dict[str, _Leaf]:
    """Leaves of one file by dotted key; problems are noted and the rest is still read."""
    leaves: dict[str, _Leaf] = {}
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise YamlError(f"is longer than {MOST_BYTES:,} bytes, which no configuration is")
        entries = read_entries(content.decode("utf-8-sig"))
    except (OSError, ValueError, YamlError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        remedy = (
            f"It is the {asked_by}" if asked_by else "Name a file of config/, or a run folder's config.yaml"
        )
        if isinstance(error, UnicodeDecodeError):
            reason = f"is not UTF-8 text (byte {error.start:,}): save it as UTF-8"
        elif isinstance(error, OSError | ValueError):
            reason += f". {remedy}"
        faults.add(str(path), "", reason)
        return leaves
    for entry in entries:
        if entry.rule:
            faults.add(f"{path}:{entry.line}", entry.key, entry.rule)
        else:
            leaves[entry.key] = _Leaf(entry.value, f"{path}:{entry.line}")
    return leaves


def _value(key: _Key, value: Any) -> tuple[str, Any]:
    """(problem or '', value of a key): its type, and the rule that its metadata states."""
    if key.metadata.get("count_or_share"):
        return ("", value) if count_or_share(value, 0) is not None else (f"must be {COUNT_OR_SHARE}", None)
    problem, value = _coerce(key.hint, value)
    return problem or _out_of_range(key.metadata, value), value


def _coerce(hint: Any, value: Any) -> tuple[str, Any]:
    """(problem or '', value of the type that `hint` asks for)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return "", None
        (inner,) = [a for a in args if a is not type(None)]
        return _coerce(inner, value)
    if origin is Literal:
        return ("", value) if value in args else (f"must be one of {', '.join(map(str, args))}", None)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(args):
            return f"must be a list of {len(args)} values", None
        pairs = [_coerce(a, v) for a, v in zip(args, value, strict=True)]
        problem = next((p for p, _ in pairs if p), "")
        return problem, tuple(v for _, v in pairs)
    if hint is float:
        return _as_float(value)
    if hint is Path:
        return _as_path(value)
    # bool is a subclass of int: compare exactly.
    if type(value) is hint:
        return ("must have at most 63 bits" if hint is int and abs(value) >> 63 else ""), value
    names = {int: "a whole number", bool: "true or false", str: "text"}
    return f"must be {names.get(hint, hint)}", None


def _as_float(value: Any) -> tuple[str, Any]:
    """A finite float."""
    if type(value) not in (int, float):
        return "must be a number", None
    finite = abs(value) <= sys.float_info.max  # false for nan, and defined for any whole number
    return ("", float(value)) if finite else ("must be a finite number", None)


def _as_path(value: Any) -> tuple[str, Any]:
    """A path, `~` resolved."""
    if not isinstance(value, str) or not value or "\0" in value:
        return "must be a path", None
    try:
        return "", Path(value).expanduser()
    except RuntimeError:
        return "begins with the home folder of a user that this machine does not know", None


def _out_of_range(bounds: Mapping[str, Any], value: Any) -> str:
    """The rule that `value`, or one of its elements, breaks, or ''."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for element in value if isinstance(value, tuple) else (value,):
        for name, word in words.items():
            bound = bounds.get(name)
            if None not in (element, bound) and not getattr(operator, name)(element, bound):
                return f"must be {word} {bound:g}"
    return ""


def _check_relations(config: RunConfig, leaves: Mapping[str, _Leaf], faults: _Faults) -> None:
    """Rules that tie several values together, and those of one key."""

    def check(key: str, holds: bool, rule: str) -> None:
        if not holds:
            faults.add(leaves[key].origin if key in leaves else "defaults", key, rule)

    size, by, name = config.model.image_size, config.split.by, config.name
    multiples = f"both sides must be multiples of 16, got {list(size)}"
    check("model.image_size", not any(side % 16 for side in size), multiples)
    wholes = f"names whole sequences, but split.by is {by}: set it to sequence"
    check("split.held_out_list", config.split.held_out_list is None or by == "sequence", wholes)
    taught = "turns hands upright, as augmentation turns training crops: enable that, or set this to false"
    check("model.second_look", not config.model.second_look or config.augmentation.enabled, taught)
    plain = name and not name.startswith(".") and all(c.isalnum() or c in "-_." for c in name)
    check("name", bool(plain), f"must be letters, digits, '-', '_' or '.', got {name!r}")
