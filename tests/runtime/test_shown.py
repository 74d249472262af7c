"""Names come from other people's files; a terminal shows them and does not obey them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from dataloader.ho3d.unusable import FrameError, Reason
from src.errors import DataError, UTNetError, plain_text
from src.runtime import log

CLEAR = "\x1b[2J\x1b[Hall is well\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train/ABF10/0042: 3 µm, 手", "train/ABF10/0042: 3 µm, 手"),
        (CLEAR, r"\x1b[2J\x1b[Hall is well\x07"),
        ("a\rb\nc\td\0", r"a\rb\nc\td\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj.\u202efdp", r"gpj.\u202efdp"),
        (os.fsdecode(b"MC\xb0\xa1"), r"MC\xb0\xa1"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_not_printable_is_spelled_out(text: str, shown: str) -> None:
    """What stood before an escape code could be hidden by it."""
    assert plain_text(text) == shown
    assert plain_text(plain_text(text)) == shown
    shown.encode("utf-8")


def test_errors_and_log_lines_are_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever raises and whoever prints, the name is shown as text; a table keeps its lines."""
    assert str(DataError(f"{CLEAR}: no such file")) == plain_text(f"{CLEAR}: no such file")
    assert str(pickle.loads(pickle.dumps(FrameError(Reason.SIZE, CLEAR)))) == plain_text(CLEAR)
    assert str(UTNetError("rank 0 failed", "rank 1 failed")) == "rank 0 failed\nrank 1 failed"
    log.configure(log_file=tmp_path / "log.txt")
    try:
        log.get_logger("test").warning(f"2 frames:\n\t{CLEAR}")
    finally:
        log.configure()
    want = "2 frames:\n" + plain_text(f"\t{CLEAR}") + "\n"
    assert (tmp_path / "log.txt").read_text() == want
    assert want in capsys.readouterr().out
