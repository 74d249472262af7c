"""Meshes, overlays, videos and the filter."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from src.errors import DataError
from src.predict.frame import HandBox
from src.predict.hands import PER_HAND, Hands
from src.predict.outputs.meshes import write_mesh
from src.predict.outputs.overlay import draw_hands
from src.predict.outputs.smooth import LOST_S, Smoother
from src.predict.outputs.video import write_video
from src.render.pictures import write_picture
from tests.predict.outputs.made import some_hands

K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
BOX = HandBox((40, 40, 160, 160))


def read_obj(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    corners = np.array([row[1:] for row in lines if row[0] == "f"], np.int64) - 1
    return np.array([row[1:] for row in lines if row[0] == "v"], np.float64), corners


def read_ply(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    head, _, body = path.read_bytes().partition(b"end_header\n")
    counts = [int(line.split()[2]) for line in head.splitlines() if line.startswith(b"element")]
    vertices = np.frombuffer(body, "<f4", counts[0] * 3).reshape(-1, 3)
    rows = np.frombuffer(body[counts[0] * 12 :], [("n", "u1"), ("corners", "<i4", (3,))])
    assert len(rows) == counts[1]
    assert (rows["n"] == 3).all()
    return vertices.astype(np.float64), rows["corners"].astype(np.int64)


@pytest.mark.parametrize("kind", ["obj", "ply"])
@pytest.mark.parametrize("left", [False, True])
def test_meshes_are_turned_outwards(tmp_path: Path, kind: str, left: bool) -> None:
    """A viewer shows a mesh whose faces are turned inwards as a black hole; of left hands it is easily so."""
    hands = some_hands(1, left=(left,))
    path = tmp_path / "deep" / f"a.{kind}"
    write_mesh(path, hands.vertices_m[0], hands.faces_of(0))
    vertices, faces = (read_obj if kind == "obj" else read_ply)(path)
    assert np.array_equal(vertices.astype(np.float32), hands.vertices_m[0])
    a, b, c = (vertices - vertices.mean(0))[faces].transpose(1, 0, 2)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0


def test_an_overlay_lies_on_the_hand() -> None:
    """People judge a network by these pictures: a mesh drawn half a pixel or a mirror off misleads them."""
    grey = np.full((240, 320, 3), 127, np.uint8)
    hands = some_hands(1)
    drawn = draw_hands(grey, K, hands, [BOX])
    assert (grey == 127).all(), "the user's picture is left alone"
    seen = hands.vertices_m[0] @ K.T
    pixels = np.rint(seen[:, :2] / seen[:, 2:]).astype(int)
    changed = np.abs(drawn.astype(int) - 127).max(2) > 8
    assert changed[pixels[:, 1], pixels[:, 0]].mean() > 0.95
    far = np.abs(np.stack(np.nonzero(changed)).T[:, None, ::-1] - pixels[None, ::8]).max(2).min(1)
    x0, y0, x1, y1 = (int(v) for v in BOX.box_px)
    on_box = changed.copy()
    on_box[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2] = False
    assert (far[~on_box[changed]] < 14).all()
    left = draw_hands(grey, K, some_hands(1, left=(True,)), [HandBox(BOX.box_px, left=True)])
    assert left[..., 0].sum() > drawn[..., 0].sum(), "left hands are orange"


def test_hands_that_leave_the_picture_or_the_camera_are_drawn_as_far_as_they_are_seen() -> None:
    """A prediction at the border must not end a run of thousands of frames."""
    grey = np.full((240, 320, 3), 127, np.uint8)
    hands = some_hands(3)
    vertices, joints = hands.vertices_m.copy(), hands.joints_m.copy()
    for points in (vertices, joints):
        points[0, :, 2] -= 0.5  # around the camera's centre
        points[1, :, 0] += 5.0
        points[2, :, 2] *= -1
    moved = Hands(**{**vars(hands), "vertices_m": vertices, "joints_m": joints})
    assert draw_hands(grey, K, moved, [BOX] * 3).shape == grey.shape
    assert np.array_equal(draw_hands(grey, K, some_hands(0), []), grey)


def test_a_video_has_the_frames_of_its_pictures(tmp_path: Path) -> None:
    """A frame that is missing or of another size must be said, not skipped."""
    paths = []
    for k in range(5):
        paths.append(tmp_path / f"{k}.jpg")
        write_picture(paths[-1], np.full((48, 64, 3), 40 * k, np.uint8))
    write_video(tmp_path / "v.mp4", paths, 25.0)
    video = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    write_picture(paths[2], np.zeros((50, 64, 3), np.uint8))
    for wrong, said in ((paths, "64 x 50"), ([*paths[:2], tmp_path / "none.jpg"], "none.jpg is missing")):
        with pytest.raises(DataError, match=said):
            write_video(tmp_path / "w.mp4", wrong, 25.0)
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".jpg", ".mp4") or p.stem == "w"]


def moved(hands: Hands, shift_m: NDArray[np.float64]) -> Hands:
    points = ("joints_m", "vertices_m", "translation_m")
    return Hands(**{**vars(hands), **{n: (getattr(hands, n) + shift_m).astype(np.float32) for n in points}})


def test_the_filter_rests_with_a_hand_at_rest_and_follows_one_that_moves() -> None:
    """Jitter goes; a hand that moves steadily is followed within a few centimetres."""
    hands, smooth, rng = some_hands(1), Smoother(), np.random.default_rng(0)
    for k in range(5):
        still = smooth(k / 30, hands, [BOX])
        assert all(np.allclose(getattr(still, n), getattr(hands, n), atol=1e-6) for n in PER_HAND)
    noisy = [moved(hands, rng.normal(0, 0.003, 3)) for _ in range(60)]
    steady = Smoother()
    out = [steady(k / 30, h, [BOX]).joints_m[0, 0] for k, h in enumerate(noisy)]
    assert np.std(out[10:], axis=0).mean() < 0.6 * np.std([h.joints_m[0, 0] for h in noisy], axis=0).mean()
    run = Smoother()
    for k in range(60):
        now = moved(hands, np.array([0.01 * k, 0, 0]))  # 0.3 m/s
        lag = np.abs(run(k / 30, now, [BOX]).joints_m - now.joints_m).max()
    assert lag < 0.02


def test_the_filter_keeps_hands_apart_and_forgets_those_that_left() -> None:
    """A left and a right hand that cross, or a hand that comes back elsewhere, must not be averaged."""
    smooth = Smoother()
    right, left = some_hands(1), some_hands(1, left=(True,))
    for k in range(20):
        both = [moved(right, np.array([0.02 * k, 0, 0])), moved(left, np.array([-0.02 * k, 0, 0]))]
        pair = Hands.join(both if k % 2 else both[::-1], right.faces)
        boxes = [HandBox(BOX.box_px, bool(side)) for side in pair.left]
        assert np.abs(smooth(k / 30, pair, boxes).joints_m - pair.joints_m).max() < 0.06
    back = moved(right, np.array([0.0, 0.3, 0.0]))
    again = smooth(20 / 30 + LOST_S * 2, back, [BOX])
    assert np.array_equal(again.joints_m, back.joints_m)
    turned = Smoother()
    for k in range(5):
        angle = 0.2 * k
        c, s = np.cos(angle), np.sin(angle)
        spun = np.array([[[c, -s, 0], [s, c, 0], [0, 0, 1]]], np.float32)
        out = turned(k / 30, Hands(**{**vars(right), "global_orient": spun}), [BOX]).global_orient[0]
        assert np.allclose(out @ out.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(out) > 0.99
