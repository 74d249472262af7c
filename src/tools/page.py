"""A page to look at, made or made anew from what a run left behind: neither weights nor data are needed.

    python -m src.tools.page RUN                 a run, or the folder of --evaluate: its last validation
    python -m src.tools.page FILE.npz            a per-sample file; without pictures
    python -m src.tools.page A B                 two of these compared; as `python -m src.tools.compare`
    python -m src.tools.page DIR                 the folder of a prediction

The page is written beside what it is made from, or to --out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.pages.files import REPORT, of_per_sample, of_prediction, page_place, with_curves
from src.pages.page import KEPT, Page
from src.predict.outputs.paths import place
from src.render.pictures import read_picture
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.tools import compare
from src.training.recorder import read_scalars


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    parser = make_parser("python -m src.tools.page", __doc__)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="run, per-sample file, prediction"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page; default: beside the input")
    arguments = parser.parse_args(argv)
    log.configure(rank=0)
    if len(arguments.paths) > 2:
        parser.error("one path, or two to be compared")
    if len(arguments.paths) == 2:
        return exit_status(lambda: _compare(arguments.paths, arguments.out), alone=True)
    return exit_status(lambda: _one(arguments.paths[0], arguments.out), alone=True)


def _compare(paths: Sequence[Path], out: Path | None) -> int:
    return compare.main([*map(str, paths), *(["--out", str(out)] if out else [])])


def _one(path: Path, out: Path | None) -> None:
    """Make one page.

    Raises:
        DataError: nothing there can be made a page of.
    """
    made, beside = page_of(path)
    target = page_place(out or beside)
    made.write(target)
    print(f"Page: {target}")


def page_of(path: Path) -> tuple[Page, Path]:
    """What there is to say, and where its page stands.

    Raises:
        DataError: nothing there can be made a page of.
    """
    if (path / "predictions.npz").is_file():
        return of_prediction(
            path, lambda name: read_picture(place(path, "overlays", name, ".jpg"))
        ), path / REPORT
    if path.is_dir() and (path / "val" / KEPT).is_file():
        return with_curves(Page.read(path / "val" / KEPT), _scalars(path)), path / "val" / REPORT
    file = compare.per_sample(path).absolute()
    page = of_per_sample(file, _scalars(file.parent.parent))
    return page, file.with_suffix(".html") if file == path.absolute() else file.with_name(REPORT)


def _scalars(run: Path) -> list[dict[str, float]]:
    """Lines of the run's scalars, where there are any."""
    path = run / "scalars.jsonl"
    return [values for _, values in read_scalars(path)] if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
