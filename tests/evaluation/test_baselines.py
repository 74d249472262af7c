"""What a network that learned nothing would score."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import DataError
from src.evaluation.baselines import scores as baselines
from src.evaluation.baselines.scores import (
    NAMES,
    BaselineRows,
    cached_baselines,
    compute_baselines,
    mean_pose_m,
)
from src.evaluation.report import report_lines
from src.evaluation.seeded import Samples
from src.hand.mano import ManoLayer
from src.runtime.seed import stream
from src.schema import HandLabels, LabelTable
from tests.evaluation.ranks import score_alone
from tests.hand_file import hand_file


@pytest.fixture(scope="module")
def hand() -> ManoLayer:
    return ManoLayer.from_file(hand_file())


def table(hand: ManoLayer, count: int, seed: int, curl: float = 0.3, turn_about: float = 9.0) -> LabelTable:
    """Posed hands; `curl` and `turn_about` are the spread in rad of finger joints and wrists."""
    random = stream(seed, "table")
    turn = Rotation.from_rotvec(random.normal(0.0, turn_about, (count, 3))).as_matrix()
    bend = Rotation.from_rotvec(random.normal(0.0, curl, (count * 15, 3))).as_matrix()
    pose = bend.reshape(count, 15, 3, 3)
    betas, place = random.normal(0.0, 1.0, (count, 10)), random.normal(0.0, 0.2, (count, 3))
    parts = [np.asarray(part, np.float32) for part in (turn, pose, betas, place)]
    with torch.no_grad():
        joints = hand(*map(torch.from_numpy, parts)).joints_m.numpy()
    ones = np.ones((count, 21), np.float32)
    return HandLabels(joints, ones, joints[:, 0], parts[3], *parts[:3], np.ones(count, bool))


def take(labels: LabelTable, rows: np.ndarray) -> LabelTable:
    return labels.map(lambda array: array[rows])


def test_an_all_zero_network_scores_exactly_the_zero_baseline(hand: ManoLayer) -> None:
    """102.152 / 48.320 mm was the score of a network of zeros; beside its baseline it shows at once."""
    labels = table(hand, 12, 1)
    scores = compute_baselines(labels, labels, hand).scores()
    truth = torch.from_numpy(labels.joints_cam_m)
    samples = Samples(torch.zeros(12, 21, 3), truth, torch.ones(12, 21), torch.zeros(12))
    result = score_alone(samples, baselines=scores)
    assert result.mpjpe_mm == scores["zero_mpjpe_mm"]
    assert result.pa_mpjpe_mm == scores["zero_pa_mm"]
    text = "\n".join(report_lines(result, 1, "GPUs"))
    assert f"zero pose MPJPE {result.mpjpe_mm:.3f} mm, PA-MPJPE {result.pa_mpjpe_mm:.3f} mm" in text
    assert f"nearest training pose PA-MPJPE {scores['nearest_pose_pa_mm']:.3f} mm" in text


def test_mean_pose_finds_the_middle(hand: ManoLayer) -> None:
    """Wrists and fingers spread about known rotations: their mean is that hand, not a shrunken matrix nor the
    mean of turned joints, a clot whose PA makes a mean hand's look like learning.
    """
    random = stream(5, "middle")
    centre = Rotation.random(16, rng=random)
    count = 4000
    spread = Rotation.from_rotvec(random.normal(0.0, 0.5, (count * 16, 3)))
    turned = (Rotation.concatenate([centre] * count) * spread).as_matrix().reshape(count, 16, 3, 3)
    labels = table(hand, count, 1)
    labels.global_orient[:], labels.hand_pose[:] = turned[:, 0], turned[:, 1:]
    labels.betas[:] = random.normal(0.7, 1.0, (count, 10))
    matrix = torch.from_numpy(centre.as_matrix())[None]
    with torch.no_grad():
        want = hand(matrix[:, 0], matrix[:, 1:], torch.full((1, 10), 0.7).double(), torch.zeros(1, 3))
    want_m = (want.joints_m - want.joints_m[:, :1])[0].numpy()
    got_m = mean_pose_m(labels, np.ones(count, bool), hand)
    assert np.linalg.norm(got_m - want_m, axis=1).max() < 0.004  # of a hand of 180 mm
    assert np.all(got_m[0] == 0.0)


def test_baselines_are_those_of_the_scored_rows(hand: ManoLayer) -> None:
    """A baseline of other rows than the metric's is no baseline."""
    train, val = table(hand, 60, 1), table(hand, 10, 2)
    rest = np.arange(10) != 4
    expected = compute_baselines(train, take(val, rest), hand)
    val.joints_conf[4, 3] = 0.0
    got = compute_baselines(train, val, hand)
    assert got.scores() == expected.scores()
    assert list(got.rows) == list(NAMES)
    for name in NAMES:
        assert np.isnan(got.rows[name][4])
        np.testing.assert_array_equal(got.rows[name][rest], expected.rows[name])
        assert got.scores()[name] == math.fsum(got.rows[name][rest]) / 9
    empty = compute_baselines(train, take(val, np.zeros(10, bool)), hand)
    assert all(math.isnan(value) for value in empty.scores().values())


def test_an_unlabelled_evaluation_list_needs_no_hand_parameters(hand: ManoLayer) -> None:
    """HO3D's evaluation split has joints and no MANO parameters; its baselines exist all the same."""
    train, val = table(hand, 40, 1), table(hand, 5, 2)
    bare = dataclasses.replace(val, mano_valid=np.zeros(5, bool), hand_pose=np.zeros_like(val.hand_pose))
    assert compute_baselines(train, bare, hand).scores() == compute_baselines(train, val, hand).scores()


def test_bad_training_rows_are_left_out_and_counted(
    hand: ManoLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """A NaN among 75,000 poses would turn every baseline into nan; dropped in silence it hides a bad list."""
    train, val = table(hand, 40, 1), table(hand, 5, 2)
    train.betas[3, 2] = np.nan
    train.mano_valid[7] = False
    train.joints_conf[9, 20] = 0.0
    kept = take(train, ~np.isin(np.arange(40), [3, 7, 9]))
    with caplog.at_level(logging.WARNING, "utnet"):
        scores = compute_baselines(train, val, hand).scores()
    assert scores == compute_baselines(kept, val, hand).scores()
    assert "3 of 40 training rows left out (first: row 3)" in caplog.text
    train.mano_valid[:] = False
    with pytest.raises(DataError, match="none of 40 training rows has finite MANO parameters"):
        compute_baselines(train, val, hand)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per computation."""
    calls: list[int] = []

    def counted(*args: LabelTable, **kwargs: bool) -> BaselineRows:
        calls.append(1)
        return compute_baselines(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "compute_baselines", counted)
    return calls


def equal(a: BaselineRows, b: BaselineRows) -> bool:
    same = all(np.array_equal(a.rows[name], b.rows[name], equal_nan=True) for name in NAMES)
    return same and np.array_equal(a.usable, b.usable) and set(a.rows) == set(b.rows)


def test_the_cache_gives_the_same_numbers_once(
    hand: ManoLayer, tmp_path: Path, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A resumed or evaluated run must not wait a minute for what is known, nor see other numbers. Data on a
    read-only mount still gets its baselines, and the log says why they are slow.
    """
    train, val = table(hand, 40, 1), table(hand, 5, 2)
    val.joints_conf[1] = 0.0
    (tmp_path / "a file").write_text("in the way")
    folders = (tmp_path / "new", tmp_path / "new", tmp_path / "a file" / "folder", None)
    with caplog.at_level(logging.INFO, "utnet"):
        first, *others = (cached_baselines(train, val, hand, cache_dir=folder) for folder in folders)
    assert len(computed) == 3, "once in each folder, and again where none can be kept"
    assert all(equal(first, other) for other in others)
    assert [p.name[:10] for p in (tmp_path / "new").iterdir() if p.is_dir()] == ["baselines-"]
    assert caplog.text.count("not kept: Baselines: cannot write to") == 1


def test_other_labels_or_another_hand_are_computed_anew(
    hand: ManoLayer, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced annotations keep the split's name: a stale cache would stand beside new scores."""
    train, val = table(hand, 40, 1), table(hand, 5, 2)

    def ask(train: LabelTable = train, val: LabelTable = val) -> int:
        cached_baselines(train, val, hand, cache_dir=tmp_path)
        return len(computed)

    assert ask() == 1
    assert ask(val=dataclasses.replace(val, joints_cam_m=val.joints_cam_m + np.float32(0.001))) == 2
    assert ask(train=dataclasses.replace(train, betas=train.betas * np.float32(1.01))) == 3
    assert ask(train=dataclasses.replace(train, mano_valid=np.arange(40) > 0)) == 4
    monkeypatch.setattr(hand, "fingerprint", "another")
    assert ask() == 5
    monkeypatch.setattr(baselines, "VERSION", baselines.VERSION + 1)
    assert [ask(), ask()] == [6, 6]
    fewer = val.joints_conf.copy()
    fewer[1] = 0.0
    for _ in range(2):  # two sets of labelled rows do not take each other's cache away
        assert ask(val=dataclasses.replace(val, joints_conf=fewer)) == 7
        assert ask() == 7
