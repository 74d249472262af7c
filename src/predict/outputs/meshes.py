"""Meshes as other programs read them: metres, image camera (OpenCV axes), counter-clockwise from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src.runtime.files.disk import atomic_write

MeshKind = Literal["obj", "ply"]


def write_mesh(path: Path, vertices_m: NDArray[np.float32], faces: NDArray[np.int64]) -> None:
    """Write one hand, whole or not at all.

    Args:
        path: `.obj` (text) or `.ply` (binary, little-endian).
        vertices_m: (V, 3).
        faces: (F, 3) vertex numbers from 0.
    """
    content = _obj(vertices_m, faces) if path.suffix == ".obj" else _ply(vertices_m, faces)
    with atomic_write(path) as file:
        file.write(content)


def _obj(vertices_m: NDArray[np.float32], faces: NDArray[np.int64]) -> bytes:
    lines = ["# UTNet: metres, x right, y down, z forward (OpenCV camera)"]
    lines += ["v " + " ".join(row) for row in vertices_m.astype(str).tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _ply(vertices_m: NDArray[np.float32], faces: NDArray[np.int64]) -> bytes:
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        "comment UTNet: metres, x right, y down, z forward (OpenCV camera)\n"
        f"element vertex {len(vertices_m)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", (3,))])
    rows["count"], rows["corners"] = 3, faces
    return header.encode() + np.ascontiguousarray(vertices_m, "<f4").tobytes() + rows.tobytes()
