"""`make learn` itself: which runs it scores, and what LEARN_SETTINGS may change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms.sources import ROOT

PYTHON = f"""#!{sys.executable}
import sys, pathlib
words = sys.argv[1:]
with open("calls", "a") as calls:
    print(*words, file=calls)
name = next((word[5:] for word in words if word.startswith("name=")), None)
if words[0] == "-c":
    print(2)
elif words[0] == "train.py" and "--print-config" not in words:
    runs = pathlib.Path(next((word[17:] for word in words if word.startswith("logging.runs_dir=")), "runs"))
    stamp = f"20260101-0000{{len(list(runs.glob('*'))):02d}}"
    (runs / f"{{stamp}}-{{name}}" / "checkpoints").mkdir(parents=True)
"""
OLD = ("best-learn-0", "20991231-235959-learn-0", "20991231-235959-learn-0-held-out")


@pytest.fixture
def calls(tmp_path: Path, request: pytest.FixtureRequest) -> list[list[str]]:
    """What `make learn` starts where runs of others are; its variables are the fixture's parameter."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    for name in OLD:
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    done = subprocess.run(
        [shutil.which("make") or "make", "learn", *request.param],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "DOMAIN": "example.com", "SEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines]


@pytest.mark.parametrize("calls", [()], indirect=True)
def test_the_run_that_was_trained_is_scored(calls: list[list[str]]) -> None:
    """A kept copy, or another `make learn` at work, was scored in its place, with status 0."""
    trained, *scored = [words for words in calls if words[0] == "train.py" and "--print-config" not in words]
    (name,) = [word.removeprefix("name=") for word in trained if word.startswith("name=")]
    runs = [f"runs/20260101-0000{number:02d}-{name}" for number in range(len(OLD), len(OLD) + 4)]
    assert [words[words.index("--evaluate") + 1] for words in scored] == [
        f"{runs[0]}/checkpoints/last.pt"
    ] * 3
    ends = ("", "-held-out", "-random", "-other")
    folders = [run + end for run, end in zip(runs, ends, strict=True)]
    options = ("--run", "--held-out", "--random", "--other")
    assert calls[-1][2:] == [word for pair in zip(options, folders, strict=True) for word in pair]
    assert {"seed=0", "dataset.root_dir=data/learn/wide-seed0"} < {*trained}, "a DOMAIN of the machine's"


@pytest.mark.parametrize(
    "calls", [("DOMAIN=table", "LEARN_SETTINGS=dataset.cache=off augmentation.roll_deg=30")], indirect=True
)
def test_settings_come_before_the_recipe(calls: list[list[str]]) -> None:
    """A key given twice ended `make learn` after the training, or kept table's recipe from being changed."""
    for words in calls:
        if words[0] == "train.py":
            keys = [word.partition("=")[0] for word in words if "=" in word]
            assert len(keys) == len({*keys}), words
            assert {"dataset.cache=off", "augmentation.roll_deg=30", "augmentation.colour=0.2"} < {*words}


@pytest.mark.parametrize("calls", [("LEARN_SETTINGS=logging.runs_dir=disk/runs",)], indirect=True)
def test_runs_may_be_on_another_disk(calls: list[list[str]]) -> None:
    """The newest run in `runs`, an old one, was scored in the place of the new one elsewhere."""
    assert [word.startswith("disk/runs/2026") for word in calls[-1][3::2]] == [True] * 4


@pytest.mark.parametrize("calls", [()], indirect=True)
def test_what_is_asked_first_names_all_that_the_runs_name(calls: list[list[str]]) -> None:
    """A key that the recipe names itself is refused before the data are made, and not after the training."""
    asked, *others = [words for words in calls if words[0] == "train.py"]
    assert "--print-config" in asked
    assert calls.index(asked) == 0
    keys = {word.partition("=")[0] for word in asked if "=" in word}
    assert keys >= {word.partition("=")[0] for words in others for word in words if "=" in word}
