"""The official HO3D set: equal to the official script's recorded numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from src.errors import ShapeError
from src.evaluation.official import official_ho3d, official_joint_rows, official_mesh_rows
from src.runtime.seed import stream
from tests.evaluation.official.official_sets import make_frames
from tests.evaluation.test_metrics import hands

GOLDEN = json.loads((Path(__file__).parent / "golden" / "official.json").read_text(encoding="utf-8"))
NANOMETRE_CM = 1e-7


@pytest.mark.parametrize("name", ["random", "realistic", "degenerate"])
def test_scores_are_the_official_scripts(name):
    """People compare these numbers with the leaderboard: frame by frame, they must be the script's own.

    1e-9 m for distances; F-scores exactly, each frame's. The script's mean of F over frames is rounded, ours
    is not, so the two may differ in the last bit.
    """
    frames, golden = make_frames(name), GOLDEN["sets"][name]
    inputs = [frames.pred_joints, frames.target_joints, frames.pred_mesh, frames.target_mesh]
    assert [x.mean() for x in inputs] == pytest.approx(GOLDEN["made"]["inputs_mean"][name], rel=1e-12)
    rows = official_joint_rows(*inputs[:2]) | official_mesh_rows(*inputs[2:])
    for score, values in golden["rows"].items():
        if score.startswith("f_"):
            assert rows[score].tolist() == values, score
        else:
            np.testing.assert_allclose(rows[score], values, rtol=0, atol=NANOMETRE_CM, err_msg=score)
    scores = official_ho3d(*inputs)
    assert sorted(scores) == sorted(golden["scores"])
    for score, value in golden["scores"].items():
        if score.endswith("mean3d"):
            assert scores[score] == pytest.approx(value, abs=NANOMETRE_CM), score
        elif name == "degenerate" and "_al_auc" in score:
            # A point that fits to the last bit counts at the threshold 0 if its rounding error is 0.
            assert scores[score] == pytest.approx(value, abs=1e-3), score
        else:
            assert scores[score] == pytest.approx(value, abs=1e-14), score


def test_rows_do_not_depend_on_chunks_or_neighbours():
    """Ranks score batches, one process scores all: the bits of a frame must be the same."""
    target = hands(130, joints=90)
    pred = target + stream(1, "rows").normal(0.0, 0.006, target.shape)
    for rows, points in ((official_mesh_rows, 90), (official_joint_rows, 21)):
        one = rows(pred[:, :points], target[:, :points])
        part = rows(pred[61:70, :points], target[61:70, :points])
        assert all(np.array_equal(one[name][61:70], part[name]) for name in one)


def test_no_frames_and_wrong_shapes():
    """An empty split has no scores; a transposed mesh or a lone mesh is refused."""
    none = [np.empty((0, points, 3)) for points in (21, 21, 778, 778)]
    assert all(math.isnan(value) for value in official_ho3d(*none).values())
    truth, mesh = hands(3), hands(3, joints=50)
    wrong = (truth, truth[:2]), (mesh, mesh), (truth, truth, mesh), (truth, truth, mesh[:2], mesh[:2])
    for arguments in wrong:
        with pytest.raises(ShapeError):
            official_ho3d(*arguments)


def test_official_scores_of_a_nan_are_nan():
    """A non-finite prediction may not count as a finite score, nor lower the mesh's."""
    truth, mesh = hands(3), hands(3, joints=50)
    pred = truth.copy()
    pred[1, 2, 0] = np.nan
    scores = official_ho3d(pred, truth, mesh, mesh)
    assert all(math.isnan(v) for name, v in scores.items() if name.startswith("xyz"))
    assert scores["f_score_5"] == 1.0
    assert scores["mesh_mean3d"] == 0.0
    assert math.isnan(official_ho3d(truth, truth, mesh * np.nan, mesh)["f_al_score_15"])
