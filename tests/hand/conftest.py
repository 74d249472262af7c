"""The stand-in hand, built and written once for the whole room."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.hand.mano import ManoLayer
from src.hand.mano_assets import HandAsset, load_hand_asset
from tests.hand_file import hand_file


@pytest.fixture(scope="session")
def standin_path() -> Path:
    return hand_file()


@pytest.fixture(scope="session")
def asset(standin_path: Path) -> HandAsset:
    return load_hand_asset(standin_path)


@pytest.fixture(scope="session")
def layer(asset: HandAsset) -> ManoLayer:
    return ManoLayer.from_asset(asset)
