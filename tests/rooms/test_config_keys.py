"""Every configuration key is read by the program: a key that nobody reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing

from src import config as config_module
from src.config import RunConfig
from src.config_file import load_config
from src.config_file.yaml_text import read_entries
from tests.rooms.sources import ROOT, source_files, tree

SECTIONS = {
    name: hint for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)
}
MOST_KEYS = 60
CLASS_SECTION = {hint.__name__: name for name, hint in SECTIONS.items()} | {"RunConfig": ""}


def section_of(node: ast.expr, names: dict[str, str]) -> str | None:
    """Section that an expression holds ('' = the whole configuration), None if it is something else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        whole = section_of(node.value, names)
        if whole == "" and node.attr in SECTIONS:
            return node.attr
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return names.get(f"self.{node.attr}")
        if node.attr == "config" and whole is None:  # run.config, trainer.config: the whole
            return ""
    return None


def reads(parsed: ast.Module) -> set[tuple[str, str]]:
    """(section, key) pairs that a file reads through a configuration whose type it states."""
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST, names: dict[str, str]) -> None:
        if isinstance(node, ast.ClassDef):
            names = dict(names)
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef | ast.Lambda):
                    local = with_arguments(inner, names)
                    for statement in ast.walk(inner):
                        if isinstance(statement, ast.Assign):
                            for target in statement.targets:
                                section = section_of(statement.value, local)
                                on_self = (
                                    isinstance(target, ast.Attribute)
                                    and getattr(target.value, "id", "") == "self"
                                )
                                if on_self and section is not None:
                                    names[f"self.{target.attr}"] = section
        if isinstance(node, ast.FunctionDef):
            names = with_arguments(node, names)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Assign) and len(inner.targets) == 1:
                    assign(inner.targets[0], inner.value, names)
        if isinstance(node, ast.Attribute):
            section = section_of(node.value, names)
            if section is not None:
                found.add((section, node.attr))
        for child in ast.iter_child_nodes(node):
            visit(child, names)

    def assign(target: ast.expr, value: ast.expr, names: dict[str, str]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for t, v in zip(target.elts, value.elts, strict=False):
                assign(t, v, names)
        elif isinstance(target, ast.Name) and (section := section_of(value, names)) is not None:
            names[target.id] = section

    def with_arguments(node: ast.FunctionDef | ast.Lambda, names: dict[str, str]) -> dict[str, str]:
        names = dict(names)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            if kind in CLASS_SECTION:
                names[argument.arg] = CLASS_SECTION[kind]
        return names

    visit(parsed, {})
    return found


def all_keys() -> set[tuple[str, str]]:
    """Every (section, key) of RunConfig."""
    keys = {("", f.name) for f in dataclasses.fields(RunConfig) if f.name not in SECTIONS}
    return keys | {(name, f.name) for name, cls in SECTIONS.items() for f in dataclasses.fields(cls)}


def test_every_key_is_read() -> None:
    """A learning rate or warm-up that is written in the YAML and ignored trains something else than was
    asked.
    """
    skip = {"config.py", "config_file"}
    seen = set().union(*(reads(tree(p)) for p in source_files() if skip.isdisjoint(p.parts)))
    dead = sorted(".".join(filter(None, key)) for key in all_keys() - seen)
    assert not dead, f"keys that no code reads: {dead}"


def test_the_search_for_dead_keys_can_fail() -> None:
    """Only reads through a configuration count, not any attribute of the same name."""
    code = ast.parse(
        "def f(config: RunConfig, other: X):\n    a = config.loss\n    return a.betas + other.prior"
    )
    assert reads(code) >= {("loss", "betas")}
    assert ("loss", "prior") not in reads(code)


def test_every_key_says_unit_and_range() -> None:
    """A number without a unit is how sums of millimetres met weights meant for metres."""
    parsed = ast.parse((ROOT / "src/config.py").read_text(encoding="utf-8"))
    for cls in (n for n in parsed.body if isinstance(n, ast.ClassDef)):
        section = getattr(config_module, cls.name)
        for k, node in enumerate(cls.body):
            if isinstance(node, ast.AnnAssign) and not dataclasses.is_dataclass(
                typing.get_type_hints(section)[node.target.id]
            ):
                following = cls.body[k + 1] if k + 1 < len(cls.body) else None
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{cls.name}.{node.target.id} has no docstring"
                numeric = ast.unparse(node.annotation) in (
                    "int",
                    "float",
                    "int | None",
                    "tuple[float, float]",
                )
                assert not numeric or "_number(" in ast.unparse(node.value), (
                    f"{cls.name}.{node.target.id} has no range"
                )


def test_every_key_is_set_by_a_shipped_file_or_defended() -> None:
    """A key that no recipe sets and no record defends is an option that nobody has shown to help."""
    keys = {".".join(filter(None, key)) for key in all_keys()}
    told = set(re.findall(r"\b([a-z_.]+)=(?!%)", (ROOT / "Makefile").read_text(encoding="utf-8"))) & keys
    for path in (ROOT / "config").glob("*.yaml"):
        load_config(path)
        told |= {entry.key for entry in read_entries(path.read_text(encoding="utf-8"))} & keys
    record = (ROOT / "records/configuration-keys.md").read_text(encoding="utf-8")
    assert keys - told == set(re.findall(r"^\| `([a-z_0-9.]+)`", record, re.M))
    assert len(keys) <= MOST_KEYS
