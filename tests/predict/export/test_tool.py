"""`python -m src.tools.export`: all or nothing, and a card that says what is known and no more."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import DataError
from src.hand.mano_assets import load_hand_asset
from src.predict import card
from src.predict.export import Latency, latency_lines
from src.predict.graph import RawNetwork
from src.predict.predictor import Facts
from src.tools import export as tool
from src.training.checkpoints.folder import open_checkpoint
from src.training.checkpoints.settings import command_settings
from tests.hand_file import hand_file
from tests.predict.export.made import Made, crops

GAP_MM = 0.0007


@pytest.fixture
def gaps(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The tool with files that are there already, and deviations as the test sets them."""
    found: dict[str, float] = {}

    def write(kind: str, _: RawNetwork, __: Facts, ___: Mapping[str, Any], folder: Path) -> list[Path]:
        names = [f"{tool.NAMES[kind]}{ending}" for ending in (".pt2", ".onnx")]
        return [Path(shutil.copy(made.checkpoint, folder / name)) for name in names]

    monkeypatch.setattr(tool, "require_onnx", lambda: None)
    monkeypatch.setattr(tool, "version", lambda name: f"{name}'s")
    monkeypatch.setattr(tool, "write_files", write)
    monkeypatch.setattr(tool, "trial_crops", lambda *_: crops())
    monkeypatch.setattr(tool, "deviation_mm", lambda _, path, __: found.get(path.name, GAP_MM))
    monkeypatch.setattr(tool, "latencies", lambda *_, **__: iter([Latency("eager", 1, 1, 2.5)]))
    return found


def run(made: Made, out: Path, *more: str) -> int:
    return tool.main(["--checkpoint", str(made.checkpoint), "--out", str(out), *more])


def test_it_writes_four_files_and_a_card(
    made: Made, gaps: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is what the card says."""
    assert run(made, tmp_path / "out") == 0
    names = {"utnet.pt2", "utnet.onnx", "utnet_normalised.pt2", "utnet_normalised.onnx"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "card.md", "card.json"}
    told = json.loads((tmp_path / "out" / "card.json").read_text())
    assert told["parity"]["largest_mm"] == dict.fromkeys(names, GAP_MM)
    assert told["latency"] == [dataclasses.asdict(Latency("eager", 1, 1, 2.5))]
    text, printed = (tmp_path / "out" / "card.md").read_text(), capsys.readouterr().out
    for said in (text, printed):
        assert "| eager | 2.50 |" in said
        assert all(name in said for name in names)
    assert "LICENCE: The hand inside is this program's procedural stand-in" in printed
    assert str(tmp_path) not in text


def test_files_that_deviate_leave_nothing(
    made: Made, gaps: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is there is taken for a good one."""
    gaps["utnet.onnx"] = 0.02
    assert run(made, tmp_path / "out") == 2
    assert "utnet.onnx 0.0200 mm" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_a_missing_library_are_said_before_the_work(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of tracing would be for nothing."""
    monkeypatch.setattr(tool, "eager_engine", lambda *_, **__: pytest.fail("it began to work"))
    (tmp_path / "mine.txt").write_text("x")
    monkeypatch.setattr(tool, "require_onnx", lambda: None)
    assert run(made, tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert run(made, tmp_path / "out") == 2
    assert "pip install --group export" in capsys.readouterr().err


def first_part(
    made: Made, run_facts: Mapping[str, Any] | None = None, *, standin: bool = True
) -> dict[str, Any]:
    asset = dataclasses.replace(load_hand_asset(hand_file()), is_standin=standin)
    config = command_settings(None, [], evaluate=made.checkpoint).config
    state = open_checkpoint(made.checkpoint)
    return card.first_part(
        card.Source(made.checkpoint, state, config, asset, run_facts or {}), made.engine.facts, 5
    )


def shown(told: dict[str, Any]) -> str:
    parity = {"largest_mm": {"utnet.pt2": GAP_MM}, "frames": "frames"}
    return card.markdown({**told, "parity": parity, "machine": "a CPU"}, ["table"], 0.01)


def test_a_card_without_a_run_folder_says_so_and_invents_nothing(made: Made) -> None:
    """A number that nobody measured is worse than none."""
    told = first_part(made)
    assert told["scores"] == {"best_of_run": None, "split": "val"}
    text = shown(told)
    assert "Scores with intervals and baselines are not known" in text
    assert "MPJPE" not in text
    assert text.count("was not beside the checkpoint") == 2
    assert "research only" in text


def test_a_file_with_mano_inside_says_that_it_must_not_be_passed_on(made: Made) -> None:
    """MANO's licence forbids it, and an exported file does not look like MANO."""
    assert "must not be passed on" in shown(first_part(made, standin=False))
    assert "must not be passed on" not in shown(first_part(made))


def run_folder(root: Path, mpjpe: float) -> Path:
    """A run folder of a checkpoint at step 0, two motions validated, one by two cameras; its MPJPE."""
    (root / "val").mkdir()
    (root / "meta.json").write_text(json.dumps({"train": "train line", "val": "val line"}))
    rows = [{"step": 0, "minutes": 0.1, "Train/epoch": 3},
            {"step": 0, "minutes": 0.2, "Val/MPJPE": mpjpe, "Val/baseline/zero_pa_mm": 50.0},
            {"step": 9, "minutes": 0.3, "Val/MPJPE": 1.0, "Train/epoch": 4}]  # fmt: skip
    (root / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = {"mpjpe_mm": np.array([10.0, 20, 30, 99]), "pa_mpjpe_mm": np.array([1.0, 2, 3, 99]),
              "loss": np.ones(4)}  # fmt: skip
    frame = np.array(["train/A0/0", "train/A1/1", "train/B0/0", "train/B0/1"])
    np.savez(root / "val" / "epoch_0003.npz", frame=frame, label_usable=np.array([True, True, True, False]),
             columns=np.array(list(errors)), units=np.array(["mm", "mm", ""]), split=np.array("val"),
             split_hash=np.array("x"), pred_joints_cam_m=np.zeros((4, 21, 3)), **errors)  # fmt: skip
    return root / "checkpoints" / "last.pt"


def test_scores_come_with_intervals_from_the_validation_of_this_step(made: Made, tmp_path: Path) -> None:
    """Those of another epoch are of another network."""
    checkpoint = run_folder(tmp_path, 20.0)
    facts = tool.run_facts(checkpoint, {"step": 0})
    row = facts["scores"]["of_this_checkpoint"]["RGB-D"]
    assert (row["frames"], row["motions"], row["mpjpe_mm"]["mean"]) == (3, 2, 20.0)
    assert row["mpjpe_mm"]["low"] <= 15.0 < 30.0 <= row["mpjpe_mm"]["high"]
    text = shown(first_part(made, facts))
    assert "| RGB-D | 20.000 [15.000, 30.000] | 2.000 [1.500, 3.000] | 3 | 2 |" in text
    assert "| zero_pa_mm | 50.000 |" in text
    assert "Trained on: train line" in text
    assert tool.run_facts(checkpoint, {"step": 5})["scores"] == {}
    assert tool.run_facts(tmp_path / "elsewhere.pt", {"step": 0}) == {}


def test_scores_that_contradict_the_log_are_left_out(tmp_path: Path) -> None:
    """Files of two runs in one folder would describe neither."""
    checkpoint = run_folder(tmp_path, 21.0)
    with pytest.raises(DataError, match=r"mean of 20\.000 mm, scalars\.jsonl says 21\.0"):
        tool.scores_of(tmp_path, {"step": 0})
    assert tool.run_facts(checkpoint, {"step": 0}) == {}


def test_the_latency_table_has_a_column_a_setting_and_says_what_does_not_run() -> None:
    """A machine without a compiler still gets its table."""
    rows = [Latency("eager", 1, 1, 4.0), Latency("eager", 2, 1, 2.0),
            Latency("compiled", 1, 1, None, "no compiler"), Latency("compiled", 2, 1, 1.5)]  # fmt: skip
    assert latency_lines(rows) == [
        "| ms a hand | 1 thread, batch 1 | 2 threads, batch 1 |", "|---|---|---|",
        "| eager | 4.00 | 2.00 |", "| compiled | no compiler | 1.50 |",
    ]  # fmt: skip
