"""Meshes scored on the rank that predicted them: right truth, right camera, nothing invented."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src.evaluation.official import MESH_SCORES
from src.schema import HandBatch, HandEstimate, Prediction
from src.training.mesh_scorer import MeshScorer
from tests.models.scene import hand_model, make_batch


class Truth:
    """Published ground truth that is what the labels of a batch decode to, in the image camera."""

    def __init__(self, batch: HandBatch, *, vertices: bool = True) -> None:
        hand = labelled(batch)
        self.joints = batch.to_image_camera(hand.joints_cam_m).double().numpy()
        self.vertices = batch.to_image_camera(hand.vertices_cam_m).double().numpy() if vertices else None

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        return self.joints[sample_index]

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        return None if self.vertices is None else self.vertices[sample_index]


class NoTruth:
    """A split of the training list."""

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> None:
        return None

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> None:
        return None


def labelled(batch: HandBatch) -> HandEstimate:
    """The hand that the labels describe, as a prediction."""
    out = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    wrist = out.joints_m[:, :1]
    return HandEstimate(
        global_orient=batch.global_orient,
        hand_pose=batch.hand_pose,
        betas=batch.betas,
        root_cam_m=wrist[:, 0],
        joints_root_m=out.joints_m - wrist,
        vertices_root_m=out.vertices_m - wrist,
    )


def answer(hand: HandEstimate, coarse: HandEstimate | None = None) -> Prediction:
    """A prediction of this hand, which refinement left as it was unless another is given."""
    none = torch.zeros(len(hand.betas), 21, 3)
    return Prediction(hand, coarse or hand, none, none[..., :2], none[..., None])


def turned(batch: HandBatch) -> HandBatch:
    """The batch with rows 0, 1, 2 ... and a crop camera that looks elsewhere and is rolled."""
    angle = torch.tensor(0.7)
    roll = torch.eye(3)
    roll[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    size = batch.size
    return dataclasses.replace(
        batch, sample_index=torch.arange(size), rot_crop_from_img=roll.expand(size, 3, 3).contiguous()
    )


@pytest.fixture
def batch() -> HandBatch:
    return turned(make_batch(3, 64, 64, seed=5, noise=True))


def test_a_perfect_prediction_scores_nothing(batch: HandBatch) -> None:
    """Against decoded labels and against published meshes alike; a wrong camera would show in both."""
    for scorer in (
        MeshScorer(hand_model(), NoTruth(), official=False),
        MeshScorer(hand_model(), Truth(batch), official=True),
    ):
        scores = scorer(batch, answer(labelled(batch)))
        assert tuple(scores) == scorer.columns
        assert scores["mesh_usable"].tolist() == [1.0, 1.0, 1.0]
        assert max(scores["mpvpe_mm"].max(), scores["pa_mpvpe_mm"].max()) < 1e-3
    assert set(MESH_SCORES) <= set(scores)
    assert scores["mesh_mean3d"].max() < 1e-4
    assert scores["f_score_5"].min() == 1.0


def test_an_offset_shows_where_it_should(batch: HandBatch) -> None:
    """A hand 3 cm too far: wrist-relative 0, the official absolute error 3 cm, F at 15 mm not 1."""
    hand = labelled(batch)
    far = dataclasses.replace(hand, root_cam_m=hand.root_cam_m + torch.tensor([0.0, 0.0, 0.03]))
    scores = MeshScorer(hand_model(), Truth(batch), official=True)(batch, answer(far))
    assert scores["mpvpe_mm"].max() < 1e-3
    assert scores["mesh_mean3d"].numpy() == pytest.approx(3.0, abs=1e-4)
    assert scores["mesh_al_mean3d"].max() < 1e-4
    assert scores["f_score_15"].max() < 1.0


def test_a_decoded_label_is_compared_at_the_wrist(batch: HandBatch) -> None:
    """A hand 3 cm too far with one vertex 7.78 mm off: 0.01 mm in the mean of 778, and no 30 mm."""
    hand = labelled(batch)
    bump = torch.zeros(778, 3)
    bump[700, 1] = 7.78e-3
    far = dataclasses.replace(
        hand,
        root_cam_m=hand.root_cam_m + torch.tensor([0.0, 0.0, 0.03]),
        vertices_root_m=hand.vertices_root_m + bump,
    )
    scores = MeshScorer(hand_model(), NoTruth(), official=False)(batch, answer(far))
    assert scores["mpvpe_mm"].numpy() == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("official", [False, True])
def test_the_hand_before_refinement_is_scored_apart(batch: HandBatch, official: bool) -> None:
    """Whether refinement brings anything shows only beside what it started from."""
    hand = labelled(batch)
    step = torch.zeros(21, 3)
    step[12, 0] = 0.021  # one joint of 21, 21 mm off
    coarse = dataclasses.replace(hand, joints_root_m=hand.joints_root_m + step)
    truth = Truth(batch) if official else NoTruth()
    scores = MeshScorer(hand_model(), truth, official=official)(batch, answer(hand, coarse))
    assert scores["coarse_mpjpe_mm"].numpy() == pytest.approx(1.0, abs=1e-3)
    assert scores["coarse_pa_mpjpe_mm"].min() > 0.1
    assert scores["mpvpe_mm"].max() < 1e-3


def test_truth_is_taken_by_index(batch: HandBatch) -> None:
    """A batch in another order must not be scored against its neighbours' meshes."""
    order = torch.tensor([2, 0, 1])
    moved = HandBatch(**{f.name: getattr(batch, f.name)[order] for f in dataclasses.fields(HandBatch)})
    scores = MeshScorer(hand_model(), Truth(batch), official=True)(moved, answer(labelled(moved)))
    assert scores["mesh_mean3d"].max() < 1e-4


def test_a_mesh_without_label_is_not_scored(batch: HandBatch) -> None:
    """Parameters that do not exist decode to a hand that nobody labelled."""
    unknown = dataclasses.replace(batch, mano_valid=torch.tensor([True, False, True]))
    scores = MeshScorer(hand_model(), NoTruth(), official=False)(unknown, answer(labelled(batch)))
    assert scores["mesh_usable"].tolist() == [1.0, 0.0, 1.0]
    assert torch.isnan(scores["mpvpe_mm"]).tolist() == [False, True, False]


def test_the_official_split_without_meshes_has_no_mesh_scores(batch: HandBatch) -> None:
    """evaluation_verts.json may be absent: no number is made up in its place."""
    scorer = MeshScorer(hand_model(), Truth(batch, vertices=False), official=True)
    assert scorer.columns == ()
    assert scorer(batch, answer(labelled(batch))) == {}
