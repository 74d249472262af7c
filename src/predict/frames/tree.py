"""Frames of an HO3D tree: which they are, their cameras and the boxes of their labels.

MANO parameters are not looked at: a tree without them serves as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.labels import hands_of
from dataloader.ho3d.layout import frame_path, read_list
from dataloader.ho3d.meta import ListName, read_meta
from src.config import DatasetConfig
from src.errors import DataError
from src.predict.frame import Frame, HandBox

LISTS: tuple[ListName, ...] = get_args(ListName)


@dataclass(frozen=True)
class LabelBoxes:
    """The boxes and cameras of HO3D's annotations, the very numbers of the loader."""

    metas: Mapping[str, Path]
    """Annotation by name of the frame, under `<train|evaluation>/<sequence>/meta/`."""

    def find(self, frame: Frame) -> list[HandBox]:
        """The labelled hand of a frame; HO3D's hands are right hands.

        Raises:
            DataError: the annotation cannot be read.
        """
        x0, y0, x1, y1 = self._hand(frame.name)[1].tolist()
        return [HandBox((x0, y0, x1, y1), exact=True)]

    def intrinsics_px(self, name: str) -> NDArray[np.float64]:
        """(3, 3) K of a frame.

        Raises:
            DataError: the annotation cannot be read.
        """
        return self._hand(name)[0]

    def _hand(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """K and box of a frame."""
        path = self.metas[name]
        k, boxes = hands_of(read_meta(path, _list_of(path)).reshape(1))
        return k[0], boxes[0]


def is_tree(root: Path) -> bool:
    """Whether a folder is the root of an HO3D tree."""
    return any((root / f"{name}.txt").is_file() for name in LISTS)


def tree_frames(root: Path, name: ListName) -> tuple[dict[str, Path], dict[str, Path], LabelBoxes]:
    """Pictures and depth by frame, in the list's order and under its names (`train/ABF10/0042`), and labels.

    Raises:
        DataError: the list cannot be read.
    """
    other = LISTS[1 - LISTS.index(name)]
    here, there = (
        path.is_file() and path.stat().st_size for path in (root / f"{n}.txt" for n in (name, other))
    )
    if there and not here:
        raise DataError(f"{root} lists no frame in {name}.txt, only in {other}.txt: give --split {other}")
    data = DatasetConfig(root_dir=root)
    ids = [f"{name}/{line}" for line in read_list(data, name).lines]
    if not frame_path(data, ids[0], "rgb").exists():
        second = DatasetConfig(root_dir=root, version="v2")
        data = second if frame_path(second, ids[0], "rgb").exists() else data
    rgb, depth, meta = ({i: frame_path(data, i, kind) for i in ids} for kind in ("rgb", "depth", "meta"))
    return rgb, depth, LabelBoxes(meta)


def beside(pictures: Mapping[str, Path]) -> tuple[dict[str, Path] | None, LabelBoxes | None]:
    """Depth and labels of pictures under `<root>/<train|evaluation>/<sequence>/rgb/`; None: there are none.

    Raises:
        DataError: some of the pictures have depth or a label and others have none.
    """
    folders = {name: path.absolute().parent for name, path in pictures.items()}
    if not all(f.name == "rgb" and f.parent.parent.name in LISTS for f in folders.values()):
        return None, None
    files = {
        kind: {name: folders[name].parent / kind / f"{path.stem}{ending}" for name, path in pictures.items()}
        for kind, ending in (("depth", ".png"), ("meta", ".pkl"))
    }
    there = {kind: [path.is_file() for path in paths.values()] for kind, paths in files.items()}
    for kind, known in there.items():
        if any(known) and not all(known):
            missing = list(files[kind].values())[known.index(False)]
            raise DataError(
                f"{missing} is missing, other pictures have theirs: {known.count(False)} have none"
            )
    depth = files["depth"] if all(there["depth"]) else None
    return depth, LabelBoxes(files["meta"]) if all(there["meta"]) else None


def _list_of(meta: Path) -> ListName:
    """Which list an annotation belongs to, by its folder."""
    return "train" if meta.absolute().parents[2].name == "train" else "evaluation"
