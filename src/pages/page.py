"""A page: what it says, kept as JSON, and the one HTML file that it becomes.

The JSON (`page.json`) holds all that was made from weights and data; the HTML can be made from it anew at any
time. Whatever comes from files is text there, never markup: Jinja2 escapes it, and no figure holds any.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from plotly.offline import get_plotlyjs

from src.errors import DataError, plain_text
from src.runtime.files.disk import atomic_write, read_plain

KEPT = "page.json"
"""Name of the file that a page is kept in, beside it."""
VERSION = 1
"""Of what stands in that file."""
_MOST_BYTES = 1 << 26
_FOLDER = Path(__file__).parent

Json = Any
"""Strings, finite numbers, None, lists and dictionaries of them."""


@dataclass(frozen=True)
class Block:
    """One thing below a heading; of the optional parts it has one."""

    title: str = ""
    words: Sequence[str] = ()
    """Sentences in front of the rest."""
    table: Mapping[str, Json] | None = None
    """`header`: names; `rows`: lists of cells, text or numbers; `sortable`: by any column."""
    figure: Mapping[str, Json] | None = None
    """`data` and `layout` of plotly; all text in it is ours."""
    samples: Sequence[int] = ()
    """Places in `Page.samples`, shown as a gallery."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All that one HTML file says."""

    title: str
    facts: Sequence[tuple[str, str]]
    """What it is about: name and value."""
    answers: Sequence[str]
    """The first things that people want to know, a sentence each."""
    sections: Sequence[Section]
    samples: Sequence[Mapping[str, Json]] = ()
    """As `src.pages.samples.sample_json` makes them."""
    faces: Sequence[int] = ()
    """(3 F,) vertex numbers of the meshes of `samples`."""
    version: int = VERSION

    def keep(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_write(path) as file:
            file.write(json.dumps(plain(asdict(self)), ensure_ascii=True, allow_nan=False).encode())

    @classmethod
    def read(cls, path: Path) -> Page:
        """What `keep` wrote.

        Raises:
            DataError: no such file, torn, or of another version.
        """
        try:
            content = json.loads(read_plain(path, _MOST_BYTES))
            if content["version"] != VERSION:
                raise DataError(f"{path}: made by another version ({content['version']}, want {VERSION})")
            sections = [
                Section(part["title"], [Block(**block) for block in part["blocks"]])
                for part in content.pop("sections")
            ]
            page = cls(sections=sections, **content)
            page.html()
            return page
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TemplateError) as error:
            why = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{path} is not a kept page ({why}). Without it a page is made of val/*.npz"
            ) from error

    def write(self, path: Path) -> None:
        """Write the HTML file, whole or not at all."""
        content = self.html().encode()
        with atomic_write(path) as file:
            file.write(content)

    def html(self) -> str:
        """The HTML file."""
        page = plain(asdict(self))
        blocks = [block for section in page["sections"] for block in section["blocks"]]
        data = {
            "figures": [block["figure"] for block in blocks if block["figure"] is not None],
            "samples": [{k: v for k, v in sample.items() if k != "pictures"} for sample in page["samples"]],
            "faces": page["faces"],
        }
        return (
            _environment()
            .get_template("page.html")
            .render(
                page=page,
                data=data,
                style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
                script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
                plotly=get_plotlyjs(),
            )
        )


def plain(value: Json) -> Json:
    """What JSON and HTML can hold: None for a number that is not finite, text without bytes that are none."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


@cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    made.filters["cell"] = cell
    return made


def cell(value: Json) -> str:
    """A cell of a table as text: numbers with three decimals as the log has them, whole ones as they are."""
    if value is None:
        return "nan"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
