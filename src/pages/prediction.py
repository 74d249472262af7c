"""The page of predicted frames: how many hands, how sure, where; and some of them to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.hand.joints import OPENPOSE21
from src.pages.chosen import spread
from src.pages.figures import colour, line, plot
from src.pages.page import Block, Json, Page, Section
from src.pages.samples import Hand, Sample, sample_json

_SHOWN = 24
"""Hands in the gallery."""
_ROWS = 2000
"""Hands in the table at most."""
_MARGIN = 0.75
"""Around a box, in its longer side."""
_MOST_PX = 320
"""Longer side of a picture in the gallery, pixels."""
_FACTS = ("checkpoint", "model", "rgb", "depth", "camera", "boxes", "hand", "smooth")
"""Settings of the run that are shown."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the page of a prediction is made of."""

    arrays: Mapping[str, NDArray[Any]]
    """`predictions.npz`, N hands."""
    overlay: Callable[[str], NDArray[np.uint8] | None]
    """Name of a frame -> (H, W, 3) its picture with the hands drawn; None where there is none."""

    def page(self) -> Page:
        """The page."""
        frames = self.arrays["frame"].tolist()
        settings = json.loads(str(self.arrays["settings"]))
        distance = np.linalg.norm(self.arrays["joints_m"][:, 0].astype(np.float64), axis=-1)
        empty = self.arrays["frames_without_hand"].tolist()
        said = {name: str(settings[name]) for name in _FACTS if name in settings}
        facts = [(name, value) for name, value in said.items() if value != "False"]
        answers = [f"Hands: {len(frames)}. Frames: {len({*frames, *empty})}."]
        if empty:
            answers.append(f"No hand was found in {len(empty)} frames.")
        if frames:
            low, high = float(distance.min()), float(distance.max())
            answers.append(f"The wrists are {low:.3f} to {high:.3f} m away from the camera.")
        kept = self._gallery(distance)
        sections = []
        if frames:
            words = ["Turn a hand in 3D with the button below it."]
            sections.append(Section("Look at hands", [Block(words=words, samples=list(range(len(kept))))]))
            sections.append(Section("Along the frames", [self._along(distance)]))
        sections.append(Section("Hands", [self._table(distance)]))
        if empty:
            rows = [[name] for name in empty[:_ROWS]]
            table = {"header": ["frame"], "rows": rows, "sortable": True}
            without = Block(words=_left(len(empty)), table=table)
            sections.append(Section("Frames without a hand", [without]))
        samples = [sample_json(sample) for sample in kept]
        return Page(
            "Predicted hands", facts, answers, sections, samples, self.arrays["faces"].ravel().tolist()
        )

    def _gallery(self, distance_m: NDArray[np.float64]) -> list[Sample]:
        """Hands spread over all."""
        found = []
        for k in sorted(spread(len(self.arrays["frame"]), _SHOWN)[:_SHOWN]):
            frame, left = str(self.arrays["frame"][k]), bool(self.arrays["left"][k])
            side = "left hand" if left else "right hand"
            text = f"{side}, {distance_m[k]:.3f} m away"
            text += f", score of its box {score:.2f}." if (score := self.arrays["score"][k]) < 1.0 else "."
            hand = Hand(self.arrays["joints_m"][k], self.arrays["vertices_m"][k])
            picture = self.overlay(frame)
            shown = {} if picture is None else {"overlay": _around(picture, self.arrays["box_px"][k])}
            found.append(Sample(k, frame, text, {side: hand}, others=shown))
        return found

    def _along(self, distance_m: NDArray[np.float64]) -> Block:
        """Distance and score over the frames."""
        order = np.arange(0, len(distance_m), max(1, len(distance_m) // _ROWS))
        data = []
        for left, name in ((False, "right hand"), (True, "left hand")):
            own = order[self.arrays["left"][order] == left]
            if len(own):
                curve = line(name, (own + 1).tolist(), distance_m[own].tolist(), colour(name))
                data.append(curve | {"mode": "markers"})
        return Block(
            "Distance of the wrist from the camera",
            words=["As predicted. A hand's number is its row in the table of hands."],
            figure=plot(data, "number of the hand", "m", hovermode="closest"),
        )

    def _table(self, distance_m: NDArray[np.float64]) -> Block:
        """One row a hand."""
        rows: list[list[Json]] = []
        for k in range(min(_ROWS, len(distance_m))):
            side = "left" if self.arrays["left"][k] else "right"
            box = [round(float(v)) for v in self.arrays["box_px"][k]]
            place = self.arrays["joints_m"][k][OPENPOSE21.index("wrist")].astype(float).tolist()
            rows.append([
                k + 1, str(self.arrays["frame"][k]), side, float(self.arrays["score"][k]),
                float(distance_m[k]), *place, f"{box[2] - box[0]} x {box[3] - box[1]}",
            ])  # fmt: skip
        header = ["number", "frame", "hand", "score of the box", "distance, m"]
        header += ["wrist x, m", "y, m", "z, m", "box, pixels"]
        words = ["Camera of the picture: x right, y down, z forward.", *_left(len(distance_m))]
        return Block(words=words, table={"header": header, "rows": rows, "sortable": True})


def _left(count: int) -> list[str]:
    """What a table leaves out."""
    return [f"The first {_ROWS} of {count} are listed; all are in the files."] if count > _ROWS else []


def _around(picture: NDArray[np.uint8], box_px: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The part of a picture around a box, not larger than `_MOST_PX`."""
    height, width = picture.shape[:2]
    margin = _MARGIN * float((box_px[2:] - box_px[:2]).max())
    x0, y0 = np.clip(box_px[:2] - margin, 0, (width - 2, height - 2)).astype(int)
    x1, y1 = np.clip(box_px[2:] + margin, (x0 + 2, y0 + 2), (width, height)).astype(int)
    step = max(1, round(max(x1 - x0, y1 - y0) / _MOST_PX))
    return np.ascontiguousarray(picture[y0:y1:step, x0:x1:step])
