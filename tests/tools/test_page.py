"""Pages made anew from what a run left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from src.evaluation.evaluator import read_per_sample
from src.pages.page import KEPT
from src.predict.hands import Hands
from src.predict.outputs.store import FrameHands, Store
from src.tools import compare, page
from tests.pages.made_up import validation
from tests.tools.test_compare import errors, names, write


def made(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the page says that a command made."""
    assert page.main([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    path = Path(out.splitlines()[-1].removeprefix("Page: "))
    return path.read_text(encoding="utf-8")


def run_folder(folder: Path) -> Path:
    """A run with a validation of two epochs, without and then with a kept page."""
    (folder / "val").mkdir(parents=True)
    write(folder / "val" / "epoch_0000.npz", errors(0))
    write(folder / "val" / "epoch_0000_rgb.npz", errors(0) + 5.0)
    rows = [{"step": 9, "Train/epoch": 0, "Val/MPJPE": 18.25}]
    (folder / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_page_of_rows_alone_says_what_they_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without weights or data: scores and sequences, nothing of joints; in its run folder the
    curves too.
    """
    run = run_folder(tmp_path / "run")
    text = made(capsys, run)
    assert f"RGB-D: joints are off by {errors(0).mean():.3f} [" in text
    assert "Depth, RGB-D beside RGB-only: MPJPE is lower by 5.000 mm [5.000, 5.000] (sure)" in text
    assert "<td>train/S000</td>" in text
    assert "Over the epochs" in text
    assert "Joints and fingers" not in text
    alone = write(tmp_path / "somewhere.npz", errors(0))
    text = made(capsys, alone, "--out", tmp_path / "other.html")
    assert "Over the epochs" not in text
    assert (tmp_path / "other.html").is_file()
    made(capsys, run / "val" / "epoch_0000_rgb.npz")
    text = (run / "val" / "epoch_0000_rgb.html").read_text(encoding="utf-8")
    assert "RGB-only: joints are off by" in text
    assert "RGB-D: joints" not in text


def test_a_kept_page_comes_back_with_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures were made from data and weights; neither is there any more."""
    run = run_folder(tmp_path / "run")
    validation().page().keep(run / "val" / KEPT)
    text = made(capsys, run)
    assert text.count("data:image/jpeg;base64,") == 2 * 5
    assert "18.25" in text, "curves of today"
    assert (run / "val" / "report.html").is_file()


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page says what `compare` says: which is better, and whether that is sure."""
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    write(b / "val" / "epoch_0001.npz", errors(0) - np.linspace(0.5, 1.5, len(errors(0))))
    text = made(capsys, a, b)
    assert "B is better than A at this level (95%)" in text
    assert "epoch_0001.npz" in text
    assert "No pictures: " in text, "the data set is not there"
    most = names()[-1]
    assert f"<td>{most}</td>" in text
    frames = [f"train/S0/{k:04d}" for k in range(len(errors(0)))]
    files = [write(tmp_path / f"{k}.npz", errors(k), frames) for k in range(2)]
    text = made(capsys, *files)
    assert "Verdict: none" in text


def test_a_prediction_gets_its_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one without any hand: that is when somebody looks."""
    faces = np.zeros((1, 3), np.int64)
    store = Store.open(tmp_path, {"rgb": "color/", "boxes": "detect"}, faces)
    store.add(FrameHands("a/0001", [], Hands.join([], faces)))
    store.finish()
    text = made(capsys, tmp_path)
    assert "Hands: 0. Frames: 1." in text
    assert "<td>a/0001</td>" in text
    assert "<dd>color/</dd>" in text


def test_what_is_no_page_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong folder, a torn file, a place that cannot be written."""
    run = run_folder(tmp_path / "run")
    torn = run / "val" / KEPT
    (tmp_path / "empty").mkdir()
    rows = run / "val" / "epoch_0000.npz"
    wrong = [
        (tmp_path / "empty",), (tmp_path / "none.npz",), (rows, "--out", rows / "x.html"),
        (rows, "--out", rows), (rows, rows, "--out", rows),
    ]  # fmt: skip
    for arguments in wrong:
        assert page.main([str(argument) for argument in arguments]) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    assert read_per_sample(rows)
    validation().page().keep(torn)
    whole = json.loads(torn.read_text())
    for text in ('{"version": 1, "sec', json.dumps(whole | {"samples": [{}]})):
        torn.write_text(text)
        assert page.main([str(run)]) == 2
        assert "page.json is not a kept page" in capsys.readouterr().err
    (tmp_path / "predictions.npz").write_bytes(rows.read_bytes())
    assert page.main([str(tmp_path)]) == 2
    assert "is no file of a prediction" in capsys.readouterr().err
    write(rows.with_name("epoch_0000_rgb.npz"), errors(0), [name + "0" for name in names()])
    assert page.main([str(rows)]) == 2
    assert "is of other frames" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        page.main([str(run)] * 3)


def test_a_comparison_goes_on_where_its_page_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Files of somebody else's run lie in a folder that one may only read; a page only decorates."""
    a, b = (write(tmp_path / f"{name}.npz", errors(0) + k) for k, name in enumerate("ab"))
    (tmp_path / "compare.html").mkdir()
    assert compare.main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "B is worse than A" in out
    assert "Page: " not in out
