"""Boxes in a video: they follow the hand, and end where a prediction is no hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from src.predict.boxes.finder import iou
from src.predict.boxes.track import EVERY, TrackedBoxes
from src.predict.frame import Frame, HandBox
from src.predict.hands import PER_HAND, Hands

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
Joints = NDArray[np.float64]


class Finder:
    """Finds what it is told to, and counts."""

    def __init__(self, *boxes: HandBox) -> None:
        self.boxes = list(boxes)
        self.asked = 0

    def find(self, frame: Frame) -> list[HandBox]:
        self.asked += 1
        return list(self.boxes)


def hand(x: float = 0.0, y: float = 0.0, z: float = 0.5, size: float = 0.16) -> Joints:
    """21 joints in a square plane, centre (x, y, z) and diagonal `size`, metres."""
    grid = np.linspace(-0.5, 0.5, 5) * size / np.sqrt(2)
    plane = np.stack([*np.meshgrid(grid, grid), np.zeros((5, 5))], axis=-1).reshape(-1, 3)
    return plane[[*range(17), 20, 22, 23, 24]] + [x, y, z]


def box(joints: Joints, left: bool = False) -> HandBox:
    pixels = joints @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    return HandBox((*pixels.min(0).tolist(), *pixels.max(0).tolist()), left)


def frame(depth: float | None = None) -> Frame:
    measured = None if depth is None else np.full((480, 640), depth, np.float32)
    return Frame("a", np.zeros((480, 640, 3), np.uint8), measured, K)


def step(tracked: TrackedBoxes, *hands: Joints, seen: Frame | None = None) -> list[HandBox]:
    """One frame: the boxes that are given for it, of which these hands were predicted."""
    seen = seen or frame()
    boxes = tracked.find(seen)
    arrays = {name: np.zeros((len(boxes), *shape), np.float32) for name, shape in PER_HAND.items()}
    arrays["joints_m"] = np.array(hands, np.float32).reshape(len(boxes), 21, 3)
    faces = np.zeros((0, 3), np.int64)
    tracked.tell(seen, boxes, Hands(**arrays, left=np.array([b.left for b in boxes], bool), faces=faces))
    return boxes


def close(a: HandBox, b: HandBox) -> bool:
    return np.allclose(a.box_px, b.box_px, atol=1e-3) and a.left == b.left


def test_the_box_follows_the_last_prediction() -> None:
    """A hand that moves stays in its crop, and the finder's cost is saved."""
    finder = Finder(box(hand(), left=True))
    tracked = TrackedBoxes(finder)
    assert step(tracked, hand(0.01)) == finder.boxes
    assert close(step(tracked, hand(0.02))[0], box(hand(0.01), left=True))
    assert close(step(tracked, hand(0.03))[0], box(hand(0.02), left=True))
    assert finder.asked == 1


BROKEN = {
    "behind": hand(z=-0.5),
    "nan": np.full((21, 3), np.nan),
    "small": hand(size=0.04),
    "large": hand(size=0.4),
    "outside": hand(-0.4),
    "elsewhere": hand(0.08),
    "shrunk": hand(size=0.11),
    "grown": hand(z=0.35),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_prediction_that_is_no_hand_asks_the_finder_again(case: str) -> None:
    """Else one bad frame would spoil all that follow."""
    finder = Finder(box(hand()))
    tracked = TrackedBoxes(finder)
    step(tracked, BROKEN[case])
    assert step(tracked, hand()) == finder.boxes
    assert finder.asked == 2


def test_slow_shrinking_ends_at_the_finder() -> None:
    """A network that sees a smaller hand in each smaller box would close in on a finger."""
    finder = Finder(box(hand()))
    tracked = TrackedBoxes(finder)
    for k in range(1, 5):
        step(tracked, hand(size=0.16 * 0.9**k))
    assert finder.asked == 2


def test_depth_that_is_seen_elsewhere_ends_the_track() -> None:
    """A hand that has left shows the wall behind it; unmeasured depth says nothing."""
    finder = Finder(box(hand()))
    for depth, asked in ((0.5, 1), (0.0, 1), (np.nan, 1), (1.5, 2)):
        finder.asked = 0
        tracked = TrackedBoxes(finder)
        step(tracked, hand(), seen=frame(depth))
        step(tracked, hand(), seen=frame(depth))
        assert finder.asked == asked, depth


def test_the_finder_is_asked_now_and_then_for_new_hands() -> None:
    """A second hand that comes in must not wait for the first one to leave."""
    finder = Finder(box(hand()))
    tracked = TrackedBoxes(finder)
    for _ in range(EVERY):
        step(tracked, hand())
    finder.boxes.append(box(hand(-0.2), left=True))
    assert len(step(tracked, hand(), hand(-0.2))) == 2
    assert finder.asked == 2


def test_a_hand_that_the_finder_misses_is_kept_once_and_a_drifted_one_is_not() -> None:
    """Detectors miss hands in single frames; what they never see again was no hand."""
    finder = Finder(box(hand()), box(hand(-0.2)))
    tracked = TrackedBoxes(finder)
    for _ in range(EVERY):
        step(tracked, hand(), hand(-0.2))
    finder.boxes = [box(hand(-0.2))]
    assert [len(step(tracked, hand(-0.2), hand())) for _ in range(EVERY)] == [2] * EVERY
    assert tracked.find(frame()) == finder.boxes

    finder.boxes = [box(hand())]
    tracked = TrackedBoxes(finder)
    for _ in range(EVERY):
        step(tracked, hand())
    finder.boxes = [box(hand(0.2))]
    assert tracked.find(frame()) == finder.boxes


def test_two_tracks_on_one_hand_become_one() -> None:
    """One hand is not written twice."""
    finder = Finder(box(hand()), box(hand(0.05)))
    tracked = TrackedBoxes(finder)
    step(tracked, hand(0.02), hand(0.025))
    finder.boxes = []
    assert len(tracked.find(frame())) == 1


def test_no_hand_is_no_box_until_the_finder_sees_one() -> None:
    """Frames without a hand stay empty, and each is looked at."""
    finder = Finder()
    tracked = TrackedBoxes(finder)
    assert [step(tracked) for _ in range(3)] == [[], [], []]
    finder.boxes = [box(hand())]
    assert step(tracked, hand()) == finder.boxes
    assert finder.asked == 4
    assert iou(box(hand()).box_px, box(hand(0.4)).box_px) == 0
