"""The project's source files as syntax trees, for tests about the code itself."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = ("train.py", "test_distributed_eval.py")


@cache
def source_files() -> tuple[Path, ...]:
    """Python files of the program: src, dataloader and the entry files, without tests."""
    found = [*ROOT.glob("src/**/*.py"), *ROOT.glob("dataloader/**/*.py"), *(ROOT / e for e in ENTRIES)]
    return tuple(sorted(p for p in found if p.exists()))


@cache
def tree(path: Path) -> ast.Module:
    """Parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """Dotted name of a file, e.g. src.hand.mano."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tracked_files() -> list[str]:
    """What git has, or would have after `git add -A`; empty outside a checkout."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [name for name in done.stdout.split("\0") if name] if done.returncode == 0 else []
