"""A real browser without a network; what it is missing is why its tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from src.pages.page import Page
from tests.end_to_end.conftest import embedded  # noqa: F401  (a fixture)

WIDTHS = {"laptop": (1280, 900), "phone": (390, 844)}
MOST_BYTES = 10_000_000


@dataclass
class Opened:
    """A page in the browser."""

    tab: Any
    """playwright's page."""
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """What holds for every page, on a laptop and on a phone.

        No error, no request, every figure drawn, every picture shown, nothing beside the screen.
        """
        for wide, high in WIDTHS.values():
            self.tab.set_viewport_size({"width": wide, "height": high})
            wait = "document.documentElement.scrollWidth <= window.innerWidth"
            self.tab.wait_for_function(wait)
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("data:", "blob:"))] == []
        assert self.tab.evaluate(
            "[...document.querySelectorAll('.figure')].every((f) => f.querySelector('.main-svg'))"
        )
        assert self.tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")

    def turn(self, place: int = 0) -> tuple[dict[str, float], dict[str, float]]:
        """Open the 3D view of a sample and drag it; where the eye was and is."""
        self.tab.locator(".turn").nth(place).click()
        eye = "document.getElementById('space')._fullLayout?.scene?._scene?.getCamera().eye"
        self.tab.wait_for_function(f"!!({eye})", timeout=60_000)
        before = self.tab.evaluate(eye)
        box = self.tab.locator("#space").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.tab.mouse.move(x, y)
        self.tab.mouse.down()
        self.tab.mouse.move(x + 90, y + 40, steps=6)
        self.tab.mouse.up()
        self.tab.wait_for_function(f"Math.abs(({eye}).x - {before['x']}) > 0.01", timeout=60_000)
        return before, self.tab.evaluate(eye)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; skipped with what is missing.

    It ends with its module: processes that later tests start would inherit the pipe whose end ends it.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install --group browser: no playwright"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    arguments = [
        "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--disable-gpu-rasterization", "--disable-gpu-compositing",  # all else is faster without WebGL
    ]  # fmt: skip
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=path, args=arguments, timeout=120_000)
        yield browser
        browser.close()


Open = Callable[..., Opened]


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a `Page` or a file with the network cut off."""
    contexts = []

    def open_page(page: Page | Path) -> Opened:
        path = page if isinstance(page, Path) else tmp_path / "page.html"
        if isinstance(page, Page):
            page.write(path)
        assert path.stat().st_size <= MOST_BYTES
        wide, high = WIDTHS["laptop"]
        contexts.append(chromium.new_context(viewport={"width": wide, "height": high}, offline=True))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60_000)
        found = Opened(tab)
        tab.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: found.errors.append(str(error)))
        tab.on("dialog", lambda dialog: (found.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda r: found.requests.append(r.url) if r.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()
