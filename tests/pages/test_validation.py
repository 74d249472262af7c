"""A page's numbers are the rows' numbers, and nothing on it flatters."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import DataError
from src.evaluation import metrics
from src.evaluation.report import summary_lines
from src.evaluation.scored import Scored, sequence_of
from src.evaluation.seeded import Samples
from src.evaluation.statistics import bootstrap_mean
from src.hand.joints import FINGERS, OPENPOSE21
from src.pages.page import Page
from src.pages.validation import Validation
from src.runtime.seed import stream
from src.schema import motion_of
from tests.evaluation.ranks import score_alone

COUNT = 60


def scored(noise_m: float = 0.01, *, seed=0, spoil=None, sequences=("train/ABF10", "train/MC1", "train/SS2")):
    """(result, frame names) of made-up hands; the second sequence is three times as hard."""
    random = stream(0, "report")
    target = random.normal(0.0, 0.05, (COUNT, 21, 3)) + np.array([0.0, 0.0, 0.6])
    hard = np.where(np.arange(COUNT) % len(sequences) == 1, 3.0, 1.0)[:, None, None]
    pred = target + stream(seed, "noise").normal(0.0, noise_m, target.shape) * hard
    conf = np.ones((COUNT, 21))
    if spoil is not None:
        spoil(pred, target, conf)
    samples = Samples(*(torch.from_numpy(part).float() for part in (pred, target, conf, np.zeros(COUNT))))
    return score_alone(samples), [f"{sequences[i % len(sequences)]}/{i:04d}" for i in range(COUNT)]


def page_of(results, frames, official=None, baseline_rows=None) -> Page:
    """The page of some results, without official scores and baselines where none are given."""
    scored = {name: Scored.of(result, frames) for name, result in results.items()}
    return Validation(
        "made up", [], scored, len(frames), official=official or {}, baselines=baseline_rows or {}
    ).page()


def cells(page: Page, section: str, table: int = 0) -> dict[str, list]:
    """First column -> the others, of a section's table."""
    (found,) = [part for part in page.sections if part.title == section]
    tables = [block.table for block in found.blocks if block.table is not None]
    return {row[0]: row[1:] for row in tables[table]["rows"]}


def interval(values, frames) -> str:
    """A mean as the report writes it; its motions are drawn as wholes."""
    motions = [motion_of(sequence_of(frame)) for frame in frames]
    expected = bootstrap_mean(np.asarray(values), motions, seed=0)
    return f"{expected.mean:.3f} [{expected.low:.3f}, {expected.high:.3f}]"


def test_the_summary_has_every_predictor_with_its_interval_over_the_scored_rows():
    """A number without its interval and without the baselines beside it invites the wrong conclusion; a
    baseline of other rows, or drawn frame by frame, is none.
    """

    def without_label(pred, target, conf):
        conf[5] = 0.0

    sequences = ("train/A10", "train/A11", "train/B10", "train/C10")
    result, frames = scored(spoil=without_label, sequences=sequences)
    blind, _ = scored(0.02, seed=1, spoil=without_label, sequences=sequences)
    kept = np.arange(COUNT) != 5
    own = [frame for frame, keep in zip(frames, kept, strict=True) if keep]
    baseline = stream(3, "baseline").normal(20.0, 1.0, COUNT) + 9.0 * (np.arange(COUNT) % 4 == 3)
    baseline[5] = math.nan
    rows = {"zero_mpjpe_mm": baseline, "nearest_pose_pa_mm": np.full(COUNT, 5.5)}
    page = page_of({"RGB-D": result, "RGB-only": blind}, frames, baseline_rows=rows)
    table = cells(page, "Scores")
    difference = "RGB-only \N{MINUS SIGN} RGB-D"
    assert list(table) == ["RGB-D", "RGB-only", difference, "zero pose", "nearest training pose"]
    for name, one in (("RGB-D", result), ("RGB-only", blind)):
        assert table[name] == [
            interval(values[kept], own) for values in (one.rows.mpjpe_mm, one.rows.pa_mpjpe_mm)
        ]
    assert table["RGB-D"][0].startswith(f"{result.mpjpe_mm:.3f} [")
    assert table[difference][0] == interval((blind.rows.mpjpe_mm - result.rows.mpjpe_mm)[kept], own)
    assert table["zero pose"][0] == interval(baseline[kept], own)
    assert table["nearest training pose"][1].startswith("5.500 [")
    words = set(cells(page, "Words"))
    assert {"zero pose", "nearest training pose", "interval", "motion"} < words
    assert not {"mean pose", "before refinement"} & words, "explained, and nowhere on the page"


def test_joints_and_fingers_average_to_the_metric():
    """A table per joint that does not add up to MPJPE sends people after the wrong finger."""

    def mirror(pred, target, conf):
        pred[:8, :, 0] *= -1.0  # no mirror images: PA is that of proper rotations

    result, frames = scored(spoil=mirror)
    page = page_of({"RGB-D": result}, frames)
    fingers, joints = (cells(page, "Joints and fingers", table) for table in (0, 1))
    assert list(joints) == list(OPENPOSE21)
    assert joints["wrist"][0] == 0.0
    for column, value in ((0, result.mpjpe_mm), (1, result.pa_mpjpe_mm)):
        assert np.mean([row[column] for row in joints.values()]) == pytest.approx(value, abs=1e-9)
    assert list(fingers) == ["wrist", *FINGERS]
    of_ring = [joints[f"ring_{k}"][1] for k in range(1, 5)]
    assert fingers["ring"][1] == pytest.approx(np.mean(of_ring), abs=1e-9)
    drawn = [
        b.figure["data"][1]
        for s in page.sections
        if s.title.startswith("Joints")
        for b in s.blocks
        if b.figure
    ]
    for figure, column in zip(drawn, (0, 1), strict=True):
        assert figure["marker"]["color"] == [row[column] for row in joints.values()]


def test_the_lines_for_the_log():
    """People read a log, not a report: intervals, the worst finger and its mean error, the worst sequence."""

    def bend(pred, target, conf):
        pred[:] = target
        pred[:, OPENPOSE21.index("middle_4"), 0] += 0.2  # 200 mm on a tip alone are 50 of its finger

    result, frames = scored(spoil=bend)
    blind, _ = scored(0.02, seed=1)
    lines = summary_lines({"RGB-D": Scored.of(result, frames), "RGB-only": Scored.of(blind, frames)})
    assert len(lines) == 5
    assert lines[0].startswith(f"  RGB-D: MPJPE {result.mpjpe_mm:.3f} [")
    assert lines[0].endswith(" mm over 3 motions (few: the intervals are too narrow)")
    assert lines[3] == "  Worst finger (RGB-D): middle, 50.000 mm wrist-relative"
    assert lines[4].startswith("  Worst sequence (RGB-D): train/")


def test_palms_taken_for_backs_are_counted():
    """A few hands seen the wrong way round cost a millimetre of the mean and look like many small errors.
    The palm counts, not fingers that are bent otherwise.
    """

    def turn(pred, target, conf):
        pred[:] = target
        axis = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])
        for row, degrees in enumerate((180.0, 120.0, 92.0, 88.0, 20.0)):
            rotation = Rotation.from_rotvec(np.radians(degrees) * axis)
            pred[row] = rotation.apply(target[row] - target[row, 0]) + target[row, 0]
        bent = [OPENPOSE21.index(f"{finger}_{k}") for finger in FINGERS for k in (2, 3, 4)]
        pred[10, bent] = 2 * target[10, 0] - target[10, bent]
        conf[2] = 0.0

    result, frames = scored(spoil=turn)
    rows = Scored.of(result, frames)
    assert rows.joints.turned_deg[:4] == pytest.approx([180.0, 120.0, 88.0, 20.0], abs=0.01)
    said = "Palms turned by more than 90 degrees: RGB-D 2 of 59 (3.39%)"
    assert f"  {said}" in summary_lines({"RGB-D": rows})
    lost = dataclasses.replace(rows.joints, turned_deg=np.array([np.nan, 20.0]))
    assert lost.flipped == 1, "a hand that is none would be right"
    answer = f"{said}: palm is taken for back, or fingers for the arm."
    assert answer in Validation("", [], {"RGB-D": rows}, COUNT).page().answers


def test_sequences_are_listed_worst_first():
    """Where the error sits is the first question after its size."""
    result, frames = scored()
    page = page_of({"RGB-D": result}, frames)
    table = cells(page, "Sequences")
    assert any("worst sequence by MPJPE (RGB-D): train/MC1, " in answer for answer in page.answers)
    assert next(iter(table)) == "train/MC1"
    errors = [row[1] for row in table.values()]
    assert errors == sorted(errors, reverse=True)
    own = np.array([sequence_of(frame) == "train/SS2" for frame in frames])
    means = [metrics.mean(rows[own]) for rows in (result.rows.mpjpe_mm, result.rows.pa_mpjpe_mm)]
    assert table["train/SS2"] == [20, *means]


def test_bad_predictions_and_labels_are_counted():
    """A nan may not vanish into a mean, nor a missing label count as an error of 0."""

    def spoil(pred, target, conf):
        pred[4, 7] = np.nan  # sequence MC1
        conf[[0, 3]] = 0.0

    result, frames = scored(spoil=spoil)
    page = page_of({"RGB-D": result}, frames)
    said = page.sections[0].blocks[0].words[0]
    assert "58 of 60 samples scored, 3 motions (few: the intervals are too narrow); 2 without a" in said
    assert "a complete label, left out" in said
    assert "1 predictions are not finite: nan" in said
    assert "RGB-D: 1 predictions are not finite, so there is no score." in page.answers
    assert cells(page, "Scores")["RGB-D"] == ["nan", "nan"]
    joints = cells(page, "Joints and fingers", 1)
    assert [math.isnan(error) for error in joints[OPENPOSE21[7]]] == [True, True]
    assert joints["wrist"][0] == 0.0
    table = cells(page, "Sequences")
    assert next(iter(table)) == "train/MC1"
    assert (table["train/MC1"][0], table["train/ABF10"][0]) == (20, 18)
    assert math.isnan(table["train/MC1"][1])
    assert math.isfinite(table["train/SS2"][1])
    assert "  Non-finite predictions (RGB-D): 1; means with them are nan" in summary_lines(
        {"RGB-D": Scored.of(result, frames)}
    )


def test_one_motion_has_no_interval_and_no_sample_no_mean():
    """An interval from one motion would be invented, however many cameras film it; an empty split is a report
    all the same. Centimetres stand beside millimetres: each official row says which.
    """
    result, frames = scored(sequences=("train/ABF10", "train/ABF14"))
    official = {"RGB-D": {"xyz_mean3d": 1.25, "f_score_5": 0.125}}
    page = page_of({"RGB-D": result}, frames, official=official)
    assert cells(page, "Scores")["RGB-D"][0] == f"{result.mpjpe_mm:.3f} (one motion: no interval)"
    assert cells(page, "Scores", 1) == {"xyz_mean3d": ["cm", "1.250000"], "f_score_5": ["1", "0.125000"]}
    empty = score_alone(Samples(*(torch.empty(0, *shape) for shape in ((21, 3), (21, 3), (21,), ()))))
    page = page_of({"RGB-D": empty}, [])
    assert page.answers == ["No sample could be scored."]
    assert summary_lines({"RGB-D": Scored.of(empty, [])})[0] == (
        "  RGB-D: MPJPE nan mm, PA-MPJPE nan mm over 0 motions"
    )


def test_wrong_calls_are_refused():
    """Another split's frames, and ranks without rows."""
    result, frames = scored()
    with pytest.raises(DataError, match="59 frame names for 60"):
        Scored.of(result, frames[:59])
    with pytest.raises(DataError, match="rank 0"):
        Scored.of(dataclasses.replace(result, rows=None), frames)
