"""The pages of a real run in a real browser: numbers and hands are those of its files and its log."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from src.pages.files import REPORT
from src.tools import compare, predict
from tests.browser.conftest import Open
from tests.end_to_end.conftest import Embedded

SHOWN = "validation.pictures=8"
SCORE = re.compile(r"MPJPE: ([\d.]+) mm, PA-MPJPE: ([\d.]+) mm")


@pytest.fixture(scope="module")
def pages(chromium: object, embedded: Embedded) -> dict[str, Path]:
    """Pages of a training, of two evaluations, of a comparison and of a prediction."""
    done = embedded.main("name=shown", "training.num_epochs=1", "training.max_steps_per_epoch=2", SHOWN)
    assert done.returncode == 0, done.stderr
    found = {"run": embedded.newest("shown") / "val" / REPORT}
    checkpoint = str(embedded.newest("shown") / "checkpoints" / "last.pt")
    for name, more in (("val", ()), ("official", ("validation.split=evaluation",))):
        done = embedded.main(f"name={name}", "--evaluate", checkpoint, SHOWN, *more)
        assert done.returncode == 0, done.stderr
        found[name] = embedded.newest(name) / "val" / REPORT
        assert f"Report: {found[name]}" in done.stdout.splitlines()
    files = [found["val"].parent / name for name in ("per_sample_rgb.npz", "per_sample.npz")]
    found["compare"] = found["val"].parent / "compare.html"
    found["predict"] = found["run"].parents[1] / "hands" / REPORT
    tree = ("--checkpoint", checkpoint, "--rgb", str(embedded.root), "--boxes", "labels", "--frames", "6")
    for tool, name, arguments in (
        (compare, "compare", list(map(str, files))),
        (predict, "predict", [*tree, "--out", str(found["predict"].parent)]),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert tool.main(arguments) == 0
        assert f"Page: {found[name]}" in said.getvalue().splitlines()
    return found


@pytest.mark.parametrize("name", ["run", "val", "official", "compare", "predict"])
def test_every_page_opens_and_turns(pages: dict[str, Path], opened: Open, name: str) -> None:
    """On a laptop and on a phone, with the network cut off."""
    found = opened(pages[name])
    if name in ("val", "compare", "predict"):  # drawn in software, a turn takes seconds
        found.turn()
        found.tab.locator("#viewer button").click()
    found.judge()


def test_numbers_are_those_of_the_log_to_the_last_digit(pages: dict[str, Path], opened: Open) -> None:
    """Two numbers for one score, and nobody knows which to write down."""
    log = (pages["val"].parents[1] / "log.txt").read_text(encoding="utf-8")
    text = opened(pages["val"]).tab.locator("body").inner_text()
    scores = [number for pair in SCORE.findall(log) for number in pair]
    numbers = {*scores, *re.findall(r"(?:MPVPE|MPJPE|PA-MPJPE|Loss:) ([\d.]{5,})", log)}
    assert len(numbers) > 10
    assert [number for number in numbers if number not in text] == []


@pytest.mark.parametrize("name", ["val", "official"])
def test_hands_are_those_of_the_rows(pages: dict[str, Path], opened: Open, name: str) -> None:
    """The worst sample's 3D view shows what the table says, to a tenth of a millimetre."""
    tab = opened(pages[name]).tab
    samples = tab.evaluate("data.samples")
    for file, hand in (("per_sample.npz", "RGB-D"), ("per_sample_rgb.npz", "RGB-only")):
        with np.load(pages[name].parent / file) as rows:
            worst = int(np.argmax(rows["mpjpe_mm"]))
            if hand == "RGB-D":
                assert samples[0]["index"] == worst
            for sample in samples:
                row, hands = sample["index"], {h["name"]: np.array(h["joints_mm"]) for h in sample["hands"]}
                assert sample["name"] == rows["frame"][row]
                np.testing.assert_allclose(hands[hand], rows["pred_joints_cam_m"][row] * 1000, atol=0.1)
                assert f"{hand} {rows['mpjpe_mm'][row]:.3f} mm" in sample["text"]
                offset = hands[hand] - hands[hand][0] - hands["truth"] + hands["truth"][0]
                error = np.linalg.norm(offset, axis=-1).mean()
                assert error == pytest.approx(rows["mpjpe_mm"][row], abs=0.1)
