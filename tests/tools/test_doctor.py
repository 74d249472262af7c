"""The doctor: findings, exit status, and the leak report on a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dataloader.ho3d.leaks import LeakReport
from src.config import RunConfig
from src.errors import DataError
from src.hand.mano import ManoLayer
from src.tools import doctor
from src.tools.doctor import Finding, leak_findings, main
from tests.dataloader.posed import pose_labels
from tests.dataloader.tree import write_tree
from tests.hand_file import hand_file


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration over 48 frames of 2 motions x 2 cameras, and an evaluation view of the first motion."""
    folder = tmp_path_factory.mktemp("doctor")
    sequences = {"ABF10": 12, "ABF11": 12, "MC10": 12, "MC11": 12}
    frames = write_tree(folder / "HO3D", sequences, {"ABF14": 4})
    pose_labels(folder / "HO3D", ManoLayer.from_file(hand_file()), frames)
    path = folder / "run.yaml"
    dataset = {"root_dir": str(folder / "HO3D"), "num_workers": 0}
    path.write_text(yaml.safe_dump({"dataset": dataset, "mano": {"model_path": str(hand_file())}}))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


FRAME = "WARN  training frame of the same sequence within 2 frames: "
MOTION = "WARN  motion in training, at any instant from any camera: 12 of 12 validation frames (100.0 %)"
CAMERA = "WARN  same instant from another camera in training: "


@pytest.mark.parametrize(
    ("settings", "warnings", "says"),
    [
        (["split.val_percent=25"], [FRAME, MOTION], "That is what split.by=frame measures: interpolation"),
        (["split.by=sequence"], [], "By their names, no motion is on both sides"),
        (["validation.split=evaluation"], [CAMERA], "OK    training frame of the same sequence "),
        (["validation.split=evaluation"], [CAMERA], "Motions are on both sides"),
    ],
)
def test_the_leak_report_says_what_a_split_measures(
    config_file: Path, capsys: pytest.CaptureFixture[str], settings: list[str], warnings: list[str], says: str
) -> None:
    """Whoever reads a low error on random frames must be told what it measures; it is no failure."""
    status, out, _ = run(capsys, "--config", config_file, "--leaks", "--within", "2", *settings)
    told = out.splitlines()
    assert status == 0
    assert all(any(line.startswith(wanted) for line in told) for wanted in (*warnings, says)), out
    assert ("WARN" in out) == bool(warnings)


def test_frames_on_both_sides_fail() -> None:
    """Trained-on frames that are scored make the score worthless: the status must stop a script."""
    report = LeakReport(total=8, identical=2, neighbour={1: 0}, other_camera=0, same_motion=2)
    found = list(leak_findings(report))
    assert [f.status for f in found] == ["FAIL", "OK", "OK", "WARN"]
    assert (
        found[0]
        .line()
        .startswith("FAIL  also in training: 2 of 8 validation frames (25.0 %) (expected 0) -> ")
    )
    assert "worthless" in doctor.leak_meaning(report, RunConfig())


def test_exit_status_follows_the_findings(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that runs the doctor before a week of training reads only its status."""

    def asks(*statuses: str) -> int:
        def check(config: RunConfig, arguments: object) -> Iterator[Finding]:
            for status in statuses:
                yield Finding(status, "this", "1", "0", "there")  # type: ignore[arg-type]

        monkeypatch.setattr(doctor, "check_leaks", check)
        return main(["--config", str(config_file), "--leaks"])

    assert asks("OK", "WARN") == 0
    assert asks("OK", "FAIL", "OK") == 1
    assert capsys.readouterr().out.count("\n") == 5

    def refuses(config: RunConfig, arguments: object) -> Iterator[Finding]:
        raise DataError("no data there. Put it there.")

    monkeypatch.setattr(doctor, "check_leaks", refuses)
    status, out, err = run(capsys, "--config", config_file, "--leaks")
    assert (status, out, err) == (2, "", "DataError: no data there. Put it there.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "-1"], "want 0 or more"),
        (["--leaks", "--within", "0"], "from 1 on"),
        (["--leaks", "--within", "x"], "got x"),
    ],
)
def test_a_wrong_command_line_says_what_exists(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """A doctor that checks nothing and leaves with 0 would be taken for a clean bill of health."""
    with pytest.raises(SystemExit) as left:
        main(["--config", str(config_file), *arguments])
    assert left.value.code == 2
    assert says in capsys.readouterr().err
