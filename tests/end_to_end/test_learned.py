"""The last step of `make learn`: the numbers that are reported are those of the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloader.synthetic.found import HELD_OUT_NAME
from dataloader.synthetic.writer import Parameters, write_tree
from src.evaluation.evaluator import read_per_sample
from src.hand.mano_assets import load_hand_asset
from src.tools import learned
from tests.end_to_end.conftest import Embedded

Folders = tuple[Path, Path, Path, Path]
RESULT = (
    r"RESULT split=sequence rgbd_mpjpe=(\S+) rgbd_pa=(\S+) rgb_mpjpe=(\S+) rgb_pa=(\S+) zero_pa=(\S+) "
    r"mean_pose_mpjpe=(\S+) mean_pose_pa=(\S+) nearest_pa=(\S+) minutes=(\S+)"
)


@pytest.fixture(scope="module")
def folders(embedded: Embedded) -> Folders:
    """A training of two steps, scored on its held-out motions and on random frames."""
    done = embedded.main("name=taught", "training.num_epochs=1", "training.max_steps_per_epoch=2")
    assert done.returncode == 0, done.stderr
    run = embedded.newest("taught")
    checkpoint = str(run / "checkpoints" / "last.pt")
    elsewhere = embedded.runs / "elsewhere"
    tree = Parameters(6, 2, 0, cameras=2, held_out_sequences=2, domain="wide", annotations_only="train")
    assert write_tree(elsewhere, tree, load_hand_asset(embedded.hand))
    for name, *settings in (
        ("held-out",), ("random", "split.by=frame"), ("other", f"dataset.root_dir={elsewhere}",
        f"split.held_out_list={HELD_OUT_NAME}"),
    ):  # fmt: skip
        done = embedded.main(f"name={name}", *settings, "--evaluate", checkpoint)
        assert done.returncode == 0, done.stderr
    held_out, random, other = map(embedded.newest, ("held-out", "random", "other"))
    return run, held_out, random, other


def arguments(run: Path, held_out: Path, random: Path, other: Path | None = None) -> list[str]:
    named = ["--run", str(run), "--held-out", str(held_out), "--random", str(random)]
    return named if other is None else [*named, "--other", str(other)]


def test_result_line_says_what_the_files_hold(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read this line; frames of held-out motions among the random ones would hide a gap."""
    assert learned.main(arguments(*folders[:3])) == 0
    lines = capsys.readouterr().out.splitlines()
    found = re.fullmatch(RESULT, lines[-1])
    assert found, lines[-1]
    numbers = [float(text) for text in found.groups()]
    held_out = {}
    for k, name in enumerate(("per_sample.npz", "per_sample_rgb.npz")):
        with np.load(folders[1] / "val" / name) as rows:
            means = [rows[metric].mean() for metric in ("mpjpe_mm", "pa_mpjpe_mm")]
            held_out[name] = {frame.rpartition("/")[0] for frame in rows["frame"].tolist()}
            coarse = rows["coarse_mpjpe_mm"].mean()
        assert numbers[2 * k : 2 * k + 2] == pytest.approx(means, abs=5e-4)
        assert any(f"{coarse:.3f}" in line for line in lines if "before refinement" in line)
        with np.load(folders[2] / "val" / name) as rows:
            known = [f.rpartition("/")[0] not in held_out[name] for f in rows["frame"].tolist()]
            assert 0 < sum(known) < len(known)
            score = rows["mpjpe_mm"][known].mean()
        assert any(f"{score:.3f}" in line for line in lines if "random frames" in line)
    scalars = [json.loads(x) for x in (folders[1] / "scalars.jsonl").read_text().splitlines()]
    base = {k.removeprefix("Val/baseline/"): v for row in scalars for k, v in row.items() if "baseline" in k}
    named = ("zero_pa_mm", "mean_pose_mpjpe_mm", "mean_pose_pa_mm", "nearest_pose_pa_mm")
    assert numbers[4:8] == pytest.approx([base[name] for name in named], abs=5e-4)
    assert len({round(value, 3) for value in base.values()}) == 5, "the test wants baselines apart"
    minutes = json.loads((folders[0] / "scalars.jsonl").read_text().splitlines()[-1])["minutes"]
    assert numbers[8] == pytest.approx(minutes, abs=0.051), "minutes of the training"
    for title, keys in (("zero pose", ("zero_mpjpe_mm", "zero_pa_mm")), ("mean pose", named[1:3])):
        (row,) = [line.split()[-2:] for line in lines if line.startswith(title)]
        assert [float(text) for text in row] == pytest.approx([base[key] for key in keys], abs=5e-4), title
    assert f"Page of the held-out motions: {folders[1] / 'val' / 'report.html'}" in lines
    seen, unseen = (
        (folder / "val" / "report.html").read_text(encoding="utf-8") for folder in folders[2:0:-1]
    )
    said = "it may have seen these samples"
    assert (said in seen, said in unseen) == (True, False), (
        "whoever reads a score must know what the log warns of"
    )


def test_a_second_line_says_what_the_weights_are_worth_elsewhere(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that is better on its own data alone is no better; the first line stays what it was."""
    assert learned.main(arguments(*folders[:3])) == 0
    alone = capsys.readouterr().out.splitlines()
    assert learned.main(arguments(*folders)) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == alone
    found = re.fullmatch(RESULT.replace("RESULT ", "RESULT data=elsewhere "), last)
    assert found, last
    for k, name in enumerate(("per_sample.npz", "per_sample_rgb.npz")):
        with np.load(folders[3] / "val" / name) as rows:
            means = [rows[metric].mean() for metric in ("mpjpe_mm", "pa_mpjpe_mm")]
        assert [float(text) for text in found.groups()[2 * k : 2 * k + 2]] == pytest.approx(means, abs=5e-4)
    log = (folders[3] / "log.txt").read_text(encoding="utf-8")
    assert "WARNING: the checkpoint was trained on another data set (" in log
    assert "have changed since" not in log, "labels of other frames are others"
    assert found.group(9) == re.fullmatch(RESULT, alone[-1]).group(9), "minutes of the one training"


def test_a_run_without_refinement_has_no_row_of_it(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make learn` itself refines nothing; half an hour of training must not end in an error."""
    assert learned.main(arguments(*folders[:3])) == 0
    refined = capsys.readouterr().out.splitlines()

    def unrefined(path: Path) -> dict[str, Any]:
        return {name: rows for name, rows in read_per_sample(path).items() if not name.startswith("coarse_")}

    monkeypatch.setattr(learned, "read_per_sample", unrefined)
    assert learned.main(arguments(*folders[:3])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line for line in refined if "before refinement" not in line] != refined


@pytest.mark.parametrize(
    ("swap", "said"),
    [
        ("held-out is random", "its split is"),
        ("random is held-out", "no frame of a training motion"),
        ("held-out is the training", "no folder of --evaluate: its meta.json names no checkpoint"),
        ("the training is another one", "want a checkpoint of"),
        ("other is held-out", "the data set of the training"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folders: Folders, tmp_path: Path, swap: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score of the wrong split looks like a very good run."""
    run, held_out, random, _ = folders
    another = tmp_path / "20260101-000000-taught"
    shutil.copytree(run, another)
    mixed = {
        "held-out is random": (run, random, random),
        "random is held-out": (run, held_out, held_out),
        "held-out is the training": (run, run, random),
        "the training is another one": (another, held_out, random),
        "other is held-out": (run, held_out, random, held_out),
    }[swap]
    assert learned.main(arguments(*mixed)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("metric", ["mpjpe_mm", "pa_mpjpe_mm"])
def test_a_score_that_is_not_finite_is_no_result(
    folders: Folders, tmp_path: Path, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rgbd_mpjpe=nan` with status 0 went into tables as if it had been measured."""
    run, held_out, random, _ = folders
    broken = tmp_path / "held-out"
    shutil.copytree(held_out, broken)
    path = broken / "val" / "per_sample_rgb.npz"
    with np.load(path) as file:
        rows = dict(file)
    rows[metric][3] = np.nan
    np.savez(path, **rows)
    assert learned.main(arguments(run, broken, random)) == 2
    out, error = capsys.readouterr()
    assert "RESULT" not in out
    assert f"per_sample_rgb.npz: {metric} of 1 frames is not finite (first: {rows['frame'][3]})" in error
    content = path.read_bytes()
    path.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    assert learned.main(arguments(run, broken, random)) == 2
    assert "not a per-sample file" in capsys.readouterr().err
