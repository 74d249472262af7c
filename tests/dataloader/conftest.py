"""Trees shared by the tests of this room; tests that change a tree make their own."""

from __future__ import annotations

import pytest

from src.hand.mano import ManoLayer
from tests.dataloader.tree import Tree, write_tree
from tests.hand_file import hand_file


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """24 training frames in 4 sequences of 2 motions, 4 evaluation frames with ground truth."""
    root = tmp_path_factory.mktemp("ho3d") / "HO3D"
    sequences = {"ABF10": 6, "ABF11": 6, "MC1": 6, "MC2": 6}
    return root, write_tree(root, sequences, {"SM1": 2, "AP10": 2})


@pytest.fixture(scope="session")
def standin() -> ManoLayer:
    """The stand-in hand."""
    return ManoLayer.from_file(hand_file())
