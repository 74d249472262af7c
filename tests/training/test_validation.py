"""A validation: what meshes score, which pictures are shown, which epoch is the best."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.errors import TrainingError
from src.evaluation.official import MESH_SCORES
from src.schema import HandBatch, HandEstimate, Prediction
from src.training.checkpoints.checkpoint import Progress
from src.training.kept_hands import KeptHands, meshes_of
from src.training.mesh_scorer import MeshScorer
from src.training.validation import is_best
from tests.models.scene import hand_model, make_batch
from tests.training.test_recorder import result
from tests.training.toy import ALONE


def scorer(batch: HandBatch, *, official: bool, vertices: bool = True) -> MeshScorer:
    """Of the official split, whose published truth is what the labels of this batch decode to, in the image
    camera; or of one of the training list, which has none.
    """
    hand = labelled(batch)
    joints, meshes = (
        batch.to_image_camera(points).double().numpy() for points in (hand.joints_cam_m, hand.vertices_cam_m)
    )
    truth: Any = SimpleNamespace(
        truth_joints=lambda index: joints[index] if official else None,
        truth_vertices=lambda index: meshes[index] if official and vertices else None,
    )
    return MeshScorer(hand_model(), truth, official=official)


def labelled(batch: HandBatch) -> HandEstimate:
    """The hand that the labels describe, as a prediction."""
    out = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    wrist = out.joints_m[:, :1]
    pose = batch.global_orient, batch.hand_pose, batch.betas
    return HandEstimate(*pose, wrist[:, 0], out.joints_m - wrist, out.vertices_m - wrist)


def answer(hand: HandEstimate, coarse: HandEstimate | None = None) -> Prediction:
    """A prediction of this hand, which refinement left as it was unless another is given."""
    none = torch.zeros(len(hand.betas), 21, 3)
    return Prediction(hand, coarse or hand, none, none[..., :2], none[..., None])


def shifted(hand: HandEstimate, *, away_m: float = 0.0, joint_m: float = 0.0, vertex_m: float = 0.0) -> Any:
    """The hand farther away; its joints but the wrist, and one vertex, off along x."""
    joints, vertices = hand.joints_root_m.clone(), hand.vertices_root_m.clone()
    joints[:, 1:, 0] += joint_m
    vertices[:, 700, 0] += vertex_m
    root = hand.root_cam_m + torch.tensor([0.0, 0.0, away_m])
    return dataclasses.replace(hand, root_cam_m=root, joints_root_m=joints, vertices_root_m=vertices)


def batch_of(count: int, seed: int) -> HandBatch:
    """Rows 0, 1, ... in a crop camera that is rolled."""
    angle, roll = torch.tensor(0.7), torch.eye(3)
    roll[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    made = make_batch(count, 64, 64, seed=seed, noise=True)
    camera = roll.expand(count, 3, 3).contiguous()
    return dataclasses.replace(made, sample_index=torch.arange(count), rot_crop_from_img=camera)


@pytest.fixture
def batch() -> HandBatch:
    """Three rows."""
    return batch_of(3, seed=5)


@pytest.mark.parametrize("official", [False, True])
def test_meshes_are_scored_against_the_right_truth(batch: HandBatch, official: bool) -> None:
    """A perfect one scores nothing, in whichever camera and order. One 3 cm too far is right relative to the
    wrist and 3 cm off in the official absolute score; one vertex 7.78 mm off is 0.01 mm in the mean of 778.
    """
    hand, judge = labelled(batch), scorer(batch, official=official)
    order = torch.tensor([2, 0, 1])
    moved = HandBatch(**{f.name: getattr(batch, f.name)[order] for f in dataclasses.fields(HandBatch)})
    for of, right in ((batch, hand), (moved, labelled(moved))):
        scores = judge(of, answer(right))
        assert tuple(scores) == judge.columns
        assert scores["mesh_usable"].tolist() == [1.0, 1.0, 1.0]
        assert max(scores["mpvpe_mm"].max(), scores["pa_mpvpe_mm"].max()) < 1e-3
        assert not official or scores["mesh_mean3d"].max() < 1e-4
        assert not official or scores["f_score_5"].min() == 1.0
    far = judge(batch, answer(shifted(hand, away_m=0.03, vertex_m=7.78e-3)))
    assert far["mpvpe_mm"].numpy() == pytest.approx(0.01, abs=1e-3)
    assert (set(MESH_SCORES) <= set(far)) == official
    if official:
        assert far["mesh_mean3d"].numpy() == pytest.approx(3.0, abs=1e-2)
        assert far["mesh_al_mean3d"].max() < 1e-2
        assert far["f_score_15"].max() < 1.0
    # Whether refinement brings anything shows only beside what it started from.
    before = judge(batch, answer(hand, shifted(hand, joint_m=0.021)))
    assert before["coarse_mpjpe_mm"].numpy() == pytest.approx(20.0, abs=1e-2)
    assert before["coarse_pa_mpjpe_mm"].min() > 0.1
    assert before["mpvpe_mm"].max() < 1e-3


def test_no_mesh_score_is_made_up(batch: HandBatch) -> None:
    """Parameters that do not exist decode to a hand that nobody labelled; published meshes may be absent."""
    unknown = dataclasses.replace(batch, mano_valid=torch.tensor([True, False, True]))
    scores = scorer(batch, official=False)(unknown, answer(labelled(batch)))
    assert scores["mesh_usable"].tolist() == [1.0, 0.0, 1.0]
    assert torch.isnan(scores["mpvpe_mm"]).tolist() == [False, True, False]
    judge = scorer(batch, official=True, vertices=False)
    assert judge.columns == ()
    assert judge(batch, answer(labelled(batch))) == {}
    plain = MeshScorer(hand_model(), SimpleNamespace(), official=False, refined=False)  # type: ignore[arg-type]
    scores = plain(batch, answer(labelled(batch)))
    assert tuple(scores) == plain.columns
    assert not [name for name in scores if "coarse" in name], (
        "a network that refines nothing has no hand before"
    )


def test_kept_hands_are_those_that_were_predicted() -> None:
    """What a page shows of a sample is what its score was made of: the asked samples, none other, posed anew
    from 166 numbers to the micrometre.
    """
    kept, hands = KeptHands(), []
    for k in range(3):
        made = dataclasses.replace(batch_of(4, seed=k), sample_index=torch.arange(4) * 3 + k)
        hands.append((made, shifted(labelled(made), away_m=0.1 * k)))
        kept.add(made, answer(hands[-1][1]))
    asked = [5, 100, 0]
    found = kept.gather(asked, ALONE)
    assert sorted(found) == [0, 5]
    for sample, parameters in found.items():
        (made, hand), row = hands[sample % 3], sample // 3
        wanted = made.to_image_camera(hand.vertices_cam_m)[row]
        np.testing.assert_allclose(meshes_of(parameters[None], hand_model())[0], wanted, atol=2e-6)
    assert KeptHands().of(asked) == {}


@pytest.mark.parametrize(
    ("with_depth", "without", "before", "chosen"),
    [
        (19.9, 30.0, 20.0, True),
        (20.1, 10.0, 20.0, False),  # without depth it would be better
        (19.9, 99.0, 20.0, True),
        (20.0, 30.0, 20.0, False),  # as good is not better: the earlier epoch stays
        (500.0, None, math.inf, True),  # a run that is stopped after one validation has a best.pt
    ],
)
def test_mpjpe_with_depth_decides(
    with_depth: float, without: float | None, before: float, chosen: bool
) -> None:
    """RGB-D, by MPJPE, strictly lower; PA-MPJPE (10 in each) and RGB-only say nothing."""
    position = Progress(epoch=7, best_mpjpe_mm=before, best_epoch=4)
    results: Any = {"rgbd": result(with_depth)} | ({} if without is None else {"rgb": result(without)})
    assert is_best(results, position) is chosen
    assert (position.best_mpjpe_mm, position.best_epoch) == ((with_depth, 7) if chosen else (before, 4))


@pytest.mark.parametrize("broken", ["rgbd", "rgb"])
@pytest.mark.parametrize(
    "change",
    [{"nonfinite_count": 1, "nonfinite_indices": (3,)}, {"mpjpe_mm": math.nan}],
    ids=["row", "score"],
)
def test_nothing_that_is_broken_is_chosen(broken: str, change: Any) -> None:
    """Low numbers beside predictions that are not finite choose nothing; nor does a split without a label."""
    position, good = Progress(best_mpjpe_mm=20.0, best_epoch=4), result(1.0)
    results: Any = {"rgbd": good, "rgb": good} | {broken: dataclasses.replace(good, **change)}
    fatal = pytest.raises(TrainingError, match=r"1 \(samples 3\)") if len(change) == 2 else nullcontext()
    with fatal:
        assert not is_best(results, position)
    assert (position.best_mpjpe_mm, position.best_epoch) == (20.0, 4)
