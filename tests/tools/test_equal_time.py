"""The ablation's equal time: the number of steps that each arm may take."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import equal_time
from benchmarks.ablation import ARMS
from benchmarks.equal_time import (
    CONFIG,
    Plan,
    against_first,
    curve,
    finished,
    plans_of_arms,
    score_arm,
    step_times,
    train_arm,
)
from src.config_file import config_to_yaml, load_config
from src.errors import DataError, UTNetError
from src.evaluation.scored import Scored
from src.hand.mano import ManoLayer
from tests.hand_file import hand_file

EPOCHS = load_config(CONFIG, ()).training.num_epochs
SECONDS = {"full": 1.0, "cheap": 0.8, "dear": 1.25}


def test_a_cheaper_step_is_taken_more_often() -> None:
    """Arms with equal steps would call a part worthless for what it costs, or worth what it does not cost."""
    plans = plans_of_arms(SECONDS, samples=6 * 32 * 100, batch=32, epochs=6, there=125)
    assert plans == {"full": Plan(6, 100), "cheap": Plan(6, 125), "dear": Plan(6, 80)}
    assert all(plans[name].steps * SECONDS[name] == pytest.approx(100) for name in plans)


def test_where_the_data_end_there_are_more_epochs() -> None:
    """An epoch that ends with the data would quietly give the cheapest arm less time than the others."""
    plans = plans_of_arms(SECONDS, samples=6 * 32 * 100, batch=32, epochs=6, there=60)
    assert plans == {"full": Plan(13, 46), "cheap": Plan(13, 58), "dear": Plan(13, 37)}
    config = load_config(CONFIG, plans["cheap"].settings)
    assert (config.training.num_epochs, config.training.max_steps_per_epoch) == (13, 58)
    assert config.validation.every_epochs == 5, "three points: after 5, 10 and 13"


@pytest.mark.parametrize(
    ("samples", "there", "why"), [(200, 9, "'dear' has no step"), (999, 0, "fewer than")]
)
def test_an_arm_without_a_step_is_said(samples: int, there: int, why: str) -> None:
    """One step that nobody has time for is four times the others' training."""
    with pytest.raises(ValueError, match=why):
        plans_of_arms(SECONDS | {"dear": 4.0}, samples, batch=32, epochs=6, there=there)


def test_too_few_samples_are_said_before_data_are_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Making data and timing steps take minutes, after which the same line would come."""
    monkeypatch.setattr(equal_time.subprocess, "run", lambda *_, **__: pytest.fail("data were made"))
    with pytest.raises(SystemExit):
        equal_time.compare("ablation", None, ARMS, ["--samples", "300"])
    assert "--samples 300: want at least 448, a step in each epoch" in capsys.readouterr().err


def test_a_curve_is_over_minutes_of_training(tmp_path: Path) -> None:
    """A network that looks twice validates longer: its scores would seem to come later."""
    scores = {"Val/MPJPE": 30.0, "Val/PA-MPJPE": 12.0}
    rows = [{"minutes": 2.0}, {"minutes": 2.4} | scores]
    rows += [{"minutes": 3.0, "Val/RGB-only/MPJPE": 40.0, "Val/RGB-only/PA-MPJPE": 13.0}]
    rows += [{"minutes": 5.0}, {"minutes": 6.0} | scores]
    (tmp_path / "scalars.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert curve(tmp_path) == [
        "2.0 minutes, RGB-D, MPJPE 30.00, PA-MPJPE 12.00 mm",
        "2.0 minutes, RGB-only, MPJPE 40.00, PA-MPJPE 13.00 mm",
        "4.0 minutes, RGB-D, MPJPE 30.00, PA-MPJPE 12.00 mm",
    ]


def write_run(runs: Path, folder: str, *settings: str, last: int = EPOCHS, code: str = "aaaa") -> None:
    """A run folder as train.py leaves it, as far as the ablation reads it."""
    (runs / folder).mkdir(parents=True)
    config = load_config(CONFIG, settings)
    (runs / folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    (runs / folder / "meta.json").write_text(json.dumps({"commit": code}), encoding="utf-8")
    (runs / folder / "val").mkdir()
    for end in ("", "_rgb"):
        (runs / folder / "val" / f"epoch_{last - 1:04d}{end}.npz").touch()


def test_a_run_of_another_recipe_or_another_code_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """After a change, an old run of the same name would be compared with new ones."""
    name, label = "name=ablation-0-9-full", "-ablation-0-9-full"
    arm = load_config(CONFIG, (name,))
    assert finished(arm, "aaaa", tmp_path) is None
    write_run(tmp_path, "20260101-000000" + label, name)
    write_run(tmp_path, "20260102-000000" + label, name)
    write_run(tmp_path, "20260103-000000" + label, name, "dataset.p_drop_depth=0.9")
    write_run(tmp_path, "20260104-000000" + label, name, last=EPOCHS - 1)
    write_run(tmp_path, "20260105-000000" + label, name, code="bbbb")
    write_run(tmp_path, "20260106-000000" + label, name)
    (tmp_path / ("20260106-000000" + label) / "val" / f"epoch_{EPOCHS - 1:04d}_rgb.npz").unlink()
    (tmp_path / ("20260107-000000" + label)).mkdir()
    found, newest = finished(arm, "aaaa", tmp_path), finished(arm, None, tmp_path)
    assert found is not None
    assert newest is not None
    assert (found.name[:8], newest.name[:8]) == ("20260102", "20260105")


@pytest.mark.parametrize(
    ("now", "before", "kept"),
    [
        ("aaaa", "aaaa", True),
        ("bbbb", "aaaa", False),
        ("aaaa+", "aaaa+", False),
        ("unknown", "unknown", False),
    ],
)
def test_an_arm_is_trained_once_for_each_code(
    now: str, before: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that differ from their commit may be another network; a run that is not found is hours lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(Path(__file__).resolve().parents[2] / "config")
    monkeypatch.setattr(equal_time, "commit", lambda: now)
    trained = []

    def train(command: list[str], env: dict[str, str], **_: object) -> None:
        settings = command[command.index(str(CONFIG)) + 1 :]
        assert {*Plan(4, 9).settings, f"runtime.threads={env['OMP_NUM_THREADS']}"} < {*settings}
        label = next(s for s in settings if s.startswith("name=")).removeprefix("name=")
        trained.append(label)
        write_run(Path("runs"), f"2026010{len(trained)}-000000-{label}", *settings, last=4, code=before)

    monkeypatch.setattr(equal_time.subprocess, "run", train)
    arm, name = ARMS["no modality sampling"], "ablation-3-4x9-no-modality-sampling"
    assert train_arm(arm, name, ("seed=3",), Plan(4, 9)).name[:8] == "20260101"
    assert train_arm(arm, name, ("seed=3",), Plan(4, 9)).name[:8] == ("20260101" if kept else "20260102")
    assert trained == [name] * (1 if kept else 2)


@pytest.mark.parametrize(
    ("now", "tree", "kept"),
    [("aaaa", "x", True), ("aaaa", "y", False), ("bbbb", "x", False), ("aaaa+", "x", False)],
)
def test_times_are_kept_with_the_arms(
    now: str, tree: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times differ by the machine's noise: an interrupted comparison would train all its arms once more."""
    own, timed = {"full": 2.0, "cheap": 1.0, "dear": 4.0}, []

    def interleaved(candidates: dict[str, str], repeats: int) -> dict[str, float]:
        timed.append(" ".join(candidates.values()))
        return {name: own[name] * noise for name in candidates}

    monkeypatch.setattr(equal_time, "interleaved", interleaved)
    monkeypatch.setattr(equal_time, "commit", lambda: "aaaa")
    path, noise = tmp_path / "bench" / "times.json", 1.0
    assert step_times(path, Path("x"), ["full", "cheap"], str) == {"full": 1.0, "cheap": 0.5}
    noise = 1.1  # a slower minute, for all alike
    assert step_times(path, Path("x"), ["full", "dear"], str) == {"full": 1.0, "dear": 2.0}
    own["cheap"] = 1.03
    monkeypatch.setattr(equal_time, "commit", lambda: now)
    third = step_times(path, Path(tree), ["full", "cheap", "dear"], str)
    assert third["cheap"] == (0.5 if kept else 0.515)
    assert timed == ["full cheap", "full dear", *([] if kept else ["full cheap dear"])]


def test_other_data_are_scored_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache holds the whole list, 17 GB, and a tenth of it is scored once."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def evaluate(command: list[str], **_: object) -> None:
        asked.extend(command)
        (tmp_path / "runs" / "20260101-000000-a-other").mkdir(parents=True)

    monkeypatch.setattr(equal_time.subprocess, "run", evaluate)
    assert score_arm(ARMS["full"], "a-other", Path("runs/a"), Path("data/b")).name.endswith("-a-other")
    assert {"runs/a/checkpoints/last.pt", "dataset.root_dir=data/b", "dataset.cache=off"} < {*asked}


def test_an_arm_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty lines of how a program was started hid what it had said of a full disk."""
    monkeypatch.setattr(equal_time.sys, "executable", "false")
    with pytest.raises(UTNetError, match=r"false train.py ended with status 1: .* call this again"):
        score_arm(ARMS["full"], "a-other", Path("runs/a"), Path("data/b"))


def test_other_data_are_opened_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in --other was said after the first arm's twenty minutes."""
    monkeypatch.setattr(equal_time, "step_times", lambda *_: pytest.fail("steps were timed"))
    hand = ManoLayer.from_file(hand_file())
    monkeypatch.setattr(equal_time.ManoLayer, "from_file", lambda _: hand)
    with pytest.raises(DataError, match="nowhere"):
        equal_time.compare("ablation", None, ARMS, ["--data", "x", "--other", str(tmp_path / "nowhere")])


def test_each_seed_has_its_own_times_runs_and_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of a seed's results were replaced by those of the next, and by a call with one arm."""
    names, labels = [], []

    def times(path: Path, *_: object) -> dict[str, float]:
        names.append(path.name)
        return {"full": 1.0, "refinement": 1.25}

    def trained(arm: object, label: str, *_: object) -> Path:
        labels.append(label)
        return Path(label)

    for name, stand_in in {
        "step_times": times,
        "train_arm": trained,
        "_epoch_steps": lambda *_: 1000,
        "curve": lambda _: [],
        "rows_of": lambda *_: {},
        "report": lambda name, _: names.append(name),
    }.items():
        monkeypatch.setattr(equal_time, name, stand_in)
    equal_time.compare("ablation", None, ARMS, ["--seed", "3", "--arms", "refinement", "--data", "x"])
    assert names == ["ablation-3-times.json", "ablation-3"]
    assert labels == ["ablation-3-7x80-full", "ablation-3-7x64-refinement"]


def test_leads_are_paired_and_have_their_sign(tmp_path: Path) -> None:
    """A peer that is worse by 2 mm on every frame: the first is better by 2, whatever the frames' spread."""
    errors = np.linspace(5.0, 80.0, 40)
    sequences = np.array([f"train/S{k // 4}{k // 2 % 2}" for k in range(40)])  # ten motions, two cameras
    rows = [
        {
            shown: Scored(np.ones(40, bool), sequences, errors + more, errors / 2, 0, None)
            for shown in ("rgbd", "rgb")
        }
        for more in (0.0, 2.0)
    ]
    table = against_first("wide", {"ours": rows[0], "theirs": rows[1]})
    assert len(table) == 8
    (worse,) = [row for row in table if row.what == "wide, RGB-D, MPJPE: theirs 44.50"]
    assert worse.reference == "first 42.50, lower by 2.000 mm [2.000, 2.000] (sure)"
    assert worse.ratio == pytest.approx(42.5 / 44.5)


def test_cameras_of_one_motion_are_no_proof() -> None:
    """What is hard for one camera is hard for the other: intervals were up to a third too narrow."""
    sequences = np.array([f"train/ABF1{k // 4}" for k in range(40)])
    errors = np.linspace(5.0, 80.0, 40)
    ours, theirs = (
        {"rgbd": Scored(np.ones(40, bool), sequences, errors + more, errors + more, 0, None)}
        for more in (0.0, 2.0)
    )
    assert "not sure" in against_first("wide", {"ours": ours, "theirs": theirs})[-1].reference
