"""Exported files: the network's own answers, for any number of hands, wherever they are run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import AssetError
from src.hand.mano_assets import load_hand_asset
from src.predict import Predictor
from src.predict.export import TOLERANCE_MM, deviation_mm, normalised_crops, require_parity, trial_crops
from src.predict.graph import RAW_INPUTS
from src.predict.hands import PER_HAND
from tests.hand_file import hand_file
from tests.predict.export.made import ENDINGS, SIZE, Made, crops


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_answer_as_the_network_does_for_any_number_of_hands(made: Made, ending: str) -> None:
    """1, 2, 7 and 33 at once, with and without depth; another network's file is told apart."""
    graph, path = made.engine.graph, made.file(ending)
    assert deviation_mm(graph, path, crops()) < 0.2 * TOLERANCE_MM
    bias = graph.normalised.network.readout.joints.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[3] += 0.001
        gap = deviation_mm(graph, path, crops())
        bias.copy_(before)
    assert gap > TOLERANCE_MM
    with pytest.raises(AssetError, match=rf"utnet{ending} .* mm"):
        require_parity({path.name: gap})
    with pytest.raises(AssetError):
        require_parity({path.name: float("nan")})


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_predictor_of_a_file_needs_neither_checkpoint_nor_hand(
    made: Made, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gets the file has nothing else, and works in a folder of their own."""
    file = tmp_path / f"mine{ending}"
    file.write_bytes(made.file(ending).read_bytes())
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    given = rgb, np.full((3, 90, 120), 0.6, np.float32), np.array([[120.0, 0, 60], [0, 120, 45], [0, 0, 1]])
    boxes, left = np.array([[30.0, 20, 80, 70]] * 3), np.array([False, True, False])
    ours, theirs = (
        predictor(*given, boxes, left)
        for predictor in (Predictor(made.engine), Predictor.from_checkpoint(file.name, device="cpu"))
    )
    for name in PER_HAND:
        most = 1e-5 if name.endswith("_m") else 1e-4
        assert np.abs(getattr(ours, name) - getattr(theirs, name)).max() < most, name
    assert np.array_equal(ours.faces, theirs.faces)


def test_normalised_crops_are_those_that_the_network_makes(made: Made) -> None:
    """Files that start from normalised crops are compared on these."""
    rows = crops(3)
    with torch.no_grad():
        raw, normalised = made.engine.graph(**rows), made.engine.graph.normalised(**normalised_crops(rows))
    assert all(torch.equal(raw[name], normalised[name]) for name in raw)


def test_trial_frames_show_hands_with_and_without_depth(made: Made) -> None:
    """A comparison on empty pictures would not reach the samples under a hand's vertices."""
    rows = trial_crops(load_hand_asset(hand_file()), made.engine.facts)
    shown = rows["depth_present"].numpy()
    assert shown.sum() == (~shown).sum() == 32
    assert (rows["depth_m"][shown] > 0).float().mean() > 0.5
    centre = rows["depth_m"][shown][
        :, SIZE[0] // 2 - 8 : SIZE[0] // 2 + 8, SIZE[1] // 2 - 8 : SIZE[1] // 2 + 8
    ]
    hand = rows["z_ref_m"][shown]
    near = (centre > 0) & ((centre - hand[:, None, None]).abs() < 0.1)
    assert near.flatten(1).any(dim=1).all()


def test_inputs_carry_their_units_in_the_file(made: Made) -> None:
    """Depth in millimetres instead of metres gives a hand, somewhere."""
    with zipfile.ZipFile(made.file(".pt2")) as archive:
        told = json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("utnet.json"))))
    assert told["inputs"] == RAW_INPUTS
    assert told["card"] == {"what": "a test"}
    onnx = pytest.importorskip("onnx", reason="onnx is an extra")
    graph = onnx.load(made.file(".onnx")).graph
    assert {value.name: value.doc_string for value in graph.input} == RAW_INPUTS
    assert [value.name for value in graph.output] == list(PER_HAND)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_do_not_say_where_they_were_made(made: Made, ending: str) -> None:
    """Names of users and folders are nobody's business."""
    content = made.file(ending).read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert b"utnet.py" not in content
