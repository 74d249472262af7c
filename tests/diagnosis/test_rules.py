"""Rules of the doctor on numbers made by hand: which ones must agree, how many, and which steps count."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataloader.crop.augment import Augmentation
from dataloader.crop.camera import crop_camera
from src.config import OptimizerConfig, RunConfig
from src.training.diagnosis.batches import roll_rad, rolls, turned
from src.training.diagnosis.network import ENOUGH_SAMPLES, ENOUGH_STEPS, check_output, check_probe
from src.training.diagnosis.pictures import check_pictures
from src.training.diagnosis.scores import check_scores
from src.training.diagnosis.setting import check_setting
from src.training.diagnosis.steps import CLIPPED_STEPS, check_clipped

BASELINES = {
    "zero_mpjpe_mm": 102.152,
    "zero_pa_mm": 48.320,
    "mean_pose_mpjpe_mm": 78.0,
    "mean_pose_pa_mm": 14.5,
}


def causes(mpjpe_mm: float, pa_mpjpe_mm: float) -> list[str]:
    """What is not OK about a validation with these scores, long after the start."""
    result: Any = SimpleNamespace(
        num_samples=100,
        unusable_labels=0,
        nonfinite_count=0,
        is_finite=True,
        mpjpe_mm=mpjpe_mm,
        pa_mpjpe_mm=pa_mpjpe_mm,
        baselines=BASELINES,
        rows=None,
    )
    return [
        f.what for f in check_scores({"rgbd": result}, None, steps=1000, samples=100_000) if f.status != "OK"
    ]


@pytest.mark.parametrize(
    ("mpjpe_mm", "pa_mpjpe_mm", "named"),
    [
        (102.150, 48.320, ["metric equals the zero pose"]),
        (78.3, 14.6, ["metric equals the mean pose"]),
        (40.0, 14.5, []),  # turns the hand well and bends no finger yet
        (78.0, 9.0, []),
        (60.0, 48.320, []),
        (110.0, 20.0, ["metric no better than the zero pose"]),
    ],
)
def test_both_metrics_must_be_a_constant_predictors(
    mpjpe_mm: float, pa_mpjpe_mm: float, named: list[str]
) -> None:
    """On its way down a metric passes a baseline's: alone that says nothing, and a FAIL may end the run."""
    assert causes(mpjpe_mm, pa_mpjpe_mm) == named


def test_clipped_steps_are_the_last_ones() -> None:
    """Steps of a warm-up that are long past must not be held against a run, nor hide what goes on now."""
    calm, clipped = [False] * 10, [True] * CLIPPED_STEPS
    assert [f.what for f in check_clipped(calm + clipped)] == ["every step clipped"]
    assert [f.what for f in check_clipped(clipped + calm)] == ["clipped share"]
    assert list(check_clipped(clipped[1:])) == []


def found(findings: Any) -> dict[str, str]:
    """What is not OK, and how bad it is."""
    return {finding.what: finding.status for finding in findings if finding.status != "OK"}


@pytest.mark.parametrize(("blank", "status"), [(0, {}), (1, "WARN"), (2, "WARN"), (3, "FAIL"), (20, "FAIL")])
def test_one_blank_crop_warns_and_a_tenth_of_them_fails(blank: int, status: Any) -> None:
    """A hand in front of a white wall is no reason to end a run; a loader that reads nothing is."""
    rgb = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    rgb[:blank] = -1.0
    seen = found(check_pictures(SimpleNamespace(rgb=rgb), labels_sound=False))  # type: ignore[arg-type]
    assert seen.get("blank crops", {}) == status


@pytest.mark.parametrize(
    ("steps", "samples", "enough"),
    [
        (ENOUGH_STEPS, ENOUGH_SAMPLES, True),
        (ENOUGH_STEPS - 1, ENOUGH_SAMPLES, False),  # a few steps of huge batches
        (ENOUGH_STEPS, ENOUGH_SAMPLES - 1, False),  # many steps of two samples
        (5, 10, False),
    ],
)
def test_a_network_is_judged_after_enough_steps_and_samples(steps: int, samples: int, enough: bool) -> None:
    """What has hardly begun predicts nearly the same hand for all: a FAIL there may end a good run."""
    probe: Any = SimpleNamespace(by_rgb_mm=0.0005, by_depth_mm=0.0005, spread_mm=0.4, label_spread_mm=10.0)
    seen = found(check_probe(probe, steps=steps, samples=samples, rate_sum=1.0))
    names = ["constant predictions", "dead RGB branch", "dead depth branch"]
    assert seen == (dict.fromkeys(names, "FAIL") if enough else {})
    moving: Any = SimpleNamespace(by_rgb_mm=0.5, by_depth_mm=0.5, spread_mm=0.6, label_spread_mm=10.0)
    assert found(check_probe(moving, steps=steps, samples=samples, rate_sum=1.0)) == {}
    scored: Any = SimpleNamespace(
        **{"num_samples": 9, "unusable_labels": 0, "nonfinite_count": 0, "is_finite": True, "rows": None},
        **{"mpjpe_mm": 110.0, "pa_mpjpe_mm": 20.0, "baselines": BASELINES},
    )
    seen = found(check_scores({"rgbd": scored}, None, steps=steps, samples=samples))
    assert seen == ({"metric no better than the zero pose": "WARN"} if enough else {})


@pytest.mark.parametrize("part", ["hand", "coarse hand", "votes", "wrist's depth"])
@pytest.mark.parametrize(("factor", "good"), [(0.01, False), (0.5, True), (2.0, True), (10.0, False)])
def test_an_output_of_another_scale_is_named_large_or_small(part: str, factor: float, good: bool) -> None:
    """Millimetres for metres or the other way round: each part of the output, too large and too small."""
    joints = torch.zeros(2, 21, 3)
    joints[:, 1:, 0] = 0.1
    root = torch.tensor([0.0, 0.0, 0.6]).expand(2, 3)
    batch: Any = SimpleNamespace(joints_conf=torch.ones(2, 21), joints_root_m=joints, root_cam_m=root)
    times = dict.fromkeys(("hand", "coarse hand", "votes", "wrist's depth"), 1.0) | {part: factor}
    prediction: Any = SimpleNamespace(
        hand=SimpleNamespace(joints_root_m=times["hand"] * joints, root_cam_m=times["wrist's depth"] * root),
        coarse=SimpleNamespace(joints_root_m=times["coarse hand"] * joints),
        vote_joints_root_m=times["votes"] * joints,
    )
    first, _ = check_output(prediction, batch)
    assert (first.what, first.seen) == (
        "output size" if good else "output scale",
        f"{part} {factor:.3g} x the labelled one",
    )


@pytest.mark.parametrize(
    ("lr", "reference_batch", "world", "named"),
    [
        (1e-3, None, 8, {}),
        (1e-3, 32, 4, {}),
        (1e-3, 32, 11, {"learning rate far too high": "WARN"}),  # 0.011
        (2e-5, 32_000, 1, {"learning rate far too low": "WARN"}),  # 0.02e-6
    ],
)
def test_the_rate_that_is_judged_is_the_one_of_the_global_batch(
    lr: float, reference_batch: int | None, world: int, named: dict[str, str]
) -> None:
    """A rate per 32 samples grows with the ranks: the number in the file may be far from the one at work."""
    config = dataclasses.replace(
        RunConfig(), optimizer=OptimizerConfig(lr=lr, reference_batch=reference_batch)
    )
    leaks: Any = SimpleNamespace(total=10, identical=0, same_motion=0)
    assert found(check_setting(config, leaks, world=world)) == named


@pytest.mark.parametrize("roll", [-2.9, -0.4, 0.0, 0.7, 1.6])
def test_the_augmentations_roll_is_read_with_its_sign(roll: float) -> None:
    """`which joints lack` and `which joints have twice` are one sign apart, and send to other lines."""
    k, box = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]), np.array([380.0, 60, 520, 190])
    camera = crop_camera(k, box, (128, 128), 1.6, Augmentation(roll_rad=roll))
    rotation = torch.from_numpy(camera.rot_crop_from_img)[None].float()
    batch: Any = SimpleNamespace(rot_crop_from_img=rotation)
    assert float(roll_rad(batch)) == pytest.approx(roll, abs=1e-5)
    plain = torch.from_numpy(crop_camera(k, box, (128, 128), 1.6).rot_crop_from_img).float()
    points = torch.tensor([[[0.01, -0.02, 0.6], [0.05, 0.03, 0.7]]])
    rolled = turned(turned(points, plain[None]), rolls(batch, 1.0))
    torch.testing.assert_close(rolled, turned(points, rotation), atol=1e-6, rtol=0)
