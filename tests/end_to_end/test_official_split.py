"""HO3D's official split: scored against its public labels, and exported as its server wants it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from src.evaluation.metrics import official_ho3d
from src.tools import export_submission
from tests.end_to_end.conftest import Embedded

LINE = re.compile(r"^    (\w+): ([0-9.]+)$", re.M)


@pytest.fixture(scope="module")
def scored(embedded: Embedded) -> tuple[Path, dict[int, str], dict[int, bytes]]:
    """A checkpoint, what `--evaluate` prints about it on the official split, and its per-sample file."""
    done = embedded.main("name=brief", "training.num_epochs=1", "training.max_steps_per_epoch=2")
    assert done.returncode == 0, done.stderr
    checkpoint = embedded.newest("brief") / "checkpoints" / "best.pt"
    said, files = {}, {}
    for ranks in (1, 3):
        arguments = (f"name=official{ranks}", "--evaluate", str(checkpoint), "validation.split=evaluation")
        done = embedded.main(*arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        said[ranks] = done.stdout
        files[ranks] = (embedded.newest(f"official{ranks}") / "val" / "per_sample.npz").read_bytes()
    return checkpoint, said, files


def official_of(text: str, shown: str) -> dict[str, float]:
    """The official scores that a log holds for one way of showing samples."""
    block = text.partition(f"  Official HO3D scores ({shown}; *_mean3d in cm):\n")[2]
    lines = block.split("\n")
    end = next((i for i, line in enumerate(lines) if not line.startswith("    ")), len(lines))
    return {name: float(value) for name, value in LINE.findall("\n".join(lines[:end]))}


def test_evaluate_equals_its_submission(
    embedded: Embedded, scored: tuple[Path, dict[int, str], dict[int, bytes]], tmp_path: Path
) -> None:
    """What we print must be what the server will print: the files we export, scored as it scores them."""
    checkpoint, said, _ = scored
    out = tmp_path / "submission"
    assert export_submission.main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    pred = json.loads((out / "pred.json").read_text())
    truth = [json.loads((embedded.root / f"evaluation_{kind}.json").read_text()) for kind in ("xyz", "verts")]
    arrays = [np.asarray(rows, np.float64) for rows in (pred[0], truth[0], pred[1], truth[1])]
    expected = official_ho3d(*arrays)
    shown = official_of(said[1], "RGB-D")
    assert shown.keys() == expected.keys()
    assert shown == {name: pytest.approx(value, abs=5.1e-7) for name, value in expected.items()}
    assert official_of(said[1], "RGB-only").keys() == expected.keys()
    for name, value in official_of(said[1], "RGB-only").items():
        if name.endswith("mean3d"):
            assert value != shown[name], f"{name} without depth is that with depth"


def test_another_hand_model_is_refused(
    embedded: Embedded, scored: tuple[Path, dict[int, str], dict[int, bytes]], tmp_path: Path
) -> None:
    """Weights trained on one hand and decoded by another give meshes that no one asked for."""
    state = torch.load(scored[0], weights_only=True)
    path = tmp_path / "other.pt"
    torch.save(state | {"hand_fingerprint": "another"}, path)
    done = embedded.main("name=other", "--evaluate", str(path))
    assert done.returncode == 2
    assert "hand" in done.stderr
    assert "Evaluated on" not in done.stdout


def test_meshes_are_scored_where_they_are_predicted(
    scored: tuple[Path, dict[int, str], dict[int, bytes]],
) -> None:
    """The official scores too must not depend on how many ranks computed them."""
    _, said, files = scored
    assert files[1] == files[3]
    assert official_of(said[1], "RGB-D") == official_of(said[3], "RGB-D")
    for ranks in (1, 3):
        assert f"  Evaluated on 16 samples from all {ranks} CPU ranks" in said[ranks].splitlines()
        assert "  Split: HO3D v3 evaluation, official list (split " in said[ranks]


def test_the_report_stands_beside_the_rows(embedded: Embedded, scored: object) -> None:
    """One file to read the morning after: intervals, baselines, fingers, sequences, official names."""
    text = (embedded.newest("official1") / "val" / "report.html").read_text(encoding="utf-8")
    for word in ("<td>RGB-D</td>", "<td>RGB-only</td>", "zero pose", "nearest training pose",
                 "<td>pinky</td>",
                 "xyz_procrustes_al_mean3d", "f_al_score_15"):  # fmt: skip
        assert word in text, word
