"""Video files, frame by frame."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.runtime.files.disk import open_plain


class Video:
    """A video file.

    Raises:
        DataError: it cannot be read, or does not say how many frames it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            open_plain(path).close()
        except OSError as error:
            raise DataError(f"{path}: video cannot be read: {error.strerror}") from None
        with self._open() as capture:
            count, self.fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
        if count < 1 or not 0 < self.fps < 10_000:
            raise DataError(
                f"{path}: the video says that it has {count} frames, {self.fps:g} a second. Write it anew: "
                f"ffmpeg -i {path.name} whole.mp4"
            )
        self.names = [f"{path.stem}/{number:06d}" for number in range(count)]

    def pictures(self, skip: Container[str] = ()) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Name and (H, W, 3) RGB of each frame, but for those in `skip`.

        Raises:
            DataError: at its end, fewer or more frames than the file says.
        """
        with self._open() as capture:
            for number, name in enumerate(self.names):
                if not capture.grab():
                    raise self._cut(f"only {number} can be decoded: it is cut or damaged")
                if name in skip:
                    continue
                good, picture = capture.retrieve()
                if not good or picture is None or picture.dtype != np.uint8:
                    raise self._cut(f"frame {number} cannot be decoded: it is damaged")
                yield name, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
            if capture.grab():
                raise self._cut("there are more")

    @contextmanager
    def _open(self) -> Iterator[cv2.VideoCapture]:
        """The file, from its first frame."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            if not capture.isOpened():
                raise DataError(
                    f"{self.path}: no video that can be decoded: it is cut, damaged or of another kind"
                )
            yield capture
        finally:
            capture.release()

    def _cut(self, seen: str) -> DataError:
        return DataError(
            f"{self.path}: the video says that it has {len(self.names)} frames, {seen}. Copy it again, or "
            f"keep what there is: ffmpeg -i {self.path.name} whole.mp4"
        )
