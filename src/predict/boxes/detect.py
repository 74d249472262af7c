"""Boxes from MediaPipe's palm detector and landmark net, without a network connection.

The two models (Apache-2.0) stand in the wheel of mediapipe 0.10.21; `make detector` takes them out of it. The
palm detector says where palms are and how they are turned, the landmark net finds 21 points in the turned
square around each and says which hand it is. The box is that around the points, as labels have it. Hands
whose palm the detector does not see, from behind or with a thing in them, are proposed by the frame's depth,
if it has any: what hangs together like a hand is one if the landmark net says so.
Source: Zhang et al. 2020, "MediaPipe Hands: On-device Real-time Hand Tracking"; anchors, decoding and regions
as mediapipe's graphs palm_detection_cpu, palm_detection_detection_to_roi and hand_landmark_landmarks_to_roi
state them.

Legend: P palms. Pixels of the picture; angles in radians, x towards y.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import AssetError, ConfigError
from src.predict.boxes.depth import DepthBoxes
from src.predict.boxes.finder import iou
from src.predict.frame import Frame, HandBox
from src.runtime.files.disk import read_plain

FOLDER = Path(__file__).resolve().parents[3] / "data" / "detector"
"""Where `make detector` puts the models."""
MODELS = {
    "palm_detection_full.tflite": "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
    "hand_landmark_full.tflite": "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
}
"""Name and SHA-256 of each."""

PALM_PX, HAND_PX = 192, 224
"""Sides of the models' inputs."""
LEAST_PALM, LEAST_HAND = 0.5, 0.3
"""Least score of a palm, and of a hand in its square. A palm's square that shows no hand scores below 0.1."""
SAME_PALM = 0.3
"""Palms that share more (area in common over area of both) are one."""
SAME_HAND = 0.5
"""The same of two hands' boxes."""
MOST_HANDS = 2
"""In a picture."""

_MOST_BYTES = 1 << 24
_GRIDS = ((PALM_PX // 8, 2), (PALM_PX // 16, 6))
"""Cells along a side, and anchors in a cell: strides 8, and three layers of stride 16."""
_WRIST, _MIDDLE = 0, 2
"""Palm keypoints that say how a hand is turned: its wrist and the base of its middle finger."""
_FROM_PALM = (2.6, -0.5)
"""Side of a hand's square over the palm's, and its shift towards the fingers in palm heights."""
_FROM_POINTS = (2.0, -0.1)
"""The same from the box around landmarks."""
_PALM_POINTS = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
"""Landmarks whose turned box gives the square of the second look."""
_LONG = 1.5
"""A picture is long from this aspect on."""
_TURNS, _SIZES = 12, (1.6, 2.0)
"""Of the squares around a box from depth: how many angles, and sides over the box's longer side."""
_TILE = 0.75
"""Side of the corner and centre tiles that are searched where the whole picture shows no hand, over the
picture's."""


class Square(NamedTuple):
    """A turned square of the picture."""

    x: float
    y: float
    side: float
    angle: float
    """0: fingers point up."""


class Palms(NamedTuple):
    """What the palm detector sees, in fractions of its input."""

    box: NDArray[np.float32]
    """(P, 4) x0, y0, x1, y1."""
    keypoints: NDArray[np.float32]
    """(P, 7, 2)."""
    score: NDArray[np.float32]
    """(P,) 0 to 1."""


class Seen(NamedTuple):
    """What the landmark net says of a square, hand or not."""

    square: Square
    points_px: NDArray[np.float64]
    """(21, 2)."""
    score: float
    """That it is a hand, 0 to 1."""


class HandDetector:
    """A `BoxFinder`; says which hand it is as well.

    Args:
        folder: of the models.

    Raises:
        AssetError: a model is missing or another file.
        ConfigError: the library that runs them is not installed.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._palm, self._hand = (_Model(folder / name, digest) for name, digest in MODELS.items())

    def find(self, frame: Frame) -> list[HandBox]:
        """Hands of a picture, the surest first: the whole is searched, then parts, then what depth has."""
        height, width = frame.rgb.shape[:2]
        found = [box for part in _wholes(width, height) for box in self._in_part(frame.rgb, part)]
        if not found:
            for part in _tiles(width, height):
                found += self._in_part(frame.rgb, part)
        if not found and frame.depth_m is not None:
            near = [self._look(frame.rgb, squares_of_box(b.box_px)) for b in DepthBoxes().find(frame)]
            found = [hand for hand in near if hand is not None]
        found.sort(key=lambda box: -box.score)
        kept: list[HandBox] = []
        for box in found:
            if all(iou(box.box_px, other.box_px) <= SAME_HAND for other in kept):
                kept.append(box)
        return kept[:MOST_HANDS]

    def _in_part(self, rgb: NDArray[np.uint8], part: tuple[int, int, int, int]) -> list[HandBox]:
        """Hands whose palms are seen in a part x0, y0, x1, y1 of the picture."""
        x0, y0, x1, y1 = part
        side = max(x1 - x0, y1 - y0)
        middle = ((x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5)
        piece = _warp(rgb, Square(*middle, side, 0.0), PALM_PX)
        palms = strongest(decode_palms(*self._palm(piece)))
        corner = np.array([middle[0] - side / 2 + 0.5, middle[1] - side / 2 + 0.5])
        found = []
        for box, keypoints in zip(palms.box, palms.keypoints, strict=True):
            square = square_of_palm(box * side + np.tile(corner, 2), keypoints * side + corner)
            if (hand := self._look(rgb, [square])) is not None:
                found.append(hand)
        return found

    def _look(self, rgb: NDArray[np.uint8], squares: list[Square]) -> HandBox | None:
        """The hand in the best of some squares, looked at again in the square around its points."""
        seen = max((self.landmarks(rgb, square) for square in squares), key=lambda seen: seen.score)
        if seen.score < LEAST_HAND:
            return None
        again = self.landmarks(rgb, square_of_points(seen.points_px, seen.square.angle))
        if again.score >= LEAST_HAND:
            seen = again
        (x0, y0), (x1, y1) = seen.points_px.min(0).tolist(), seen.points_px.max(0).tolist()
        return HandBox((x0, y0, x1, y1), self._is_left(rgb, seen.square), seen.score)

    def landmarks(self, rgb: NDArray[np.uint8], square: Square) -> Seen:
        """What the landmark net sees in a square."""
        raw, score, *_ = self._hand(_warp(rgb, square, HAND_PX))
        unit = raw.reshape(21, 3)[:, :2].astype(np.float64) / HAND_PX - 0.5
        c, s = math.cos(square.angle), math.sin(square.angle)
        points = unit * square.side @ np.array([[c, s], [-s, c]]) + [square.x, square.y]
        return Seen(square, points, float(score.item()))

    def _is_left(self, rgb: NDArray[np.uint8], square: Square) -> bool:
        """Which hand is in a square. The net leans to the right hand: its mirror image is asked too."""
        piece = _warp(rgb, square, HAND_PX)
        right, mirrored_right = (float(self._hand(view)[2].item()) for view in (piece, piece[:, ::-1]))
        return mirrored_right > right


class _Model:
    """A .tflite file: one picture in, arrays out."""

    def __init__(self, path: Path, digest: str) -> None:
        advice = "Run `make detector`, or use --boxes depth or a file"
        try:
            content = read_plain(path, _MOST_BYTES)
        except OSError as error:
            raise AssetError(f"hand detector {path}: {error.strerror}. {advice}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise AssetError(f"hand detector {path} is damaged, or another file. {advice}")
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ConfigError(f"the hand detector needs ai-edge-litert ({error}). {advice}") from None
        self._run: Any = Interpreter(model_content=content, num_threads=1)
        self._run.allocate_tensors()
        self._input = self._run.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._run.get_output_details()]

    def __call__(self, rgb: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Outputs for an (H, W, 3) picture, each without its batch axis."""
        self._run.set_tensor(self._input, rgb[None].astype(np.float32) / 255)
        self._run.invoke()
        return [self._run.get_tensor(index)[0] for index in self._outputs]


def anchors() -> NDArray[np.float32]:
    """(2016, 2) centres x, y of the palm detector's anchors, in fractions of its input."""
    parts = []
    for cells, each in _GRIDS:
        y, x = np.divmod(np.arange(cells * cells), cells)
        parts.append(np.repeat((np.stack([x, y], 1) + 0.5) / cells, each, axis=0))
    return np.concatenate(parts).astype(np.float32)


def decode_palms(raw: NDArray[np.float32], logits: NDArray[np.float32]) -> Palms:
    """Palms that are sure enough.

    Args:
        raw: (2016, 18) centre, size and 7 keypoints in pixels of the input, relative to the anchors.
        logits: (2016, 1).
    """
    score = 1 / (1 + np.exp(-logits[:, 0].clip(-100, 100)))
    sure = score >= LEAST_PALM
    numbers, centre = raw[sure] / PALM_PX, anchors()[sure]
    middle, half = numbers[:, :2] + centre, numbers[:, 2:4] / 2
    keypoints = numbers[:, 4:].reshape(-1, 7, 2) + centre[:, None]
    return Palms(np.concatenate([middle - half, middle + half], 1), keypoints, score[sure])


def strongest(palms: Palms) -> Palms:
    """One of each group of palms that overlap: their mean, weighted by how sure they are."""
    order, boxes, keypoints, scores = list(np.argsort(-palms.score)), [], [], []
    while order:
        first = palms.box[order[0]].tolist()
        group = [k for k in order if k == order[0] or iou(first, palms.box[k].tolist()) > SAME_PALM]
        weight = palms.score[group] / palms.score[group].sum()
        boxes.append(np.einsum("k,kc->c", weight, palms.box[group]))
        keypoints.append(np.einsum("k,kpc->pc", weight, palms.keypoints[group]))
        scores.append(palms.score[order[0]])
        order = [k for k in order if k not in group]
    return Palms(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(keypoints, np.float32).reshape(-1, 7, 2),
        np.array(scores, np.float32),
    )


def square_of_palm(box: NDArray[np.floating], keypoints: NDArray[np.floating]) -> Square:
    """The square that holds a whole hand, from its palm: (4,) box and (7, 2) keypoints, pixels."""
    along = keypoints[_MIDDLE] - keypoints[_WRIST]
    return _grown(box, math.atan2(along[1], along[0]) + math.pi / 2, _FROM_PALM)


def squares_of_box(box_px: tuple[float, float, float, float]) -> list[Square]:
    """Squares around a hand's box, turned all ways: a box does not say where the fingers point."""
    x0, y0, x1, y1 = box_px
    side = max(x1 - x0, y1 - y0)
    turns = [2 * math.pi * k / _TURNS for k in range(_TURNS)]
    return [Square((x0 + x1) / 2, (y0 + y1) / 2, side * size, turn) for size in _SIZES for turn in turns]


def square_of_points(points_px: NDArray[np.float64], angle: float) -> Square:
    """The square around (21, 2) landmarks for a second look.

    Args:
        points_px: pixels.
        angle: of the first look; landmarks say it better where wrist and fingers are apart.
    """
    wrist, index, middle, ring = points_px[[0, 6, 10, 14]]
    along = ((index + ring) / 2 + middle) / 2 - wrist
    if np.hypot(*along) > 1:
        angle = math.atan2(along[1], along[0]) + math.pi / 2
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])  # rows times this: picture -> square's axes
    upright = points_px[list(_PALM_POINTS)] @ turn
    low, high = upright.min(0), upright.max(0)
    x, y = (low + high) / 2 @ turn.T
    half = (high - low) / 2
    return _grown(np.array([x - half[0], y - half[1], x + half[0], y + half[1]]), angle, _FROM_POINTS)


def _grown(box: NDArray[np.floating], angle: float, how: tuple[float, float]) -> Square:
    """The square around a box, enlarged and shifted along its own axis."""
    growth, shift = how
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    x = float(box[0] + box[2]) / 2 - height * shift * math.sin(angle)
    y = float(box[1] + box[3]) / 2 + height * shift * math.cos(angle)
    return Square(x, y, max(width, height) * growth, angle)


def _warp(rgb: NDArray[np.uint8], square: Square, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) what a square shows, black outside the picture."""
    c, s = math.cos(square.angle) * square.side / size, math.sin(square.angle) * square.side / size
    half = (size - 1) / 2
    back = np.array([[c, -s, square.x - half * (c - s)], [s, c, square.y - half * (s + c)]])
    if square.side > 2 * size:  # a pixel of the square covers many: average them first
        less = size / square.side
        rgb = np.asarray(cv2.resize(rgb, None, fx=less, fy=less, interpolation=cv2.INTER_AREA), np.uint8)
        shrunk = Square((square.x + 0.5) * less - 0.5, (square.y + 0.5) * less - 0.5, size, square.angle)
        return _warp(rgb, shrunk, size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(rgb, back, (size, size), flags=flags), np.uint8)


def _wholes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The whole picture, x0, y0, x1, y1; of a long one also its ends: hands are small in it."""
    parts, side = [(0, 0, width, height)], min(width, height)
    if max(width, height) > _LONG * side:
        parts += [(0, 0, side, side), (width - side, height - side, width, height)]
    return parts


def _tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Parts of a picture, x0, y0, x1, y1: the centre and four corners."""
    w, h = round(width * _TILE), round(height * _TILE)
    places = [((width - w) // 2, (height - h) // 2)] + [
        (x, y) for y in (0, height - h) for x in (0, width - w)
    ]
    return [(x, y, x + w, y + h) for x, y in places]
