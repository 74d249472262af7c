"""Pages of made-up validations in a real browser: names from files, many and few rows, no score at all."""

from __future__ import annotations

import numpy as np
import pytest

from src.pages.samples import STEPS_PER_MM
from tests.browser.conftest import Open
from tests.pages.made_up import sample, validation

HOSTILE = (
    "train/<img src=x onerror=alert(1)>",
    "train/" + "long" * 75,
    "train/抓握的手在桌上",
    "train/</script><script>alert(2)</script>",
    "train/{{ 7 * 7 }}",
)


def test_names_from_files_are_text(opened: Open) -> None:
    """A data set from somewhere else may not run in the browser of whoever looks at its scores."""
    found = opened(validation(60, HOSTILE).page())
    shown = found.tab.locator("#s8 tbody tr td:first-child").all_text_contents()
    assert sorted(shown) == sorted(HOSTILE)
    assert found.tab.locator("article h4").first.text_content() == f"{HOSTILE[0]}/0000"
    found.tab.locator(".turn").first.click()
    assert found.tab.locator("#viewer h3").text_content() == f"{HOSTILE[0]}/0000"
    found.tab.locator("#viewer button").click()
    found.judge()
    url = "'https://example.org/names.png'"
    for asked in (f"new Image().src = {url}", f"fetch({url}).catch(() => null)"):
        refused = "addEventListener('securitypolicyviolation', (event) => done(event.blockedURI))"
        answer = found.tab.evaluate(
            f"new Promise((done) => {{ {refused}; setTimeout(() => done('asked'), 10000); {asked} }})"
        )
        assert f"'{answer}'" == url, f"{asked}: whatever runs in a page may tell nobody of it"


@pytest.mark.parametrize(("count", "sequences"), [(8332, 1), (8332, 500), (1, 1)])
def test_many_rows_and_one(opened: Open, count: int, sequences: int) -> None:
    """HO3D has 8332 rows; a smoke test has one."""
    found = opened(validation(count, [f"train/S{k:04d}" for k in range(sequences)]).page())
    found.judge()
    assert found.tab.locator("#s8 tbody tr").count() == sequences


def test_a_table_sorts_by_number_and_back(opened: Open) -> None:
    """9 before 10, nan last whichever way, and the heading says which way it is."""
    found = opened(validation(60, [f"train/S{k}" for k in range(12)], broken=[0]).page())
    found.judge()
    head, cells = found.tab.locator("#s8 th").nth(2), found.tab.locator("#s8 tbody tr td:nth-child(3)")
    for way, sign in (("descending", -1), ("ascending", 1)):
        head.click()  # wherever one clicks in it
        assert head.get_attribute("aria-sort") == way
        values = [float(text) for text in cells.all_text_contents()]
        assert np.isnan(values[-1])
        assert values[:-1] == sorted(values[:-1], key=lambda v: sign * v)
    found.tab.locator("#s8 th button").first.focus()
    found.tab.keyboard.press("Enter")
    texts = found.tab.locator("#s8 tbody tr td:first-child").all_text_contents()
    assert texts == [f"train/S{k}" for k in range(12)]


def test_a_page_without_a_score_or_depth_is_a_page(opened: Open) -> None:
    """Of a run that has gone wrong one wants to see it most."""
    found = opened(validation(60, broken=range(60), depth=False).page())
    found.judge()
    assert "predictions are not finite" in found.tab.locator(".answers").text_content()
    titles = found.tab.locator("article").first.locator("figcaption").all_text_contents()
    assert titles == ["crop", "truth", "RGB-D", "RGB-only"]


def test_the_view_turns_and_shows_the_hands_that_the_page_holds(opened: Open) -> None:
    """A picture of a hand from one side says little about depth."""
    found = opened(validation(shown=2).page())
    before, after = found.turn(1)
    assert before != after
    space = "document.getElementById('space').data"
    names = found.tab.evaluate(f"{space}.filter((t) => t.type === 'mesh3d').map((t) => t.name)")
    assert names == ["truth", "RGB-D", "RGB-only"]
    # All wrists at the origin; x to the right, away from the camera, and up.
    wrist, tip = found.tab.evaluate(f"(t => [0, 58].map((k) => [t.x[k], t.y[k], t.z[k]]))({space}[0])")
    joints = np.array(found.tab.evaluate("data.samples[1].hands[0].joints_mm"))
    x, y, z = joints[20] - joints[0]
    np.testing.assert_allclose([wrist, tip], [[0, 0, 0], [x, z, -y]], atol=1e-9)
    mesh = found.tab.evaluate(f"{space}.filter((t) => t.type === 'mesh3d').map((t) => [t.x, t.y, t.z])")
    steps = 1 / STEPS_PER_MM
    for hand, points in zip(sample(1, "").hands.values(), mesh, strict=True):
        x, y, z = 1000 * (hand.vertices_m - hand.joints_m[0]).T
        np.testing.assert_allclose(points, [x, z, -y], atol=steps)
    found.judge()
