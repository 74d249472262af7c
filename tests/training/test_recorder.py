"""What a run writes down: the scalars of a step, and the curve of a resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.evaluation.collect import Receipt
from src.evaluation.evaluator import CheckedResult
from src.runtime.progress import Pace
from src.training.recorder import Recorder
from src.training.step import Numbers
from tests.training.toy import ALONE, toy_batch, toy_trainer


def result(mpjpe_mm: float = 20.0, loss: float = 3.0) -> CheckedResult:
    """A validation."""
    return CheckedResult(
        num_samples=40,
        mpjpe_mm=mpjpe_mm,
        pa_mpjpe_mm=10.0,
        loss=loss,
        nonfinite_count=0,
        nonfinite_indices=(),
        unusable_labels=0,
        baselines={},
        columns={},
        receipt=Receipt(40, 1),
        rows=None,
    )


def lines(folder: Path) -> list[dict[str, float]]:
    """Lines of scalars.jsonl without the clock."""
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]


def test_scalars_of_a_step(tmp_path: Path) -> None:
    """Samples are counted over all accumulated batches: 2, 3 and 3 at 2.5 steps a second are 20; what is not
    finite is null. Ranks that do not write write nothing: four that append to one file would mix their lines.
    """
    done = toy_trainer()([toy_batch(1), toy_batch(2, size=3), toy_batch(3, size=3)])
    report = dataclasses.replace(done, numbers=Numbers(torch.tensor([1.5, torch.inf, 0.0])))
    for rank in (1, 0):
        recorder = Recorder(tmp_path, dataclasses.replace(ALONE, rank=rank))
        recorder.step(7, report, 0.125, Pace(rounds_per_s=2.5, data_wait_share=0.3))
        recorder.validation(7, "rgbd", result())
        recorder.close()
        assert (list(tmp_path.iterdir()) == []) == (rank == 1)
    assert lines(tmp_path)[0] == {
        "step": 7,
        "Train/loss": 1.5,
        "Train/lr": done.learning_rate,
        "Train/grad_norm": None,
        "Train/clipped_share": 0.125,
        "Train/samples_per_s_and_rank": 20.0,
        "Train/data_wait_share": 0.3,
        "Train/loss/votes": pytest.approx(float(done.terms.values["votes"].detach())),
    }


def test_a_resume_keeps_the_curve_up_to_its_step(tmp_path: Path) -> None:
    """Steps that will be done again are dropped, the step that is resumed from is kept, minutes go on."""
    recorder = Recorder(tmp_path, ALONE)
    recorder._began -= 60 * 30
    for step in range(1, 6):
        recorder.scalars(step, {"Train/loss": float(step)})
    recorder.close()
    with (tmp_path / "scalars.jsonl").open("a") as file:
        file.write('{"step": 6, "Tra')  # killed in the middle of a line
    again = Recorder(tmp_path, ALONE, resume_step=3)
    assert [(row["step"], row["Train/loss"]) for row in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3)]
    again.scalars(4, {"Train/loss": 40.0})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [(row["step"], row["Train/loss"]) for row in rows] == [(1, 1), (2, 2), (3, 3), (4, 40.0)]
    assert rows[-1]["minutes"] == pytest.approx(30.0, abs=1.0), "of the whole run, not of its last part"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("Train/loss")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_broken_lines_bar_no_resume_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line of another program, years of training behind it: the curve goes on, and it is said."""
    good = [b'{"step": %d, "minutes": %d.5, "Train/loss": 2.0}\n' % (k, k) for k in range(1, 6)]
    broken = [b'{"step": true}\n', b'{"step": 2, "minutes": "3"}\n', b'{"step": 2, "minutes": 1e308}\n',
              b'{"step": 2, "minutes": -1}\n']  # fmt: skip
    path = tmp_path / "scalars.jsonl"
    path.write_bytes(good[0] + b"".join(broken) + b"".join(good[1:]) + b'{"step": 6, "Tr')
    with caplog.at_level("WARNING"):
        recorder = Recorder(tmp_path, ALONE, resume_step=4)
    assert path.read_bytes() == b"".join(good[:4])
    assert [r.message for r in caplog.records] == [
        f"WARNING: {path}: 4 lines are no scalars (first: line 2), passed over"
    ]
    recorder.scalars(5, {"Train/loss": 1.0})
    recorder.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["minutes"] == pytest.approx(4.5, abs=1.0)  # goes on from the last line that is kept
