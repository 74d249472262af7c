"""Frames -> boxes -> hands -> files: the loop of `python -m src.tools.predict`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from src.errors import DataError
from src.predict.boxes.finder import BoxFinder
from src.predict.boxes.track import TrackedBoxes
from src.predict.frame import Frame, HandBox
from src.predict.frames import Source
from src.predict.hands import Hands
from src.predict.outputs.meshes import write_mesh
from src.predict.outputs.overlay import draw_hands
from src.predict.outputs.paths import place
from src.predict.outputs.smooth import Smoother
from src.predict.outputs.store import FrameHands, Store
from src.predict.outputs.video import write_video
from src.predict.predictor import Predictor
from src.render.pictures import write_picture
from src.runtime.log import get_logger
from src.runtime.progress import progress
from src.runtime.signals import StopRequest

_log = get_logger("predict")
LIVE_FPS = 30.0
"""Frames a second of a camera or of pictures in a row, for the smoothing filter and its video."""


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    source: Source
    finder: BoxFinder
    predictor: Predictor
    store: Store
    out: Path
    hand: Literal["right", "left", "auto"] = "auto"
    """Which hand the boxes are of; auto: as each box says."""
    overlays: bool = True
    """Draw the hands into the pictures."""
    meshes: Literal["obj", "ply"] | None = None
    """Write a mesh for each hand."""
    smooth: bool = False
    """Filter along the frames."""
    most_frames: int | None = None
    """End after so many frames; None: with the source."""


@dataclass
class Summary:
    """What came of it."""

    frames: int = 0
    hands: int = 0
    seconds: float = 0.0
    """Of the frames that were predicted this time."""
    before: int = 0
    """Frames that were there already."""
    empty: list[str] = field(default_factory=list)
    """Names of frames in which no hand was found."""
    stopped: str | None = None
    """The signal that ended it; what is done is kept, and the same command goes on from there."""
    video: Path | None = None


def run(job: Job, stop: StopRequest) -> Summary:
    """Predict all frames, keep what is done after each batch, and write the files at the end.

    Raises:
        DataError: a frame, a box or the place of the output is wrong; what was done before is kept.
    """
    summary, began = Summary(), time.monotonic()
    loop = _Loop(job, summary)
    source, store = job.source, job.store
    summary.before = len(store.done_names)
    total = None if source.names is None else len(source.names) - summary.before
    frames = source.frames(skip=store.done_names)
    for number, frame in enumerate(
        progress(frames, total=total, desc="prediction"), start=summary.before + 1
    ):
        loop.take(frame)
        if stop.received is not None or number == job.most_frames:
            break
    if stop.received is not None and source.names is not None:
        summary.stopped = stop.received  # what waits is predicted next time, in the same batches
    else:
        loop.flush()
        if not summary.frames:
            raise DataError("there was no frame to predict")
    summary.seconds = time.monotonic() - began
    if summary.stopped is None:
        if job.overlays and (source.fps is not None or source.names is None):
            summary.video = job.out / "overlays.mp4"
            pictures = (place(job.out, "overlays", name, ".jpg") for name in store.order)
            write_video(summary.video, pictures, source.fps or LIVE_FPS)
        _log.info(f"Writing {summary.hands} hands to {job.out}")
        store.finish(smoothed=loop.filter() if job.smooth else None)  # last: from here on the run has ended
    return summary


class _Loop:
    """Gathers frames until the network has a batch, and does what follows each."""

    def __init__(self, job: Job, summary: Summary) -> None:
        self._job = job
        self._summary = summary
        self._waiting: list[tuple[Frame, list[HandBox]]] = []
        self._smooth = self.filter() if job.smooth else None
        self._at_once = 1 if isinstance(job.finder, TrackedBoxes) else job.predictor.batch_size
        for done in job.store.done:
            self._count(done)
            if self._smooth is not None:
                self._smooth(done)

    def filter(self) -> Callable[[FrameHands], Hands]:
        """A smoothing filter at its start, to be given all frames in their order."""
        smoother, fps, number = Smoother(), self._job.source.fps or LIVE_FPS, 0

        def next_frame(frame: FrameHands) -> Hands:
            nonlocal number
            number += 1
            return smoother(number / fps, frame.hands, frame.boxes)

        return next_frame

    def take(self, frame: Frame) -> None:
        """Find the hands of the next frame; predict when there is a batch."""
        boxes = self._job.finder.find(frame)
        if self._job.hand != "auto":
            boxes = [dataclasses.replace(box, left=self._job.hand == "left") for box in boxes]
        self._waiting.append((frame, boxes))
        hands = sum(len(found) for _, found in self._waiting)
        if max(hands, len(self._waiting)) >= self._at_once:
            self.flush()

    def flush(self) -> None:
        """Predict what waits."""
        job, waiting, self._waiting = self._job, self._waiting, []
        hands = job.predictor.predict([(frame, box) for frame, boxes in waiting for box in boxes])
        start, answers = 0, []
        for frame, boxes in waiting:
            own = hands.rows(start, start + len(boxes))
            start += len(boxes)
            answers.append(FrameHands(frame.name, boxes, own))
            if isinstance(job.finder, TrackedBoxes):
                job.finder.tell(frame, boxes, own)
            self._draw(frame, answers[-1])
        for answer in answers:
            job.store.add(answer)
            self._count(answer)

    def _draw(self, frame: Frame, answer: FrameHands) -> None:
        """Write what is made of one frame beside its numbers."""
        job, hands = self._job, answer.hands
        if self._smooth is not None:
            hands = self._smooth(answer)
        if job.overlays:
            picture = draw_hands(frame.rgb, frame.intrinsics_px, hands, answer.boxes)
            write_picture(place(job.out, "overlays", frame.name, ".jpg"), picture)
        for k in range(len(hands) if job.meshes else 0):
            path = place(job.out, "meshes", f"{frame.name}_{k}", f".{job.meshes}")
            write_mesh(path, hands.vertices_m[k], hands.faces_of(k))

    def _count(self, answer: FrameHands) -> None:
        self._summary.frames += 1
        self._summary.hands += len(answer.boxes)
        if not answer.boxes:
            self._summary.empty.append(answer.frame)
