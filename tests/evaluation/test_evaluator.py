"""From rows to the result, its log lines and its file."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest

from src.errors import CollectError, DataError
from src.evaluation import metrics
from src.evaluation.evaluator import write_per_sample
from src.evaluation.report import report_lines
from src.evaluation.seeded import make_samples
from src.hand.joints import OPENPOSE21
from tests.evaluation.ranks import score_alone as score


def test_log_lines_are_the_contract():
    """Users grep these lines; a changed space breaks their notes."""
    names = ("zero_mpjpe_mm", "zero_pa_mm", "mean_pose_mpjpe_mm", "mean_pose_pa_mm")
    baselines = dict(zip(names, (102.152, 48.32, 90.0, 12.7), strict=True))
    result = score(make_samples(3, 0), baselines=baselines)
    result = dataclasses.replace(result, loss=3.891, mpjpe_mm=102.152, pa_mpjpe_mm=48.32)
    assert report_lines(result, 1, "GPUs") == [
        "  Val Loss: 3.891, MPJPE: 102.152 mm, PA-MPJPE: 48.320 mm",
        "  Evaluated on 3 samples from all 1 GPUs",
        "  Baselines of this split: zero pose MPJPE 102.152 mm, PA-MPJPE 48.320 mm; "
        "mean pose MPJPE 90.000 mm, PA-MPJPE 12.700 mm",
    ]


def test_no_evaluated_line_without_the_count():
    """The line is worth something only if it cannot be printed for samples nobody counted."""
    result = score(make_samples(3, 0))
    for changed, world in ((result, 4), (dataclasses.replace(result, num_samples=8332), 1)):
        with pytest.raises(CollectError, match="3 samples from 1 ranks were counted"):
            report_lines(changed, world, "GPUs")


def test_the_loss_is_a_mean_over_samples():
    """A mean of batch means printed 50.5 instead of 4.0 for 33 samples with a last batch of one."""
    samples = make_samples(33, 0)
    samples.loss[:] = 2.5
    samples.loss[32] = 52.0
    assert score(samples).loss == (32 * 2.5 + 52.0) / 33


def test_a_nan_prediction_can_never_win():
    """One NaN row, labelled or not, makes the metric nan, is counted and located; it is never the best."""
    samples = make_samples(40, 0)
    assert score(samples).is_finite
    samples.conf[12] = 0.0  # a network that is broken on an unlabelled frame is broken
    for sample, value, found in ((12, math.inf, (12,)), (37, math.nan, (12, 37))):
        samples.pred[sample, 4, 2] = value
        result = score(samples)
        assert np.isnan([result.mpjpe_mm, result.pa_mpjpe_mm]).all()
        assert (result.nonfinite_indices, result.is_finite) == (found, False)
    assert "  Non-finite predictions: 2 (samples 12, 37)" in report_lines(result, 1, "GPUs")
    samples.pred[:] = math.nan  # this once scored 65 mm
    result = score(samples)
    assert math.isnan(result.mpjpe_mm)
    assert (result.nonfinite_count, result.nonfinite_indices) == (40, tuple(range(10)))
    assert "samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in report_lines(result, 1, "GPUs")[2]


def test_unusable_labels_are_counted_and_not_scored():
    """A frame without a label has no error: as 0 it would flatter, dropped silently it would hide."""
    samples = make_samples(10, 0)
    expected = metrics.mpjpe_mm(samples.pred, samples.target)
    samples.conf[3] = 0.0
    samples.target[6, 2] = math.nan
    samples.loss[3] = math.nan
    result = score(samples)
    kept = np.delete(np.arange(10), [3, 6])
    assert (result.num_samples, result.unusable_labels) == (8, 2)
    assert result.mpjpe_mm == math.fsum(expected[kept].tolist()) / 8
    assert math.isfinite(result.loss)
    assert np.isnan(result.rows.mpjpe_mm[[3, 6]]).all()
    lines = report_lines(result, 1, "GPUs")
    assert lines[1] == "  Evaluated on 8 samples from all 1 GPUs"
    assert "  Unusable ground truth: 2 of 10 samples, not scored" in lines


def meshes(size, unlabelled=()):
    """Columns of a mesh per sample; those without a label are nan and not usable."""
    values = np.arange(size, dtype=np.float64) + 0.1
    values[list(unlabelled)] = np.nan
    return {
        "mpvpe_mm": values,
        "pa_mpvpe_mm": values / 2,
        "mesh_usable": np.isfinite(values).astype(np.float64),
    }


def test_vertices_are_reported_over_the_labelled_meshes():
    """A frame without a mesh scored as 0, or as nan, would make the mesh's score useless."""
    result = score(make_samples(8, 0), meshes(8, unlabelled=(2, 5)))
    kept = np.delete(np.arange(8) + 0.1, [2, 5])
    assert result.columns == {
        "mpvpe_mm": math.fsum(kept) / 6,
        "pa_mpvpe_mm": math.fsum(kept / 2) / 6,
        "mesh_usable": 6.0,
    }
    assert result.is_finite
    lines = report_lines(result, 1, "GPUs")
    assert lines[2] == "  Vertices: MPVPE 3.600 mm, PA-MPVPE 1.800 mm (6 of 8 meshes labelled)"
    whole = report_lines(score(make_samples(8, 0), meshes(8)), 1, "GPUs")
    assert whole[2] == "  Vertices: MPVPE 3.600 mm, PA-MPVPE 1.800 mm"
    assert not any("Vertices" in line for line in report_lines(score(make_samples(8, 0)), 1, "GPUs"))


def test_a_mesh_that_is_not_finite_is_a_broken_prediction():
    """Finite joints beside NaN vertices: the mean must not skip the row, nor the network become the best."""
    columns = meshes(8, unlabelled=(2,))
    columns["mpvpe_mm"][6] = math.nan
    result = score(make_samples(8, 0), columns)
    assert math.isnan(result.columns["mpvpe_mm"])
    assert math.isnan(result.mpjpe_mm)
    assert (result.nonfinite_count, result.nonfinite_indices) == (1, (6,))
    assert not result.is_finite


def test_the_file_carries_columns_split_and_units_but_no_labels(tmp_path):
    """Two files can be compared without the data; and whoever shares one shares no labels of HO3D."""
    samples = make_samples(5, 0)
    columns = meshes(5, unlabelled=(1,)) | {"mesh_mean3d": np.ones(5), "f_score_5": np.ones(5)}
    frames = [f"ABF10/{i:04d}" for i in range(5)]
    with pytest.raises(DataError, match="unit 'speed' is"):
        write_per_sample(tmp_path / "a.npz", score(samples, {"speed": np.ones(5)}), frames, split="val")
    assert not (tmp_path / "a.npz").exists()
    write_per_sample(tmp_path / "a.npz", score(samples, columns), frames, split="val")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        content = dict(file)
    units = dict(zip(content["columns"], content["units"], strict=True))
    assert np.array_equal(content["mpvpe_mm"], columns["mpvpe_mm"], equal_nan=True)
    assert units["mpvpe_mm"] == "mm, mean over vertices, wrist-relative"
    assert (units["mesh_mean3d"], units["f_score_5"]) == ("cm", "1")
    assert tuple(content["joint_names"]) == OPENPOSE21
    assert content["frame"][3] == "ABF10/0003"
    assert all(len(content[name]) == 5 for name in content["columns"])
    assert (str(content["split"]), str(content["split_hash"])) == ("val", "test")
    arrays = [a for name, a in content.items() if a.ndim == 3]
    assert len(arrays) == 1
    assert np.array_equal(arrays[0], samples.pred.numpy())


def test_equal_results_are_equal_files_and_other_frames_are_refused(tmp_path, monkeypatch):
    """Two runs of one checkpoint must be comparable with cmp: no clock; names of another split lie."""
    result = score(make_samples(5, 0))
    frames = [f"ABF10/{i:04d}" for i in range(5)]
    write_per_sample(tmp_path / "a.npz", result, frames, split="val")
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    write_per_sample(tmp_path / "b.npz", result, frames, split="val")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with pytest.raises(DataError, match="4 frame names for 5 samples"):
        write_per_sample(tmp_path / "c.npz", result, ["x"] * 4, split="val")
    with pytest.raises(DataError, match="rank 0"):
        write_per_sample(tmp_path / "c.npz", dataclasses.replace(result, rows=None), frames, split="val")
