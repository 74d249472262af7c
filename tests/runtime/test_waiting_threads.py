"""How threads wait for each other, which is decided before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.rooms.sources import ROOT

ORDER = """
import sys, os
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit
sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize("module", ["train", "src.tools.predict", "src.predict"])
@pytest.mark.parametrize(
    ("given", "want"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_that_wait_soon_sleep(module: str, given: dict[str, str], want: str) -> None:
    """Beside one busy process a step of two threads took four times as long; what a user sets still holds."""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", ORDER.format(module=module)],
        cwd=ROOT,
        env={**surroundings, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == want, done.stderr
