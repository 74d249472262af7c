"""The ablation's equal time: the number of steps that each arm may take."""

import json
from pathlib import Path

import pytest

from benchmarks import equal_time
from benchmarks.ablation import ARMS
from benchmarks.equal_time import CONFIG, EPOCHS, finished, steps_of_arms, train_arm
from src.config_file import config_to_yaml, load_config

SECONDS = {"full": 1.0, "cheap": 0.8, "dear": 1.25}


def test_a_cheaper_step_is_taken_more_often() -> None:
    """Arms with equal steps would call a part worthless for what it costs, or worth what it does not cost."""
    steps = steps_of_arms(SECONDS, samples=EPOCHS * 32 * 100, batch=32, there=125)
    assert steps == {"full": 100, "cheap": 125, "dear": 80}
    assert all(steps[name] * SECONDS[name] == pytest.approx(100) for name in steps)


def test_more_than_the_data_give_is_refused() -> None:
    """An epoch that ends with the data would quietly give the cheapest arm less time than the others."""
    with pytest.raises(
        ValueError, match="'cheap' needs 125 steps in each of 5 epochs, the data give 124"
    ) as no:
        steps_of_arms(SECONDS, samples=EPOCHS * 32 * 100, batch=32, there=124)
    few = int(str(no.value).rsplit(" ", 1)[1])
    assert max(steps_of_arms(SECONDS, few, batch=32, there=124).values()) <= 124


def write_run(
    runs: Path, folder: str, *settings: str, epochs: int = EPOCHS, pa_mm: float = 10.0, code: str = "aaaa"
) -> None:
    """A run folder as train.py leaves it, as far as the ablation reads it."""
    (runs / folder).mkdir(parents=True)
    config = load_config(CONFIG, settings)
    (runs / folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    (runs / folder / "meta.json").write_text(json.dumps({"commit": code}), encoding="utf-8")
    rows = [{"minutes": float(k + 1), "Train/epoch_loss": 1.0} for k in range(epochs)]
    scores = {"Val/MPJPE": 20.0, "Val/PA-MPJPE": pa_mm}
    scores |= {"Val/RGB-only/MPJPE": 30.0, "Val/RGB-only/PA-MPJPE": 12.0}
    lines = "\n".join(map(json.dumps, [*rows, {"minutes": float(epochs), **scores}]))
    (runs / folder / "scalars.jsonl").write_text(lines, encoding="utf-8")


def test_a_run_of_another_recipe_or_another_code_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """After a change, an old run of the same name would be compared with new ones."""
    name, label = "name=ablation-0-9-full", "-ablation-0-9-full"
    arm = load_config(CONFIG, (name,))
    assert finished(arm, "aaaa", tmp_path) is None
    write_run(tmp_path, "20260101-000000" + label, name, pa_mm=9.0)
    write_run(tmp_path, "20260102-000000" + label, name, pa_mm=10.0)
    write_run(tmp_path, "20260103-000000" + label, name, "dataset.p_drop_depth=0.9", pa_mm=7.0)
    write_run(tmp_path, "20260104-000000" + label, name, epochs=EPOCHS - 1, pa_mm=8.0)
    write_run(tmp_path, "20260105-000000" + label, name, code="bbbb", pa_mm=6.0)
    write_run(tmp_path, "20260106-000000" + label, name)
    (tmp_path / ("20260106-000000" + label) / "scalars.jsonl").unlink()
    (tmp_path / ("20260107-000000" + label)).mkdir()
    found = finished(arm, "aaaa", tmp_path)
    assert found is not None
    assert (found.rgbd_pa, found.rgb_mpjpe, found.minutes) == (10.0, 30.0, EPOCHS)
    newest = finished(arm, None, tmp_path)
    assert newest is not None
    assert newest.rgbd_pa == 6.0


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

    def train(command: list[str], **_: object) -> None:
        settings = command[command.index(str(CONFIG)) + 1 :]
        label = next(s for s in settings if s.startswith("name=")).removeprefix("name=")
        trained.append(label)
        write_run(
            Path("runs"), f"2026010{len(trained)}-000000-{label}", *settings, pa_mm=len(trained), code=before
        )

    monkeypatch.setattr(equal_time.subprocess, "run", train)
    arm, name = ARMS["no modality sampling"], "ablation-3-9-no-modality-sampling"
    assert train_arm(arm, name, ("seed=3",), 9).rgbd_pa == 1
    assert train_arm(arm, name, ("seed=3",), 9).rgbd_pa == (1 if kept else 2)
    assert trained == [name] * (1 if kept else 2)
