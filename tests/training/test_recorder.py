"""What a run writes down: the scalars of a step, and the curve of a resume."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import train
from src.config import DatasetConfig, OptimizerConfig, RunConfig
from src.evaluation.baselines.scores import BaselineRows
from src.evaluation.collect import Receipt
from src.evaluation.evaluator import CheckedResult, SampleRows
from src.runtime.progress import Pace
from src.training.recorder import Recorder
from src.training.step import Numbers
from src.training.validation import Outcome
from tests.models.scene import hand_model
from tests.training.toy import ALONE, toy_batch, toy_trainer


def result(mpjpe_mm: float = 20.0, loss: float = 3.0, rows: SampleRows | None = None) -> CheckedResult:
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
        rows=rows,
    )


def rows_of(mpjpe_mm: list[float], usable: list[bool]) -> SampleRows:
    """What samples scored; their joints do not matter."""
    errors, joints = np.array(mpjpe_mm), np.zeros((len(mpjpe_mm), 21, 3), np.float32)
    in_view = np.ones((len(mpjpe_mm), 21), np.int8)
    return SampleRows(errors, errors, errors, np.array(usable), joints, joints, in_view, {})


def events_of(folder: Path) -> EventAccumulator:
    """All that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    return events


def lines(folder: Path) -> list[dict[str, float]]:
    """Lines of scalars.jsonl without the clock."""
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]


def test_what_decorates_is_done_beside_the_run_in_its_order(tmp_path: Path) -> None:
    """A page may not hold up a training, nor be lost at its end; two pages at once would mix their files."""
    recorder, done, go = Recorder(tmp_path, ALONE), [], [threading.Event(), threading.Event()]
    recorder.later(lambda: (go[0].wait(60), done.append("first")))
    assert done == []
    go[0].set()
    recorder.later(lambda: (go[1].wait(60), done.append("second")))
    threading.Timer(0.1, go[1].set).start()
    recorder.close()
    assert done == ["first", "second"]


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
    events = events_of(tmp_path)
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


def test_tensorboard_compares_runs_by_their_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """HPARAMS has one row a run, under the run's name, with scores: no run named by the clock beside it, and
    no column of a score that nobody records. TEXT tells what a resumed run went on with.
    """
    odd = Path(os.fsdecode("手".encode("gbk")))  # names of files need not be text
    for step, lr in ((0, 3e-4), (5, 1e-4)):
        recorder = Recorder(tmp_path, ALONE, resume_step=step)
        config = RunConfig(optimizer=OptimizerConfig(lr=lr), dataset=DatasetConfig(root_dir=odd))
        recorder.write_setup(config, hand_model(), {})
        for shown in ("rgbd", "rgb"):
            recorder.validation(step + 5, shown, result())
            recorder.validation(step + 6, shown, result())
        recorder.close()
    assert caplog.records == []
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir())
    events = events_of(tmp_path)
    texts = {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors("Settings/text_summary")}
    assert {step: ("  lr: 0.0003\n" in text, "  lr: 0.0001\n" in text) for step, text in texts.items()} == {
        0: (True, False),
        5: (False, True),
    }
    content = {
        tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.PluginTagToContent("hparams")
    }
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    table = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert start.group_name == tmp_path.name
    assert start.hparams["optimizer.lr"].number_value == 3e-4
    assert start.hparams["augmentation.enabled"].bool_value is True
    assert start.hparams["dataset.root_dir"].string_value == "\\udcca\\udcd6"
    assert {column.name for column in table.hparam_infos} == set(start.hparams)
    assert sum(column.differs for column in table.hparam_infos) == 5, "of others TensorBoard shows none"
    scores = {score.name.tag for score in table.metric_infos}
    assert len(scores) == 4
    assert scores <= set(events.Tags()["scalars"])


def test_histograms_are_of_what_was_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One nan must not end a run nor hide the others' errors; a sample without a label has no error; gradient
    norms are shown once. Nothing to show is no failure.
    """
    done = toy_trainer()([toy_batch(1)])
    norms = [
        dataclasses.replace(done, numbers=Numbers(torch.tensor([1.5, x, 0.0]))) for x in (2.0, torch.inf)
    ]
    for rank in (1, 0):
        recorder = Recorder(tmp_path, dataclasses.replace(ALONE, rank=rank))
        for report in norms:
            recorder.step(4, report, 0.0, Pace(rounds_per_s=2.5, data_wait_share=0.3))
        scored = rows_of([10.0, np.nan, 30.0, 7.0], [True, True, True, False])
        recorder.validation(4, "rgbd", result(rows=scored if rank == 0 else None))
        recorder.validation(4, "rgb", result(rows=rows_of([5.0], [False]) if rank == 0 else None))
        recorder.validation(8, "rgbd", result(rows=scored if rank == 0 else None))
        recorder.close()
        assert (list(tmp_path.iterdir()) == []) == (rank == 1)
    assert caplog.records == []
    events = events_of(tmp_path)
    shown = {
        tag: [(e.step, h.num, h.min, h.max) for e in events.Histograms(tag) for h in (e.histogram_value,)]
        for tag in events.Tags()["histograms"]
    }
    assert shown == {
        "Train/grad_norm of recorded steps": [(4, 1.0, 2.0, 2.0)],
        "Val/MPJPE per sample": [(4, 2.0, 10.0, 30.0), (8, 2.0, 10.0, 30.0)],
    }


def test_official_scores_have_curves_of_their_own(tmp_path: Path) -> None:
    """Numbers in cm, by the official script's rules: under Val/ they would be compared with ours."""
    official = {"RGB-D": {"xyz_mean3d": 1.5, "f_score_5": 0.25}, "RGB-only": {"xyz_mean3d": 2.5}}
    recorder = Recorder(tmp_path, ALONE)
    train.record(
        recorder, 9, {}, Outcome({}, [], "evaluation", BaselineRows({}, np.zeros(0, bool)), official)
    )
    recorder.close()
    want = {"Eval/xyz_mean3d": 1.5, "Eval/f_score_5": 0.25, "Eval/RGB-only/xyz_mean3d": 2.5}
    assert {name: value for row in lines(tmp_path) for name, value in row.items()} == {"step": 9} | want
    events = events_of(tmp_path)
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == want
