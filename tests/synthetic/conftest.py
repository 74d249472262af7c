"""One hand and one small tree for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloader.synthetic.common import Array
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.writer import Parameters, write_tree
from src.hand.mano_assets import HandAsset, load_hand_asset
from tests.hand_file import hand_file

SMALL = Parameters(sequences=4, frames=3, evaluation_sequences=2, seed=7, cameras=3)
"""Two training motions (three views and one) and one evaluation motion."""


@pytest.fixture(scope="session")
def asset() -> HandAsset:
    """The stand-in hand."""
    return load_hand_asset(hand_file())


@pytest.fixture(scope="session")
def rig(asset: HandAsset) -> Rig:
    """The same as an animator needs it."""
    return Rig(asset)


@pytest.fixture(scope="session")
def tree(asset: HandAsset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written tree; tests must not change it."""
    root = tmp_path_factory.mktemp("synthetic") / "tree"
    assert write_tree(root, SMALL, asset)
    return root


def pixels_of(points_cam_m: Array, intrinsics_px: Array) -> Array:
    """(..., 2) where points of an OpenCV camera's frame are in its picture."""
    pixels = np.asarray(points_cam_m @ intrinsics_px.T)
    return np.asarray(pixels[..., :2] / pixels[..., 2:])
