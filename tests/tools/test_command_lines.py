"""What holds for every command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import train
from dataloader.synthetic import __main__ as synthetic
from src.hand import standin
from src.tools import compare, doctor, export_submission, learned


def test_an_option_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As for settings, wherever the two stand on the line."""
    lines: list[tuple[Callable[[list[str]], object], list[str], str]] = [
        (train.parse_arguments, ["--config", "a", "seed=1", "--config=b"], "--config"),
        (train.parse_arguments, ["--resume", "auto", "--resume", "auto"], "--resume"),
        (doctor.parse_arguments, ["--config", "a", "--steps", "5", "seed=1", "--steps", "5"], "--steps"),
        (synthetic.main, ["--out", "a", "--seed", "0", "--seed", "0"], "--seed"),
        (standin.main, ["--out", "a", "--out", "b"], "--out"),
        (compare.main, ["a", "b", "--metric", "x", "--metric", "y"], "--metric"),
        (learned.main, ["--run", "a", "--held-out", "b", "--run", "a"], "--run"),
        (export_submission.parse_arguments, ["--checkpoint", "a", "--checkpoint", "b"], "--checkpoint"),
    ]
    for parse, given, option in lines:
        with pytest.raises(SystemExit) as left:
            parse(given)
        assert left.value.code == 2
        assert f"{option} is given twice, keep one" in capsys.readouterr().err
    line = ["seed=1", "--config", "a", "name=x", "--evaluate", "b", "split.by=frame"]
    assert train.parse_arguments(line).overrides == ["seed=1", "name=x", "split.by=frame"]
