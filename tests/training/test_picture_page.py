"""Which samples a page shows, and that number and skeletons under a picture are that sample's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src.schema import HandBatch, Prediction
from src.training import picture_page
from src.training.picture_page import PicturePage
from tests.losses.test_loss import truth
from tests.models.scene import make_batch


def test_a_caption_tells_the_error_relative_to_the_wrist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand of the right pose 100 mm too far away has an MPJPE of 0, and so has its picture."""
    captions: list[str] = []

    def note(*arguments: Any) -> np.ndarray:
        captions.append(arguments[-1])
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(picture_page, "truth_and_prediction", note)
    joints = torch.randn(2, 21, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    joints[:, 0] = 0
    away = torch.tensor([0.0, 0.0, 0.6])
    batch: Any = SimpleNamespace(
        rgb=torch.zeros(2, 3, 8, 8),
        size=2,
        joints_root_m=joints,
        joints_cam_m=joints + away,
        intrinsics_crop_px=torch.eye(3).expand(2, 3, 3),
        joints_crop_px=torch.zeros(2, 21, 2),
        sample_index=torch.tensor([7, 9]),
    )
    # The first is right but 100 mm too far away; every joint of the second but the wrist is 21 mm off too.
    wrong = torch.zeros(2, 21, 3)
    wrong[1, 1:, 1] = 0.021
    hand = SimpleNamespace(joints_root_m=joints + wrong, joints_cam_m=joints + wrong + away * (0.7 / 0.6))
    prediction: Any = SimpleNamespace(hand=hand)
    PicturePage(2, 1).add(batch, prediction)
    assert captions == ["sample 7: 0.0 mm", "sample 9: 20.0 mm"]


def test_a_picture_carries_the_number_of_its_own_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are taken from all over a batch: who looks a bad one up must find that very frame."""
    tiles: list[tuple[float, float, float, str]] = []

    def note(picture: np.ndarray, truth: np.ndarray, predicted: np.ndarray, caption: str) -> np.ndarray:
        tiles.append((float(picture[0, 0, 0]), float(truth[0, 0]), float(predicted[1, 0]), caption))
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(picture_page, "truth_and_prediction", note)
    monkeypatch.setattr(picture_page, "picture_from_network", lambda rgb: rgb)
    number = torch.arange(6.0)
    joints = torch.zeros(6, 21, 3)
    joints[:, 1:, 0] = 0.021 * number[:, None]  # frame k is 20 k mm off
    depth = torch.tensor([0.0, 0.0, 1.0])
    batch: Any = SimpleNamespace(
        rgb=number.view(6, 1, 1, 1).expand(6, 3, 8, 8),
        size=6,
        joints_root_m=torch.zeros(6, 21, 3),
        intrinsics_crop_px=torch.diag(torch.tensor([1000.0, 1000.0, 1.0])).expand(6, 3, 3),
        joints_crop_px=number.view(6, 1, 1).expand(6, 21, 2),
        sample_index=50 + torch.arange(6),
    )
    hand = SimpleNamespace(joints_root_m=joints, joints_cam_m=joints + depth)
    PicturePage(3, 1).add(batch, SimpleNamespace(hand=hand))  # type: ignore[arg-type]
    assert [tile[3] for tile in tiles] == ["sample 50: 0.0 mm", "sample 52: 40.0 mm", "sample 54: 80.0 mm"]
    assert [tile[:2] for tile in tiles] == [(0, 0), (2, 2), (4, 4)]
    assert [tile[2] for tile in tiles] == pytest.approx([0, 42, 84])


Tiles = list[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], str]]


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Tiles:
    """What the page draws: picture, truth, prediction, caption."""
    drawn: Tiles = []

    def note(*arguments: object) -> NDArray[np.uint8]:
        drawn.append(arguments)  # type: ignore[arg-type]
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(picture_page, "truth_and_prediction", note)
    return drawn


def off_by(batch: HandBatch, metres: float) -> Prediction:
    """The labels, but for each joint other than the wrist that is off by so much along x."""
    right = truth(batch)
    step = torch.zeros(21, 3)
    step[1:, 0] = metres
    hand = dataclasses.replace(right.hand, joints_root_m=right.hand.joints_root_m + step)
    return dataclasses.replace(right, hand=hand)


def test_captions_name_the_sample_and_its_error(tiles: Tiles) -> None:
    """21 mm on 20 of 21 joints are 20.0 mm; both skeletons are in the crop's pixels."""
    batch = make_batch(1, 64, 96, noise=True)
    other = torch.tensor([[500.0, 0, 320.0], [0, 500.0, 240.0], [0, 0, 1]])[None]
    batch = dataclasses.replace(batch, sample_index=torch.tensor([4711]), intrinsics_img_px=other)
    page = PicturePage(4, 1)
    page.add(batch, off_by(batch, 0.021))
    ((picture, truth_px, predicted_px, caption),) = tiles
    assert caption == "sample 4711: 20.0 mm"
    assert picture.shape == (64, 96, 3)
    np.testing.assert_allclose(truth_px, batch.joints_crop_px[0], atol=1e-3)
    moved = batch.joints_cam_m[0] + torch.tensor([0.021, 0.0, 0.0])
    k = batch.intrinsics_crop_px[0]
    expected = (moved @ k.T)[:, :2] / moved[:, 2:]
    np.testing.assert_allclose(predicted_px[1:], expected[1:], atol=1e-2)


def test_the_page_shows_samples_of_the_whole_validation(tiles: Tiles) -> None:
    """Six tiles of three batches of eight: the first and the fifth of each; of none, no page."""
    page = PicturePage(6, 3)
    for k in range(3):
        batch = dataclasses.replace(make_batch(8, 32, 32, noise=True), sample_index=torch.arange(8) + 8 * k)
        page.add(batch, truth(batch))
    shown = [int(caption.split()[1].rstrip(":")) for *_, caption in tiles]
    assert shown == [0, 4, 8, 12, 16, 20]
    assert PicturePage(0, 3).write(Path("nowhere.png")) is None
