"""What a run writes down: each scalar under its name, at its step, in its unit; and the curve of a resume."""

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
from src.schema import LossTerms
from src.training.recorder import Recorder
from src.training.step import Numbers, StepReport
from tests.training.toy import ALONE, toy_batch, toy_trainer

BASELINES = {"zero_mpjpe_mm": 110.0, "zero_pa_mm": 50.0, "mean_pose_mpjpe_mm": 80.0,
             "mean_pose_pa_mm": 30.0, "nearest_pose_pa_mm": 12.0}  # fmt: skip
COLUMNS = {"mpvpe_mm": 21.0, "pa_mpvpe_mm": 11.0, "coarse_mpjpe_mm": 23.0, "coarse_pa_mpjpe_mm": 13.0,
           "mesh_usable": 40.0}  # fmt: skip


def result(mpjpe_mm: float = 20.0, loss: float = 3.0) -> CheckedResult:
    """A validation whose numbers are all apart."""
    return CheckedResult(
        num_samples=40,
        mpjpe_mm=mpjpe_mm,
        pa_mpjpe_mm=10.0,
        loss=loss,
        nonfinite_count=0,
        nonfinite_indices=(),
        unusable_labels=0,
        baselines=BASELINES,
        columns=COLUMNS,
        receipt=Receipt(40, 1),
        rows=None,
    )


def lines(folder: Path) -> list[dict[str, float]]:
    """Lines of scalars.jsonl without the clock."""
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]


def report(step: int) -> StepReport:
    """A step on batches of 2, 3 and 3 samples, whose numbers are all apart."""
    batches = [toy_batch(1), toy_batch(2, size=3), toy_batch(3, size=3)]
    own = toy_trainer()(batches)
    terms = LossTerms(torch.tensor(9.0), {"root": torch.tensor(0.25)}, {"root": 4.0})
    numbers = Numbers(torch.tensor([1.5, 40.0, 0.0]))
    done = [(batch, prediction, terms) for batch, prediction, _ in own.batches]
    return dataclasses.replace(
        own, step=step, numbers=numbers, clip_norm=8.0, learning_rate=2e-3, batches=done
    )


def test_scalars_of_a_step(tmp_path: Path) -> None:
    """Loss, rate and norm are those of the step and not this rank's, the peak's or the limit; samples are
    counted over all accumulated batches: 8 a step at 2.5 steps a second are 20.
    """
    recorder = Recorder(tmp_path, ALONE)
    recorder.step(7, report(6), 0.125, Pace(rounds_per_s=2.5, data_wait_share=0.3))
    recorder.close()
    assert lines(tmp_path) == [
        {
            "step": 7,
            "Train/loss": 1.5,
            "Train/lr": 2e-3,
            "Train/grad_norm": 40.0,
            "Train/clipped_share": 0.125,
            "Train/samples_per_s_and_rank": 20.0,
            "Train/data_wait_share": 0.3,
            "Train/loss/root": 0.25,
        }
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("Train/grad_norm")] == [(7, 40.0)]


def test_scalars_of_a_validation(tmp_path: Path) -> None:
    """With depth under Val/, without under Val/RGB-only/; every number under its own name."""
    recorder = Recorder(tmp_path, ALONE)
    recorder.validation(12, "rgbd", result())
    recorder.validation(12, "rgb", result(mpjpe_mm=25.0, loss=float("nan")))
    recorder.close()
    names = {"MPVPE": 21.0, "PA-MPVPE": 11.0, "coarse/MPJPE": 23.0, "coarse/PA-MPJPE": 13.0, "PA-MPJPE": 10.0}
    assert lines(tmp_path) == [
        {"step": 12, "Val/loss": 3.0, "Val/MPJPE": 20.0}
        | {f"Val/{name}": value for name, value in names.items()}
        | {f"Val/baseline/{name}": value for name, value in BASELINES.items()},
        {"step": 12, "Val/RGB-only/loss": None, "Val/RGB-only/MPJPE": 25.0}
        | {f"Val/RGB-only/{name}": value for name, value in names.items()},
    ]


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


def test_ranks_that_do_not_write_write_nothing(tmp_path: Path) -> None:
    """Four ranks that append to one file would mix their lines."""
    recorder = Recorder(tmp_path, dataclasses.replace(ALONE, rank=1))
    recorder.scalars(1, {"Train/loss": 1.0})
    recorder.validation(1, "rgbd", result())
    recorder.step(1, report(0), 0.0, Pace(1.0, 0.0))
    recorder.close()
    assert list(tmp_path.iterdir()) == []


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
