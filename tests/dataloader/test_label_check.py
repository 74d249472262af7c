"""Labels that are not the hand model's are refused before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dataloader.ho3d_dataset import HO3DDataset
from dataloader.label_check import require_hand_fits
from dataloader.labels import Labels
from src.errors import DataError
from src.hand.mano import ManoLayer
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import run_config
from tests.hand_file import hand_file


class Unlabelled:
    """A data set of which some rows have no MANO parameters."""

    def __init__(self, dataset: HO3DDataset, without: list[int], shift_m: float = 0.0) -> None:
        self._dataset, self._without, self._shift_m = dataset, without, shift_m

    def __len__(self) -> int:
        return len(self._dataset)

    def labels_at(self, rows: np.ndarray) -> Labels:
        labels = self._dataset.labels_at(rows)
        joints = labels.joints_cam_m.copy()
        joints[:, 5] += self._shift_m
        return dataclasses.replace(
            labels, joints_cam_m=joints, mano_valid=labels.mano_valid & ~np.isin(rows, self._without)
        )


def test_rows_without_parameters_do_not_hide_the_others(tmp_path: Path) -> None:
    """One frame without MANO labels switched the whole check off: a run on another hand went on."""
    hand = ManoLayer.from_file(hand_file())
    write_posed_hands(tmp_path, hand, 8)
    config = run_config(tmp_path)
    dataset = HO3DDataset(config, "train", hand, show_progress=False)
    require_hand_fits(dataset, hand)
    require_hand_fits(Unlabelled(dataset, [0, 3]), hand)  # type: ignore[arg-type]
    for without in ([], [0], [0, 3, 5]):
        with pytest.raises(DataError, match=r"are \d+\.\d mm from what the hand model decodes"):
            require_hand_fits(Unlabelled(dataset, without, 0.003), hand)  # type: ignore[arg-type]
    require_hand_fits(Unlabelled(dataset, list(range(len(dataset))), 0.003), hand)  # type: ignore[arg-type]
