"""The ablation's equal time: the number of steps that each arm may take."""

import pytest

from benchmarks import ablation
from benchmarks.ablation import EPOCHS, FULL, main, steps_of_arms

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
