"""The hand detector's geometry, and what it says where it cannot work."""

from __future__ import annotations

import builtins
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dataloader.pictures.decode import read_rgb
from dataloader.synthetic.writer import Parameters, write_tree
from src.errors import AssetError, ConfigError
from src.hand.mano_assets import load_hand_asset
from src.predict.boxes import detect
from src.predict.boxes.detect import (
    HandDetector,
    Palms,
    Square,
    anchors,
    decode_palms,
    square_of_palm,
    square_of_points,
    squares_of_box,
    strongest,
)
from src.predict.boxes.finder import iou
from src.predict.frame import Frame, HandBox
from tests.hand_file import hand_file

Array = NDArray[Any]


def test_a_planted_palm_is_decoded_where_it_is() -> None:
    """An anchor that is off by a cell puts every box beside its hand."""
    raw, logits = np.zeros((2016, 18), np.float32), np.full((2016, 1), -20, np.float32)
    assert len(anchors()) == 2016
    for k, near in ((0, [0.5 / 24, 0.5 / 24]), (2 * 24 + 1, [0.5 / 24, 1.5 / 24]), (2015, [11.5 / 12] * 2)):
        assert anchors()[k] == pytest.approx(near)
    raw[1152, :4] = 19.2, -9.6, 38.4, 19.2  # pixels of 192
    raw[1152, 4:8] = 0, 19.2, 9.6, 0
    logits[1152] = 2.0
    palms = decode_palms(raw, logits)
    x, y = 0.5 / 12 + 0.1, 0.5 / 12 - 0.05
    assert palms.box == pytest.approx(np.array([[x - 0.1, y - 0.05, x + 0.1, y + 0.05]]), abs=1e-6)
    assert palms.keypoints[0, 1] == pytest.approx([0.5 / 12 + 0.05, 0.5 / 12], abs=1e-6)
    assert palms.score == pytest.approx([1 / (1 + math.exp(-2))])


def test_one_palm_is_one_hand_and_two_are_two() -> None:
    """The detector answers with dozens of boxes for each palm."""
    box = np.array([[0.1, 0.1, 0.3, 0.3], [0.11, 0.1, 0.31, 0.3], [0.6, 0.6, 0.8, 0.8]], np.float32)
    points = np.repeat(box[:, None, :2], 7, axis=1)
    kept = strongest(Palms(box, points, np.array([0.6, 0.9, 0.7], np.float32)))
    assert kept.score == pytest.approx([0.9, 0.7])
    assert kept.box[0] == pytest.approx([0.106, 0.1, 0.306, 0.3], abs=1e-6)
    assert len(strongest(Palms(box[:0], points[:0], np.zeros(0, np.float32))).box) == 0


def test_a_square_turns_with_the_hand() -> None:
    """Landmarks are found for fingers that point up in the square: one turned the wrong way finds nothing."""
    box, points = np.array([40.0, 60, 60, 80]), np.zeros((7, 2))
    points[0], points[2] = (50, 80), (50, 60)  # fingers up
    up = square_of_palm(box, points)
    assert up == pytest.approx(Square(50, 60, 52, 0))
    points[0], points[2] = (40, 70), (60, 70)  # fingers to the right
    right = square_of_palm(box, points)
    assert right == pytest.approx(Square(60, 70, 52, math.pi / 2))
    landmarks = np.zeros((21, 2))
    landmarks[:] = (50, 60)
    landmarks[0] = (50, 100)
    assert square_of_points(landmarks, 1.0).angle == pytest.approx(0)
    landmarks[0] = (50, 20)
    assert abs(square_of_points(landmarks, 1.0).angle) == pytest.approx(math.pi)


def test_what_is_missing_is_said_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without the extra must not meet a traceback of a library."""
    with pytest.raises(AssetError, match=r"palm_detection_full\.tflite: No such file.*make detector"):
        HandDetector(tmp_path)
    for name in detect.MODELS:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AssetError, match=r"damaged, or another file.*make detector"):
        HandDetector(tmp_path)
    monkeypatch.setattr(detect, "MODELS", dict.fromkeys(detect.MODELS, hashlib.sha256(b"x").hexdigest()))
    importer = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("ai_edge_litert"):
            raise ImportError("no module")
        return importer(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"ai-edge-litert.*make detector"):
        HandDetector(tmp_path)


class Planted:
    """Sees no palm, and in every square a hand of that `score`: a right one if its left half is lighter."""

    score = 0.9

    def __init__(self, path: Path, _: str) -> None:
        self.palm = "palm" in path.name

    def __call__(self, rgb: Array) -> list[Array]:
        if self.palm:
            return [np.zeros((2016, 18), np.float32), np.full((2016, 1), -20, np.float32)]
        raw = np.full((21, 3), 112, np.float32)
        raw[0, 1], raw[9, 1] = 168, 56  # a quarter of the square below and above its centre
        light = rgb.astype(np.float32).mean((0, 2))
        right = float(light[:112].mean() > light[112:].mean())
        return [raw.ravel(), np.array([self.score]), np.array([right]), raw.ravel()]


def test_a_hand_whose_palm_is_hidden_is_found_by_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from behind, with a can in it, a hand has no palm; and what depth takes for a hand may be none."""
    monkeypatch.setattr(detect, "_Model", Planted)
    monkeypatch.setattr(detect.DepthBoxes, "find", lambda *_: [HandBox((40.0, 30.0, 80.0, 60.0))])
    rgb = np.zeros((90, 120, 3), np.uint8)
    rgb[:, :60] = 200
    depth = np.full((90, 120), 0.5, np.float32)
    (hand,) = HandDetector().find(Frame("x", rgb, depth, np.eye(3)))
    assert (hand.left, hand.score) == (False, 0.9)
    assert 40 < (hand.box_px[0] + hand.box_px[2]) / 2 < 80
    (other,) = HandDetector().find(Frame("x", rgb[:, ::-1].copy(), depth, np.eye(3)))
    assert other.left
    assert HandDetector().find(Frame("x", rgb, None, np.eye(3))) == []
    monkeypatch.setattr(Planted, "score", 0.1)
    assert HandDetector().find(Frame("x", rgb, depth, np.eye(3))) == []


def test_a_box_is_looked_at_from_all_sides() -> None:
    """Boxes from depth do not say where the fingers point."""
    squares = squares_of_box((40.0, 30.0, 80.0, 60.0))
    assert {(s.x, s.y) for s in squares} == {(60.0, 45.0)}
    assert {round(s.side) for s in squares} == {64, 80}
    assert sorted({round(math.degrees(s.angle)) for s in squares}) == list(range(0, 360, 30))


@pytest.fixture(scope="module")
def detector() -> HandDetector:
    pytest.importorskip("ai_edge_litert", reason="needs `make detector`")
    if not all((detect.FOLDER / name).is_file() for name in detect.MODELS):
        pytest.skip("needs `make detector`")
    return HandDetector()


def test_a_blank_picture_shows_no_hand(detector: HandDetector) -> None:
    """Frames without a hand are listed, not invented."""
    grey = np.full((240, 320, 3), 127, np.uint8)
    assert detector.find(Frame("x", grey, None, np.eye(3))) == []


def test_a_mirrored_right_hand_is_a_left_one(detector: HandDetector, tmp_path: Path) -> None:
    """A hand taken for the other is predicted as its mirror image."""
    write_tree(tmp_path / "tree", Parameters(1, 1, 0, cameras=1), load_hand_asset(hand_file()))
    rgb = read_rgb(next((tmp_path / "tree" / "train").rglob("rgb/*.jpg")))
    truth = (233, 208, 313, 315)  # around the joints that this picture's label projects
    (hand,) = detector.find(Frame("x", rgb, None, np.eye(3)))
    (mirrored,) = detector.find(Frame("x", rgb[:, ::-1].copy(), None, np.eye(3)))
    assert (hand.left, mirrored.left) == (False, True)
    assert iou(hand.box_px, truth) > 0.7
    assert iou(mirrored.box_px, (639 - truth[2], truth[1], 639 - truth[0], truth[3])) > 0.7
