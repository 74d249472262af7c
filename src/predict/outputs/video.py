"""A video of pictures that are there already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2

from src.errors import DataError
from src.runtime.files.disk import atomic_write
from src.runtime.files.unfinished import unfinished


def write_video(path: Path, pictures: Iterable[Path], fps: float) -> None:
    """Write an .mp4, whole or not at all.

    Args:
        path: of the video.
        pictures: files of one size, a frame each.
        fps: frames per second.

    Raises:
        DataError: a picture is missing or of another size, or this OpenCV has no encoder.
    """
    with unfinished(path, folder=True) as folder:
        part, writer, size = folder / "video.mp4", None, (0, 0)
        for file in pictures:
            picture = cv2.imread(str(file))
            if picture is None:
                raise DataError(
                    f"{path}: its frame {file} is missing or damaged. Predict anew with --overwrite"
                )
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
                if not writer.isOpened():
                    raise DataError(
                        f"{path}: this OpenCV cannot encode videos; the pictures are in {file.parent}"
                    )
            if (picture.shape[1], picture.shape[0]) != size:
                raise DataError(
                    f"{path}: frame {file} is {picture.shape[1]} x {picture.shape[0]}, want {size}"
                )
            writer.write(picture)
        if writer is not None:
            writer.release()
            with part.open("rb") as made, atomic_write(path) as whole:
                whole.write(made.read())
