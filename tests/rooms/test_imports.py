"""Who may import whom, and what may be used where: design by contract, not by habit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.rooms.sources import ENTRIES, ROOT, module_name, source_files, tree

BASE = ("src.errors", "src.schema", "src.config", "src.config_file", "src.geometry", "src.runtime")
BELOW_ROOMS = (*BASE, "src.hand", "src.render")
ALLOWED: dict[str, tuple[str, ...]] = {
    "src.errors": (),
    "src.schema": ("src.errors",),
    "src.config": ("src.errors", "src.schema"),
    "src.config_file": ("src.errors", "src.schema", "src.config"),
    "src.geometry": ("src.errors", "src.schema", "src.config"),
    "src.runtime": ("src.errors", "src.schema", "src.config", "src.config_file", "src.geometry"),
    "src.hand": BASE,
    "src.render": (*BASE, "src.hand"),
    "src.models": BELOW_ROOMS,
    "src.losses": BELOW_ROOMS,
    "src.evaluation": BELOW_ROOMS,
    "dataloader": BELOW_ROOMS,
    "src.training": (*BELOW_ROOMS, "src.models", "src.losses", "src.evaluation"),
    "src.pages": (*BELOW_ROOMS, "src.evaluation"),
    "src.build": (
        *BELOW_ROOMS,
        *("src.models", "src.losses", "src.evaluation", "src.training", "src.predict", "dataloader"),
    ),
    "src.show": (
        *BELOW_ROOMS,
        "src.evaluation",
        "src.pages",
        "src.training",
        "src.build",
        "dataloader",
    ),
    "src.predict": (*BELOW_ROOMS, "src.models", "src.training", "dataloader"),
    "src.tools": ("src", "dataloader"),
    "train": ("src", "dataloader"),
    "test_distributed_eval": ("src", "dataloader"),
}
FIRST_PARTY = {"src", "dataloader", "train", "test_distributed_eval", "tests", "benchmarks"}


def room(module: str) -> str | None:
    """The entry of ALLOWED that a module belongs to."""
    found = [r for r in ALLOWED if module == r or module.startswith(r + ".")]
    return max(found, key=len, default=None)


def imports(path: Path, parsed: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, with the submodule of `from package import submodule`."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the module in full"
            for alias in node.names:
                sub = f"{node.module}.{alias.name}"
                is_module = (ROOT / (sub.replace(".", "/") + ".py")).exists() or (
                    ROOT / sub.replace(".", "/")
                ).is_dir()
                yield node.lineno, sub if is_module else str(node.module)


def offences(path: Path, module: str, parsed: ast.Module) -> list[str]:
    """First-party imports of a file that the table does not allow."""
    here = room(module)
    if here is None:
        return [] if module in ("src",) else [f"{path}: lives in no room of the table"]
    bad = []
    for line, name in imports(path, parsed):
        if name.partition(".")[0] not in FIRST_PARTY or room(name) == here:
            continue
        if not any(name == a or name.startswith(a + ".") for a in ALLOWED[here]):
            bad.append(f"{path}:{line}: {here} may not import {name}")
    return bad


def test_every_import_follows_the_table() -> None:
    """A loader that reaches into the model, or a model into the data, cannot be tested or replaced alone."""
    bad = [line for p in source_files() for line in offences(p.relative_to(ROOT), module_name(p), tree(p))]
    assert not bad, "\n".join(bad)


def test_the_table_refuses_what_it_should() -> None:
    """The check itself can fail.

    Neighbours, upward and unknown imports are offences, downward ones are not.
    """

    def lines(module: str, code: str) -> list[str]:
        return offences(Path("x.py"), module, ast.parse(code))

    assert lines("src.models.vit", "from src.losses.loss import HandLoss")
    assert lines("src.training.step", "import dataloader.build")
    assert lines("src.geometry.camera", "from src.hand import mano")
    assert lines("src.hand.mano", "from train import main")
    assert lines("src.attic.old", "import os")
    assert not lines("src.models.vit", "from src.geometry.camera import project")
    assert not lines("train", "from dataloader.build import build_dataset")


WHERE: dict[str, tuple[str, ...]] = {
    "torch.distributed": ("src/runtime/", "src/evaluation/collect.py", "src/training/step.py", *ENTRIES),
    "cv2": ("dataloader/", "src/render/", "src/predict/", "src/tools/"),
    "pickle": ("src/runtime/files/safe_pickle.py",),
}


def test_libraries_stay_in_their_rooms() -> None:
    """A collective outside these files can hang a rank; a pickle outside them can run what it reads."""
    bad = []
    for path in source_files():
        where = path.relative_to(ROOT).as_posix()
        for line, name in imports(path, tree(path)):
            for library, places in WHERE.items():
                inside = name == library or name.startswith(library + ".")
                if inside and not any(
                    where == p or (p.endswith("/") and where.startswith(p)) for p in places
                ):
                    bad.append(f"{where}:{line}: {library} does not belong here")
    assert not bad, "\n".join(bad)


def test_print_environment_and_broad_excepts_stay_out() -> None:
    """A print vanishes from log.txt, a hidden environment variable from config.yaml, a broad except hides
    causes.
    """
    bad = []
    for path in source_files():
        where = path.relative_to(ROOT).as_posix()
        talks = where in ENTRIES or where.startswith("src/tools/")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" and not talks:
                bad.append(f"{where}:{node.lineno}: print")
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("environ", "getenv")
                and not (talks or where.startswith("src/runtime/"))
            ):
                bad.append(f"{where}:{node.lineno}: environment")
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
            ):
                bad.append(f"{where}:{node.lineno}: broad except")
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "path"
                and getattr(node.value, "id", "") == "sys"
            ):
                bad.append(f"{where}:{node.lineno}: sys.path")
    assert not bad, "\n".join(bad)
