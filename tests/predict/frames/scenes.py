"""Small made-up RGB-D scenes, and how they are written as users do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = (120, 160)
"""(H, W)."""
CAMERA = {"fx": 150.5, "fy": 151.0, "cx": 79.5, "cy": 60.0, "width": 160, "height": 120}


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB and depth in millimetres: rectangles before a wall, each with its own colour; a strip of holes."""
    rng = np.random.default_rng(seed)
    rgb, depth = np.full((*SIZE, 3), 90, np.uint8), np.full(SIZE, 900, np.uint16)
    for near in (700, 600, 500, 400):
        x, y = int(rng.integers(5, 110)), int(rng.integers(5, 80))
        box = (slice(y, y + int(rng.integers(15, 35))), slice(x, x + int(rng.integers(15, 45))))
        rgb[box], depth[box] = rng.integers(0, 256, 3), near
    depth[:, :3] = 0
    return rgb, depth


def write_camera(path: Path, **changed: object) -> Path:
    """A camera file; keys that are None are left out."""
    values = {**CAMERA, **changed}
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items() if value is not None))
    return path


def write(path: Path, picture: np.ndarray) -> None:
    """A picture, RGB where it has colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


def write_frames(folder: Path, count: int = 3) -> None:
    """color/color_N.png, depth/depth_N.png in millimetres, and cam.yaml."""
    for number in range(count):
        rgb, depth = scene(number)
        write(folder / f"color/color_{number}.png", rgb)
        write(folder / f"depth/depth_{number}.png", depth)
    write_camera(folder / "cam.yaml", depth_unit_m=0.001)


def write_video(path: Path, count: int = 12) -> None:
    """A video of the scenes."""
    code = {".avi": "MJPG"}.get(path.suffix, "mp4v")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25, SIZE[::-1])
    for number in range(count):
        writer.write(np.ascontiguousarray(scene(number)[0][..., ::-1]))
    writer.release()
