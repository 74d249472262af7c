"""Predictions of a run, kept frame by frame: an interrupted run goes on where it was.

Until a run has ended its frames stand in `predictions.unfinished`, a line each: what the network said, bit
for bit. Then `predictions.npz` and `predictions.jsonl` are written, whole or not at all.
Legend: N hands, J 21 joints in `OPENPOSE21`, V 778 vertices.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from src.errors import DataError
from src.hand.joints import OPENPOSE21
from src.predict.frame import HandBox
from src.predict.hands import PER_HAND, Hands
from src.runtime.files.disk import atomic_write, lock, open_lock, require_place

UNFINISHED = "predictions.unfinished"
UNITS: dict[str, str] = {
    "frame": "name of the frame",
    "joints_m": "m, image camera, OpenCV axes (x right, y down, z forward)",
    "vertices_m": "m, image camera, OpenCV axes",
    "global_orient": "rotation matrix, hand model's rest frame -> image camera",
    "global_orient_aa": "the same as axis-angle, rad",
    "hand_pose": "rotation matrices of 15 joints in MANO's order",
    "hand_pose_aa": "the same as axis-angle, rad",
    "betas": "MANO shape",
    "translation_m": "m, MANO translation: wrist = translation + J0(betas)",
    "box_px": "x0, y0, x1, y1, pixels of the picture",
    "left": "bool, a left hand: the mirror image of a right one, its parameters those of the mirrored model",
    "score": "0 to 1, how sure the detector was; 1 for boxes that were given",
}
"""What stands in the files, a row a hand, and in which unit and frame."""
_WIDTH = sum(int(np.prod(shape)) for shape in PER_HAND.values())


@dataclass(frozen=True, eq=False)
class FrameHands:
    """What was predicted in one frame."""

    frame: str
    """Its name."""
    boxes: list[HandBox]
    """Where the hands are; empty: none was found."""
    hands: Hands
    """One for each box, NumPy arrays."""


class Store:
    """The predictions of one run; see `open`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], faces: NDArray[np.int64]) -> None:
        self.order: list[str] = []
        """Names of the frames that are done."""
        self._out = out
        self._settings = dict(settings)
        self._faces = faces
        self._file: BinaryIO | None = None
        self._overwrite = False

    @classmethod
    def open(
        cls, out: Path, settings: Mapping[str, Any], faces: NDArray[np.int64], *, overwrite: bool = False
    ) -> Self:
        """Begin, or go on with what an interrupted run left in a folder. Nothing is written yet.

        Args:
            out: folder of the results.
            settings: what decides the predictions, as JSON has it; a run goes on only with the same.
            faces: (1538, 3) of a right hand.
            overwrite: replace what other settings or an earlier run left.

        Raises:
            DataError: it holds other predictions, another process is at work there, or it cannot be written.
        """
        store, path = cls(out, settings, faces), out / UNFINISHED
        store._overwrite = overwrite
        require_place(out / "predictions.npz")
        if (out / "predictions.npz").exists() and not overwrite:
            raise DataError(f"{out} holds predictions already. Name another --out, or add --overwrite")
        if path.is_file():
            file = store._claim(path)
            header = store._header_of(file)
            if header == store._settings:
                store._skip_cut_line(file)
            elif overwrite:
                file.truncate(0)
                file.seek(0)
                file.write(store._line(store._settings))
                store._remove_former()
            else:
                keys = sorted(k for k in {*header, *settings} if header.get(k) != store._settings.get(k))
                raise DataError(
                    f"{out} holds an unfinished run with another {', '.join(keys)}. Give the same command, "
                    "name another --out, or add --overwrite"
                )
        return store

    @property
    def done_names(self) -> set[str]:
        """Names of the frames that are done."""
        return set(self.order)

    @property
    def done(self) -> Iterator[FrameHands]:
        """The frames that are done, in their order, as the network said them."""
        if not self.order:
            return
        with (self._out / UNFINISHED).open("rb") as file:
            next(file)
            for line in file:
                yield self._parse(json.loads(line))

    def begin(self) -> None:
        """Take the folder, before anything is written there.

        Raises:
            DataError: another process has taken it since it was looked at.
        """
        if self._file is not None:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        file = self._claim(self._out / UNFINISHED)
        if file.read(1) or ((self._out / "predictions.npz").exists() and not self._overwrite):
            raise DataError(f"{self._out}: another process has written here meanwhile. Name another --out")
        file.write(self._line(self._settings))
        file.flush()
        if self._overwrite:
            self._remove_former()

    def add(self, frame: FrameHands) -> None:
        """Keep a frame: whatever ends this process later, it is there."""
        self.begin()
        assert self._file is not None
        hands, count = frame.hands, len(frame.boxes)
        rows = [getattr(hands, name).reshape(count, int(np.prod(shape))) for name, shape in PER_HAND.items()]
        numbers = np.concatenate(rows, axis=1).astype("<f4")
        kept = {
            "frame": frame.frame,
            "boxes": [[*box.box_px, box.left, box.score] for box in frame.boxes],
            "hands": base64.b85encode(numbers.tobytes()).decode(),
        }
        self._file.write(self._line(kept))
        self._file.flush()
        self.order.append(frame.frame)

    def finish(self, smoothed: Callable[[FrameHands], Hands] | None = None) -> None:
        """Write predictions.npz and predictions.jsonl, and remove the unfinished file.

        Args:
            smoothed: what is written instead of a frame's hands; called with each frame in its order.
        """
        rows: dict[str, list[NDArray[Any]]] = {name: [] for name in UNITS}
        empty = []
        with atomic_write(self._out / "predictions.jsonl") as text:
            header = {"units": UNITS, "joint_names": list(OPENPOSE21), "settings": self._settings}
            text.write(self._line(header))
            for frame in self.done:
                columns = _columns(frame, frame.hands if smoothed is None else smoothed(frame))
                text.write(_json_line(frame.frame, columns))
                for name, values in columns.items():
                    rows[name].append(values)
                if not frame.boxes:
                    empty.append(frame.frame)
        arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
        facts = {
            "columns": list(UNITS),
            "units": list(UNITS.values()),
            "joint_names": list(OPENPOSE21),
            "frames_without_hand": empty,
            "settings": json.dumps(self._settings),
        }
        named = {name: np.array(value, dtype=np.str_) for name, value in facts.items()}
        with atomic_write(self._out / "predictions.npz") as file:
            np.savez(file, allow_pickle=False, faces=self._faces, **named, **arrays)
        (self._out / UNFINISHED).unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def _remove_former(self) -> None:
        """Remove what is replaced: pictures and meshes of other frames would be taken for this run's."""
        for name in ("overlays", "meshes"):
            shutil.rmtree(self._out / name, ignore_errors=True)
        for name in ("overlays.mp4", "report.html", "predictions.jsonl", "predictions.npz"):
            (self._out / name).unlink(missing_ok=True)

    def _claim(self, path: Path) -> BinaryIO:
        """The unfinished file, open and this process's own."""
        file = open_lock(path)
        try:
            lock(file)
        except BlockingIOError:
            raise DataError(
                f"{path}: another process is at work in this folder. Name another --out"
            ) from None
        file.seek(0)
        self._file = file
        return file

    def _header_of(self, file: BinaryIO) -> dict[str, Any]:
        """The settings of an unfinished run; its own where a kill left not even these."""
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(0)
            file.truncate()
            file.write(self._line(self._settings))
            return self._settings
        return _parsed(line, file.name)

    def _skip_cut_line(self, file: BinaryIO) -> None:
        """Take the names of what is done, and cut off a last line that a kill left half written."""
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            self.order.append(_parsed(line, file.name, "frame", "boxes", "hands")["frame"])
            end += len(line)
        file.seek(end)
        file.truncate()

    def _parse(self, kept: Mapping[str, Any]) -> FrameHands:
        """What `add` wrote."""
        boxes = [HandBox((x0, y0, x1, y1), left, score) for x0, y0, x1, y1, left, score in kept["boxes"]]
        numbers = np.frombuffer(base64.b85decode(kept["hands"]), "<f4").reshape(len(boxes), _WIDTH)
        parts = np.split(
            numbers, np.cumsum([int(np.prod(shape)) for shape in PER_HAND.values()])[:-1], axis=1
        )
        arrays = {n: p.reshape(-1, *s) for (n, s), p in zip(PER_HAND.items(), parts, strict=True)}
        left = np.array([box.left for box in boxes], bool)
        return FrameHands(kept["frame"], boxes, Hands(**arrays, left=left, faces=self._faces))

    @staticmethod
    def _line(content: object) -> bytes:
        return json.dumps(content).encode() + b"\n"


def _parsed(line: bytes, where: str, *wanted: str) -> dict[str, Any]:
    """A line of the unfinished file, or a DataError."""
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict) or any(name not in content for name in wanted):
        raise DataError(f"{where} is damaged: what is done cannot be taken over. Remove it, and start anew")
    return content


def _columns(frame: FrameHands, hands: Hands) -> dict[str, NDArray[Any]]:
    """`UNITS` of one frame, a row a hand."""
    count = len(frame.boxes)
    return {
        "frame": np.full(count, frame.frame, np.dtype(("U", max(1, len(frame.frame))))),
        **{name: getattr(hands, name) for name in PER_HAND},
        "global_orient_aa": _axis_angle(hands.global_orient),
        "hand_pose_aa": _axis_angle(hands.hand_pose),
        "box_px": np.array([box.box_px for box in frame.boxes], np.float64).reshape(count, 4),
        "left": np.array([box.left for box in frame.boxes], bool),
        "score": np.array([box.score for box in frame.boxes], np.float64),
    }


def _axis_angle(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 3, 3) -> (..., 3) rad."""
    flat = matrices.reshape(-1, 3, 3).astype(np.float64)
    turns = Rotation.from_matrix(flat).as_rotvec() if len(flat) else np.zeros((0, 3))
    return np.asarray(turns.reshape(*matrices.shape[:-2], 3), np.float32)


def _json_line(frame: str, columns: Mapping[str, NDArray[Any]]) -> bytes:
    """A frame with its hands; each number in the shortest text that gives it back."""
    fields = [name for name in columns if name != "frame"]
    hands = (
        "{" + ", ".join(f'"{name}": {_text(columns[name][k])}' for name in fields) + "}"
        for k in range(len(columns["frame"]))
    )
    return f'{{"frame": {json.dumps(frame)}, "hands": [{", ".join(hands)}]}}\n'.encode()


def _text(value: Any) -> str:
    """JSON of an array or number."""
    if np.ndim(value):
        if np.ndim(value) == 1:
            return "[" + ", ".join(np.asarray(value).astype(str).tolist()) + "]"
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(bool(value)).lower() if isinstance(value, np.bool_) else str(value)
