"""What is in the repository, and whether the README tells the truth about it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter

import pytest

from tests.rooms.sources import ROOT, source_files, tracked_files, tree

LAYOUT = {
    "train.py",
    "test_distributed_eval.py",
    "config",
    "src",
    "dataloader",
    "records",
    "README.md",
    "requirements.txt",
    "requirements-dev.txt",
    "tests",
    "benchmarks",
    "Makefile",
    "pyproject.toml",
    ".ci",
    ".gitignore",
    "LICENSE",
}


def test_nothing_generated_or_licensed_is_tracked() -> None:
    """A committed MANO file breaks its licence; a committed checkpoint or cache breaks every clone."""
    files = tracked_files()
    if not files:
        pytest.skip("not a git checkout")
    pattern = r"MANO_(RIGHT|LEFT)|\.(pyc|pt|pth|npz|npy)$|__pycache__|events\.out|(^|/)(runs|data)/"
    assert [f for f in files if re.search(pattern, f)] == []
    assert {f.split("/")[0] for f in files} <= LAYOUT


def test_groups_of_libraries_that_are_named_exist_with_lower_bounds() -> None:
    """A message that names an extra which is not there sends its reader in a circle."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    places = [
        *(ROOT / "src").rglob("*.py"),
        ROOT / "README.md",
        ROOT / "Makefile",
        *(ROOT / "records").glob("*.md"),
    ]
    named = {
        n
        for p in places
        for n in re.findall(r"pip install (?:--quiet )?[\s\"]*--group (\w+)", p.read_text(encoding="utf-8"))
    }
    assert named == set(groups)
    assert all(">=" in wanted for group in groups.values() for wanted in group)


def test_readme_commands_exist() -> None:
    """A command of the README that does not exist is the first thing a newcomer meets."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for target in re.findall(r"^(?:\s*|.*`)make ([a-z-]+)", text, re.M):
        assert target in targets, f"README names `make {target}`"
    for module in set(re.findall(r"python -m ((?:src|dataloader|benchmarks)[\w.]*)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
            f"README names `python -m {module}`"
        )
    for file in set(re.findall(r"\b((?:config|records|tests|benchmarks)/[\w./-]+\.(?:yaml|md|py))", text)):
        assert (ROOT / file).exists(), f"README names {file}"
    assert len(text.splitlines()) < 150


def test_no_leftovers() -> None:
    """No open ends and no path of one machine in what is shipped."""
    marker = "TO" + "DO|FIX" + "ME|X" + "XX"
    bad = []
    for name in tracked_files():
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".yaml", ".toml"} or not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(rf"\b({marker})\b", line) or re.search(r"(?<![\w.])/(home|root|Users)/", line):
                bad.append(f"{name}:{number}: {line.strip()[:80]}")
    if name := next((n for n in bad if "test_repository" not in n), None):
        pytest.fail(name)


MOST_LINES, MOST_OF_A_FUNCTION, MOST_MODULES = 400, 60, 10


def test_nothing_is_too_long_to_read() -> None:
    """A file that is longer has two jobs, a function two thoughts, a fuller folder no order."""
    lines = {
        p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8").count("\n") for p in source_files()
    }
    assert [name for name, count in lines.items() if count > MOST_LINES] == []
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_OF_A_FUNCTION
    ]
    assert not long, f"functions over {MOST_OF_A_FUNCTION} lines: {long}"
    modules = [*source_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    folders = Counter(p.parent.relative_to(ROOT).as_posix() for p in modules if p.stem != "__init__")
    assert {name: count for name, count in folders.items() if count > MOST_MODULES} == {}
