"""What pages are made of: which samples are chosen, which joints are in view, curves, shares, kept files."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import DataError
from src.evaluation.scored import THRESHOLDS_MM, JointErrors, means_over
from src.evaluation.statistics import Interval
from src.geometry.in_view import HIDDEN, IN_VIEW, UNKNOWN, joints_in_view
from src.pages.answers import answers, gain, hidden_cost
from src.pages.chosen import KINDS, NEIGHBOURS, choose
from src.pages.curves import curve_blocks
from src.pages.files import with_curves
from src.pages.page import KEPT, Page
from src.pages.samples import STEPS_PER_MM, sample_json
from src.runtime.seed import stream
from src.schema import DEPTH_RANGE_M
from tests.models.scene import make_batch
from tests.pages.made_up import sample, validation


def test_chosen_samples_are_no_neighbours_and_no_sample_is_there_twice() -> None:
    """Twelve pictures of one grasp say as much as one of them. The worst stand in the order of their errors,
    and what is not finite is worse than all.
    """
    count, motions = 600, 6
    errors = stream(0, "chosen").gamma(2.0, 10.0, count)
    errors[100:110] += 200.0  # ten neighbours would fill the list
    errors[250] = math.nan
    of = [f"M{k * motions // count}" for k in range(count)]
    numbers = [k % (count // motions) for k in range(count)]
    chosen = choose(errors, of, numbers, 24)
    assert list(chosen) == list(KINDS)
    rows = [row for own in chosen.values() for row in own]
    assert len(rows) == len(set(rows)) == 24
    for own in chosen.values():
        for one in own:
            near = [
                o
                for o in own
                if o != one and of[o] == of[one] and abs(numbers[o] - numbers[one]) < NEIGHBOURS
            ]
            assert not near
        assert max([of[row] for row in own].count(motion) for motion in set(of)) <= 2
    worst = chosen["worst"]
    assert worst[0] == 250
    assert 100 <= worst[1] < 110
    assert all(a >= b for a, b in zip(errors[worst[1:]], errors[worst[2:]], strict=False))
    middle = np.nanmedian(errors)
    assert np.abs(errors[chosen["median"]] - middle).max() < 5.0
    assert max(errors[chosen["best"]]) < middle
    assert {of[row] for row in chosen["spread"]} == set(of)


@pytest.mark.parametrize(("count", "most", "found"), [(0, 24, 0), (1, 24, 1), (40, 24, 7), (40, 0, 0)])
def test_few_samples_give_few_pictures(count: int, most: int, found: int) -> None:
    """A list of 40 frames has room for two that are no neighbours: if the first lies near an end."""
    chosen = choose(np.arange(float(count)), ["M"] * count, list(range(count)), most)
    assert sum(map(len, chosen.values())) == found
    assert chosen["worst"][:1] == ([count - 1] if count and most else [])


def test_a_joint_is_hidden_behind_what_is_nearer() -> None:
    """By the depth picture, 25 mm in front of the joint; where it says nothing, nothing is said."""
    batch = make_batch(1, 64, 64, noise=True)
    z = batch.joints_cam_m[0, :, 2]
    places = torch.stack([torch.arange(21) * 3.0, torch.full((21,), 10.0)], -1)[None]
    surface = torch.zeros(1, 1, 64, 64)
    gaps = torch.full((21,), 0.02)
    gaps[3] = 0.03
    for joint in range(21):
        surface[0, 0, 10, joint * 3] = (z[joint] - gaps[joint] - batch.z_ref_m[0]) / DEPTH_RANGE_M
    valid = torch.ones_like(surface)
    valid[0, 0, 10, 15] = 0.0  # joint 5
    places[0, 7, 0], places[0, 8, 1] = 70.0, torch.nan
    conf = torch.ones(1, 21)
    conf[0, 9] = 0.0
    made = dataclasses.replace(
        batch, joints_crop_px=places, depth=surface, depth_valid=valid, joints_conf=conf
    )
    said = joints_in_view(made)[0].tolist()
    unknown = {5, 7, 8, 9}
    assert said == [HIDDEN if j == 3 else UNKNOWN if j in unknown else IN_VIEW for j in range(21)]
    assert joints_in_view(made.without_depth()).unique().tolist() == [UNKNOWN]


def test_shares_of_correct_joints_count_what_is_there() -> None:
    """At a threshold a joint counts; the wrist, always right, would flatter; nan never counts."""
    relative = np.full((1, 21), 10.0)
    relative[0, 0], relative[0, 1], relative[0, 2] = 0.0, 10.001, np.nan
    errors = JointErrors(relative, relative, np.ones((1, 21), np.int8), np.ones(1), np.ones(1))
    shares = errors.share_within(aligned=False)
    assert shares[THRESHOLDS_MM == 9.0] == 0.0
    assert shares[THRESHOLDS_MM == 10.0] == pytest.approx(18 / 20)
    assert shares[-1] == pytest.approx(19 / 20)


@pytest.mark.parametrize(
    ("ends", "motions", "said"),
    [
        ((1.0, 3.0), 10, "lower by 2.000 mm [1.000, 3.000] (sure)"),
        ((1.0, 3.0), 9, "lower by 2.000 mm [1.000, 3.000] (likely)"),
        ((1.0, 3.0), 5, "lower by 2.000 mm [1.000, 3.000] (likely)"),
        ((1.0, 3.0), 4, "lower by 2.000 mm [1.000, 3.000] (not sure)"),
        ((-3.0, -1.0), 10, "higher by 2.000 mm [1.000, 3.000] (sure)"),
        ((-1.0, 3.0), 10, "lower by 1.000 mm [-1.000, 3.000] (not sure)"),
        ((-3.0, 1.0), 9, "higher by 1.000 mm [-1.000, 3.000] (not sure)"),
        ((math.nan, math.nan), 1, "lower by 2.000 mm (one motion: not sure)"),
    ],
)
def test_a_difference_is_called_sure_where_it_is(ends: tuple[float, float], motions: int, said: str) -> None:
    """Intervals of a true difference of 0 leave it out in an eighth of the trials over nine motions, in a
    quarter over four.
    """
    mean = 2.0 if math.isnan(ends[0]) else sum(ends) / 2
    assert gain(Interval(mean, *ends, motions)) == said


def test_gains_are_over_the_samples_that_have_a_label() -> None:
    """Baselines have a row for each sample, scores for each labelled one: moved by one, a frame is compared
    with another. Refinement is better where its error is lower.
    """
    rows = validation(60).scored["RGB-D"]
    usable = np.arange(61) != 3
    column = np.full(61, np.nan)
    column[usable] = rows.mpjpe_mm + 7.0
    before = {"MPJPE before refinement, mm": rows.mpjpe_mm.mean() + 1.0,
              "PA-MPJPE before refinement, mm": rows.pa_mpjpe_mm.mean() - 1.0}  # fmt: skip
    made = dataclasses.replace(rows, usable=usable)
    said = answers({"RGB-D": made}, {"mean_pose_mpjpe_mm": column}, {"RGB-D": before})
    assert "RGB-D beside the mean pose, which sees no picture: MPJPE is lower by 7.000 mm" in said[1]
    (refined,) = [text for text in said if text.startswith("Refinement")]
    assert re.findall(r"\((\w+)\)", refined) == ["better", "worse"]


@pytest.mark.parametrize(("cost_mm", "sure"), [(5.0, "(sure)"), (0.0, "(not sure)")])
def test_being_hidden_is_not_mixed_up_with_being_a_tip(cost_mm: float, sure: str) -> None:
    """Tips are hidden more often and are worse anyway: that alone says nothing about being hidden."""
    random = stream(0, "hidden")
    tip = np.arange(21) % 4 == 0
    hidden = random.uniform(size=(400, 21)) < np.where(tip, 0.8, 0.2)
    errors = 10.0 + 20.0 * tip + random.normal(0.0, 0.5, (400, 21)) + cost_mm * hidden
    view = np.where(hidden, HIDDEN, IN_VIEW).astype(np.int8)
    rows = validation(400, [f"train/S{k:02d}0" for k in range(20)]).scored["RGB-D"]
    made = dataclasses.replace(rows, joints=JointErrors(errors, errors, view, np.ones(400), np.ones(400)))
    (said,) = [text for text in answers({"RGB-D": made}, {}, {}) if text.startswith("Joints in view")]
    raw, own = said.split(" When ")
    numbers = [float(number) for number in re.findall(r"([\d.]+) mm", raw)]
    assert numbers[1] > numbers[0] + 5.0
    assert sure in own
    interval = hidden_cost(made.joints, made.motions)
    assert interval.mean == pytest.approx(cost_mm, abs=0.05)
    assert interval.low < cost_mm < interval.high < interval.low + 0.3


def test_means_along_a_property_take_equal_parts() -> None:
    """Eight parts of eight frames; of one value there is one part, and what is not finite is left out."""
    values = np.arange(64.0)
    values[5] = np.nan
    parts = means_over(values, np.arange(64.0))
    assert sum(count for *_, count, _ in parts) == 63
    assert {count for *_, count, _ in parts} <= {7, 8}
    assert all(low <= mean <= high for low, high, _, mean in parts)
    assert means_over(np.ones(5), np.arange(5.0)) == [(1.0, 1.0, 5, 2.0)]
    assert means_over(np.zeros(0), np.zeros(0)) == []


def test_curves_run_over_epochs_whatever_a_run_went_through() -> None:
    """Other batch sizes, a resume in mid-epoch, a loss that was not finite: an epoch is one wide."""
    rows = [{"step": 5, "Train/loss": 4.0}, {"step": 10, "Train/epoch": 0, "Val/MPJPE": 40.0},
            {"step": 20, "Train/loss": None}, {"step": 30, "Train/epoch": 1, "Val/MPJPE": 30.0},
            {"step": 37, "Train/loss": 2.0}]  # fmt: skip
    loss, error = curve_blocks(rows)
    assert loss.figure is not None
    assert error.figure is not None
    training = loss.figure["data"][0]
    assert training["x"] == [0.5, 1.5, pytest.approx(2 + 7 / 15)]
    assert training["y"] == [4.0, None, 2.0]
    assert error.figure["data"][0]["x"] == [1.0, 2.0]
    many = [{"step": k, "Train/loss": float(k), "Train/epoch": k // 100} for k in range(5000)]
    assert len(curve_blocks(many)[0].figure["data"][0]["x"]) <= 400
    assert curve_blocks([{"step": 3, "Val/MPJPE": 3.0}]) == []


def test_a_kept_page_is_the_same_page_and_gets_the_curves_of_today(tmp_path: Path) -> None:
    """Weeks later, without weights and data. Numbers that are none are null, odd bytes are spelled."""
    made = validation(broken=[3])
    made = dataclasses.replace(made, facts=[("Run", "\udcca\x1b[0m")])
    made.page().keep(tmp_path / KEPT)
    again = Page.read(tmp_path / KEPT)
    made.page().write(tmp_path / "first.html")
    again.write(tmp_path / "second.html")
    text = (tmp_path / "first.html").read_text(encoding="utf-8")
    assert text == (tmp_path / "second.html").read_text(encoding="utf-8")
    assert "\\xca\\x1b[0m" in text
    newer = with_curves(again, [{"step": 7, "Train/epoch": 0, "Val/MPJPE": 12.5}])
    titles = [section.title for section in newer.sections]
    assert titles == [section.title for section in again.sections]
    assert 12.5 in newer.sections[1].blocks[1].figure["data"][0]["y"]
    assert with_curves(again, []) == again


@pytest.mark.parametrize("content", ["", "[1]", '{"version": 0}', '{"version": 1}', "[" * 100_000])
def test_what_is_no_kept_page_is_named(tmp_path: Path, content: str) -> None:
    """A torn file is one line, not a page of a traceback."""
    path = tmp_path / KEPT
    path.write_text(content)
    with pytest.raises(DataError, match=r"page\.json"):
        Page.read(path)
    with pytest.raises(DataError, match="no such file"):
        Page.read(tmp_path / "none")


def test_a_sample_keeps_its_hands_to_a_tenth_of_a_millimetre() -> None:
    """What is turned in 3D is what was scored; a hand that is not finite is left out."""
    shown = sample(4, "a/0004")
    kept = sample_json(shown)
    for hand, (name, true) in zip(kept["hands"], shown.hands.items(), strict=True):
        assert hand["name"] == name
        np.testing.assert_allclose(hand["joints_mm"], true.joints_m * 1000, atol=1e-3)
        steps = np.frombuffer(base64.b64decode(hand["mesh"]), "<i2").reshape(-1, 3) / STEPS_PER_MM
        np.testing.assert_allclose(steps, (true.vertices_m - true.joints_m[0]) * 1000, atol=0.05)
    lost = dataclasses.replace(shown.hands["RGB-D"], joints_m=np.full((21, 3), np.nan))
    kept = sample_json(dataclasses.replace(shown, hands=shown.hands | {"RGB-D": lost}))
    assert [hand["name"] for hand in kept["hands"]] == ["truth", "RGB-only"]
    assert [picture["title"] for picture in kept["pictures"]][2:] == ["truth", "RGB-D", "RGB-only"]
    json.dumps(kept, allow_nan=False)


def test_the_skeleton_lies_where_the_hand_is_in_the_enlarged_crop() -> None:
    """A half pixel of shift at scale 8 is four pixels: truth and prediction would look wrong together."""
    shown = sample(1, "a/0001")
    joints = np.zeros((21, 3)) + np.array([0.05, -0.03, 0.5])
    only = {"truth": dataclasses.replace(shown.hands["truth"], joints_m=joints, vertices_m=None)}
    crop = dataclasses.replace(shown.crop, rgb=np.zeros((32, 32, 3), np.uint8))
    made = dataclasses.replace(shown, hands=only, crop=crop)
    drawn = made.pictures["truth"]
    assert drawn.shape == (256, 256, 3)
    rows, columns = np.nonzero(drawn[..., 0] > 100)
    wanted = (np.array([60 * 0.1 + 16, -60 * 0.06 + 16]) + 0.5) * 8 - 0.5
    assert [columns.mean(), rows.mean()] == pytest.approx(wanted.tolist(), abs=1.0)


@pytest.mark.parametrize(
    ("motions", "said"), [(1, ""), (4, "4 motions are too few"), (5, "5 motions are few"), (10, "")]
)
def test_cameras_of_a_motion_do_not_make_anything_sure(motions: int, said: str) -> None:
    """Ten cameras that film one motion are one piece of evidence: drawn one by one, all would be sure."""
    cameras = [f"train/S{k % motions:02d}{k // motions}" for k in range(10)]
    made = validation(60, cameras).scored
    made["RGB-D"].joints.in_view[::2] = IN_VIEW
    assert made["RGB-D"].extent.split()[0] == str(motions)
    assert ("few" in made["RGB-D"].extent) == (1 < motions < 10)
    mean_pose = {"mean_pose_mpjpe_mm": made["RGB-D"].mpjpe_mm + 9.0}
    answered = answers(made, mean_pose, {})
    word = {1: "(one motion: not sure)", 4: "(not sure)", 5: "(likely)", 10: "(sure)"}[motions]
    gains = [text for text in answered if "mean pose" in text or text.startswith("Depth, ")]
    assert [text.count(word) for text in gains] == [1, 2]
    (hidden,) = [text for text in answered if text.startswith("Joints in view")]
    assert motions > 1 or word in hidden
    assert said in answered[-1]
    assert answered[-1].startswith("In brackets")
    assert said or answered[-1].endswith("inside.")
