"""A validation: what meshes score, which pictures are shown, which epoch is the best, what the log says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src.errors import TrainingError
from src.evaluation.evaluator import CheckedResult
from src.evaluation.official import MESH_SCORES
from src.schema import HandBatch, HandEstimate, Prediction
from src.training import picture_page
from src.training.checkpoints.checkpoint import Progress
from src.training.mesh_scorer import MeshScorer
from src.training.picture_page import PicturePage
from src.training.validation import is_best, report
from tests.log_lines import log_lines
from tests.models.scene import hand_model, make_batch
from tests.training.test_recorder import result
from tests.training.toy import ALONE


class Truth:
    """Published ground truth that is what the labels of a batch decode to, in the image camera; or none."""

    def __init__(self, batch: HandBatch, *, joints: bool = True, vertices: bool = True) -> None:
        hand = labelled(batch)
        self.joints = batch.to_image_camera(hand.joints_cam_m).double().numpy() if joints else None
        self.vertices = batch.to_image_camera(hand.vertices_cam_m).double().numpy() if vertices else None

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        return None if self.joints is None else self.joints[sample_index]

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        return None if self.vertices is None else self.vertices[sample_index]


def scorer(batch: HandBatch, *, official: bool, vertices: bool = True) -> MeshScorer:
    """Of the official split, or of one of the training list, whose truth is the labels."""
    return MeshScorer(
        hand_model(), Truth(batch, joints=official, vertices=official and vertices), official=official
    )


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


@pytest.fixture
def batch() -> HandBatch:
    """Rows 0, 1, 2, in a crop camera that is rolled."""
    angle, roll = torch.tensor(0.7), torch.eye(3)
    roll[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    made = make_batch(3, 64, 64, seed=5, noise=True)
    camera = roll.expand(3, 3, 3).contiguous()
    return dataclasses.replace(made, sample_index=torch.arange(3), rot_crop_from_img=camera)


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


Tiles = list[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], str]]


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Tiles:
    """What the page draws: picture, truth, prediction, caption."""
    drawn: Tiles = []

    def note(*arguments: Any) -> NDArray[np.uint8]:
        drawn.append(arguments)  # type: ignore[arg-type]
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(picture_page, "truth_and_prediction", note)
    return drawn


def test_captions_name_the_sample_and_its_error(tiles: Tiles) -> None:
    """21 mm on 20 of 21 joints are 20.0 mm, whose hand is 100 mm too far away: the error is relative to the
    wrist. Both skeletons are in the crop's pixels.
    """
    made = make_batch(1, 64, 96, noise=True)
    other = torch.tensor([[500.0, 0, 320.0], [0, 500.0, 240.0], [0, 0, 1]])[None]
    made = dataclasses.replace(made, sample_index=torch.tensor([4711]), intrinsics_img_px=other)
    hand = dataclasses.replace(labelled(made), root_cam_m=made.root_cam_m, joints_root_m=made.joints_root_m)
    off = shifted(hand, away_m=0.1, joint_m=0.021)
    PicturePage(4, 1).add(made, answer(off))
    ((picture, truth_px, predicted_px, caption),) = tiles
    assert caption == "sample 4711: 20.0 mm"
    assert picture.shape == (64, 96, 3)
    np.testing.assert_allclose(truth_px, made.joints_crop_px[0], atol=1e-3)
    on_picture = off.joints_cam_m[0] @ made.intrinsics_crop_px[0].T
    np.testing.assert_allclose(predicted_px, on_picture[:, :2] / on_picture[:, 2:], atol=1e-2)


def test_the_page_shows_samples_of_the_whole_validation(tiles: Tiles) -> None:
    """Six tiles of three batches of eight: the first and the fifth of each; of none, no page."""
    page = PicturePage(6, 3)
    for k in range(3):
        made = dataclasses.replace(make_batch(8, 32, 32, noise=True), sample_index=torch.arange(8) + 8 * k)
        page.add(made, answer(labelled(made)))
    assert [int(caption.split()[1].rstrip(":")) for *_, caption in tiles] == [0, 4, 8, 12, 16, 20]
    assert PicturePage(0, 3).write(Path("nowhere.png")) is None


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
def test_nothing_that_is_broken_is_chosen(broken: str) -> None:
    """Low numbers of either modality beside predictions that are not finite choose nothing; nor does a split
    without a label.
    """
    changes: tuple[dict[str, Any], ...] = (
        {"nonfinite_count": 1, "nonfinite_indices": (3,)},
        {"mpjpe_mm": math.nan},
    )
    for change in changes:
        position = Progress(best_mpjpe_mm=20.0, best_epoch=4)
        bad: CheckedResult = dataclasses.replace(result(1.0), **change)
        results: Any = {"rgbd": result(1.0), "rgb": result(1.0)} | {broken: bad}
        if bad.nonfinite_count:
            with pytest.raises(TrainingError, match=r"1 \(samples 3\)"):
                is_best(results, position)
        else:
            assert not is_best(results, position)
        assert (position.best_mpjpe_mm, position.best_epoch) == (20.0, 4)


def test_the_lines_of_a_validation_have_each_number_in_its_place() -> None:
    """With depth first, then by which split, then without depth."""
    without = dataclasses.replace(result(25.0, loss=4.0), pa_mpjpe_mm=15.0, num_samples=39, unusable_labels=1)
    with log_lines("validation") as lines:
        report({"rgbd": result(), "rgb": without}, "HO3D v3 val", ALONE)
    assert lines == [
        "  Val Loss: 3.000, MPJPE: 20.000 mm, PA-MPJPE: 10.000 mm",
        "  Evaluated on 40 samples from all 1 CPU ranks",
        "  Vertices: MPVPE 21.000 mm, PA-MPVPE 11.000 mm",
        "  Before refinement: MPJPE 23.000 mm, PA-MPJPE 13.000 mm",
        "  Baselines of this split: zero pose MPJPE 110.000 mm, PA-MPJPE 50.000 mm; mean pose "
        "MPJPE 80.000 mm, PA-MPJPE 30.000 mm; nearest training pose PA-MPJPE 12.000 mm",
        "  Split: HO3D v3 val",
        "  Without depth: Loss: 4.000, MPJPE: 25.000 mm, PA-MPJPE: 15.000 mm (39 samples)",
    ]
