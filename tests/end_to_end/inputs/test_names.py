"""Folders and sequences whose names are not UTF-8, as archives from Windows in China make them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.end_to_end.conftest import Embedded

HAND = os.fsdecode("手".encode("gbk"))


def renamed(embedded: Embedded, folder: Path) -> Embedded:
    """The embedded data in a folder of such a name, as are its sequences and its hand."""
    root, hand = folder / HAND / "HO3D", folder / HAND / f"{HAND}.pkl"
    shutil.copytree(embedded.root, root, ignore=shutil.ignore_patterns(".utnet"))
    shutil.copy(embedded.hand, hand)
    names = root / "train.txt"
    names.write_bytes(b"".join(os.fsencode(HAND) + line + b"\n" for line in names.read_bytes().splitlines()))
    for sequence in sorted((root / "train").iterdir()):
        sequence.rename(sequence.with_name(HAND + sequence.name))
    return Embedded(root, hand, folder / HAND / "runs")


def test_names_that_are_no_text_work_everywhere(embedded: Embedded, tmp_path: Path) -> None:
    """Trained, cached, resumed, evaluated; TensorBoard alone cannot open such a folder, and says so."""
    other = renamed(embedded, tmp_path)
    brief = ("name=names", "training.max_steps_per_epoch=2", "dataset.cache=auto", "split.by=frame")
    for more in ((), ("--resume", "auto", "training.num_epochs=2")):
        epochs = () if more else ("training.num_epochs=1",)
        done = other.main(*brief, *epochs, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
        assert all(line.startswith("WARNING: TensorBoard: ") for line in warnings), warnings
        assert "\\xca\\xd6/runs/" in done.stdout
    (best,) = other.runs.glob("*/checkpoints/best.pt")
    scored = other.main("name=scored", "dataset.cache=auto", "split.by=frame", "--evaluate", str(best))
    assert scored.returncode == 0, scored.stdout + scored.stderr
    (report,) = other.runs.glob("*-scored/val/report.html")
    assert "\\xca\\xd6" in report.read_text(encoding="utf-8")
