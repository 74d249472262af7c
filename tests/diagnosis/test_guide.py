"""The guide and the table of checks say the same."""

from __future__ import annotations

import re

from src.training.diagnosis.pictures import DATA
from src.training.diagnosis.training import PROBE, SCORES, SETTING, STEP
from tests.rooms.sources import ROOT

ROWS = [row for table in (DATA, SETTING, STEP, PROBE, SCORES) for row in table]
CAUSES = {cause for row in ROWS for cause in row.causes}


def test_the_guide_explains_every_cause_and_no_other() -> None:
    """A name in the log that the guide does not know leaves its reader alone with it."""
    guide = (ROOT / "records/TRAINING_DEBUG_GUIDE.md").read_text(encoding="utf-8")
    table = guide.partition("## 3.")[2].partition("## 4.")[0]
    named = {
        name
        for line in table.splitlines()
        if line.startswith("|")
        for name in re.findall("`([^`]+)`", line.split("|")[2])
    }
    assert named == CAUSES | {"loss not finite"}


def test_every_check_sends_to_a_file_that_exists() -> None:
    """A place to mend that is not there costs its reader an evening."""
    places = {path for row in ROWS for path in re.findall(r"[\w/]+\.py", row.where)}
    assert places
    assert not [place for place in places if not (ROOT / place).is_file()]
