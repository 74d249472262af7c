"""The ablation's equal time: the number of steps that each arm may take."""

import json
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.ablation import CONFIG, EPOCHS, FULL, finished, main, steps_of_arms
from src.config_file import config_to_yaml, load_config

SECONDS = {FULL: 1.0, "cheap": 0.8, "dear": 1.25}


def test_a_cheaper_step_is_taken_more_often() -> None:
    """Arms with equal steps would call a part worthless for what it costs, or worth what it does not cost."""
    steps = steps_of_arms(SECONDS, samples=EPOCHS * 32 * 100, batch=32, there=125)
    assert steps == {FULL: 100, "cheap": 125, "dear": 80}
    assert all(steps[name] * SECONDS[name] == pytest.approx(100) for name in steps)


def test_more_than_the_data_give_is_refused() -> None:
    """An epoch that ends with the data would quietly give the cheapest arm less time than the others."""
    with pytest.raises(
        ValueError, match="'cheap' needs 125 steps in each of 5 epochs, the data give 124"
    ) as no:
        steps_of_arms(SECONDS, samples=EPOCHS * 32 * 100, batch=32, there=124)
    few = int(str(no.value).rsplit(" ", 1)[1])
    assert max(steps_of_arms(SECONDS, few, batch=32, there=124).values()) <= 124


def test_no_samples_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative number would train one step an epoch, after minutes of writing data."""
    monkeypatch.setattr(ablation, "_write_data", lambda *_: pytest.fail("data were written"))
    with pytest.raises(SystemExit) as stopped:
        main(["--samples", "-5"])
    assert stopped.value.code == 2
    assert "want at least 160" in capsys.readouterr().err


def test_a_run_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """After a change of the recipe, an old run of the same name would be compared with new ones."""
    arm = load_config(CONFIG, ("name=ablation-0-9-full",))
    assert finished(arm, tmp_path) is None
    scores = {
        "Val/MPJPE": 20.0,
        "Val/PA-MPJPE": 10.0,
        "Val/RGB-only/MPJPE": 30.0,
        "Val/RGB-only/PA-MPJPE": 12.0,
    }

    def write(folder: str, *settings: str, epochs: int = EPOCHS, pa_mm: float = 10.0) -> None:
        (tmp_path / folder).mkdir()
        text = config_to_yaml(load_config(CONFIG, ("name=ablation-0-9-full", *settings)))
        (tmp_path / folder / "config.yaml").write_text(text, encoding="utf-8")
        rows = [{"minutes": float(k + 1), "Train/epoch_loss": 1.0} for k in range(epochs)]
        rows.append({"minutes": float(epochs), **scores, "Val/PA-MPJPE": pa_mm})
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / folder / "scalars.jsonl").write_text(lines, encoding="utf-8")

    write("20260101-000000-ablation-0-9-full", pa_mm=9.0)
    write("20260102-000000-ablation-0-9-full", pa_mm=10.0)
    write("20260103-000000-ablation-0-9-full", "dataset.p_drop_depth=0.9", pa_mm=7.0)
    write("20260104-000000-ablation-0-9-full", epochs=EPOCHS - 1, pa_mm=8.0)
    (tmp_path / "20260105-000000-ablation-0-9-full").mkdir()
    found = finished(arm, tmp_path)
    assert found is not None
    assert (found.rgbd_pa, found.rgb_mpjpe, found.minutes) == (10.0, 30.0, EPOCHS)
