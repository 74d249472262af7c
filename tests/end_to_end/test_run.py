"""A whole run as users start it: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataloader.ho3d_dataset import HO3DDataset
from src.errors import DataError
from src.pages.page import Page
from tests.end_to_end.conftest import Embedded, command

Trained = tuple[Embedded, subprocess.CompletedProcess[str], Path]
NUMBER = r"-?\d+\.\d{3}"
BOTH = rf"MPJPE {NUMBER} mm, PA-MPJPE {NUMBER} mm"
SCORES = rf"MPJPE: {NUMBER} mm, PA-MPJPE: {NUMBER} mm"
POINT = rf"\[{NUMBER}, {NUMBER}, {NUMBER}\]"
DEBUG_BATCH = [
    r"\[Debug Batch {k}\]",
    rf"  RGB range: \[{NUMBER}, {NUMBER}\]",
    rf"  Depth range: \[{NUMBER}, {NUMBER}\]",
    rf"  GT 3D joints mean: {NUMBER}, std: {NUMBER}",
    rf"  Pred 3D joints mean: {NUMBER}, std: {NUMBER}",
    rf"  GT root joint: {POINT}",
    rf"  Pred root joint: {POINT}",
    r"  GT centered by root mean: 0\.000, std: 0\.000",
]
DEBUG_LOSS = [
    r"\[Debug 3D Loss\]",
    rf"  Before centering - Pred mean: {NUMBER}, std: {NUMBER}",
    rf"  Before centering - GT mean: {NUMBER}, std: {NUMBER}",
    rf"  After centering - Pred mean: {NUMBER}, std: {NUMBER}",
    rf"  After centering - GT mean: {NUMBER}, std: {NUMBER}",
    rf"  Per-element loss mean: {NUMBER}, max: {NUMBER}",
    r"  Loss value: \d+\.\d+",
]


def block(lines: list[str], patterns: list[str]) -> bool:
    """True if consecutive whole lines match the patterns."""
    return any(
        all(re.fullmatch(p, line) for p, line in zip(patterns, lines[i:], strict=False))
        for i in range(len(lines) - len(patterns) + 1)
    )


@pytest.fixture(scope="module")
def trained(embedded: Embedded) -> Trained:
    """Two epochs on two ranks with the loss traced."""
    settings = ("name=trained", "training.batch_size=2", "logging.every=2", "validation.pictures=8")
    done = embedded.torchrun(2, *settings, env={"UTNET_DEBUG_LOSS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return embedded, done, embedded.newest("trained")


def test_log_lines_are_the_contract(trained: Trained) -> None:
    """Users grep these lines, in the terminal and in log.txt: one letter of difference breaks scripts."""
    _, done, run = trained
    for text in (done.stdout, (run / "log.txt").read_text(encoding="utf-8")):
        lines = text.splitlines()
        for k in range(3):
            assert block(lines, [p.replace("{k}", str(k)) for p in DEBUG_BATCH])
        assert sum(line.startswith("[Debug Batch") for line in lines) == 3
        assert block(lines, DEBUG_LOSS)
        steps = 2 * (32 // 4)
        assert sum(line == "[Debug 3D Loss]" for line in lines) == steps
        for epoch in range(2):
            assert block(
                lines,
                [
                    rf"Epoch {epoch}: Train Loss: {NUMBER}",
                    rf"  Val Loss: {NUMBER}, MPJPE: {NUMBER} mm, PA-MPJPE: {NUMBER} mm",
                    r"  Evaluated on 16 samples from all 2 CPU ranks",
                    rf"  Vertices: MPVPE {NUMBER} mm, PA-MPVPE {NUMBER} mm",
                    rf"  Before refinement: {BOTH}",
                    rf"  Baselines of this split: zero pose {BOTH}; mean pose {BOTH}; "
                    rf"nearest training pose PA-MPJPE {NUMBER} mm",
                    r"  Split: HO3D v3 val, by sequence, whole motions held out \(split [0-9a-f]{12}\)",
                    rf"  Without depth: Loss: {NUMBER}, {SCORES} \(16 samples\)",
                ],
            )
    assert "by sequence" in done.stdout
    assert "STAND-IN HAND" in done.stdout
    assert "Warning" not in done.stderr, done.stderr


def test_run_folder_is_complete(trained: Trained) -> None:
    """What a user needs the morning after is in one folder."""
    _, _, run = trained
    assert (run / "config.yaml").read_text(encoding="utf-8").startswith("name: trained")
    meta = json.loads((run / "meta.json").read_text(encoding="utf-8"))
    assert (meta["ranks"], meta["hand_is_standin"]) == (2, True)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    scalars = [json.loads(line) for line in (run / "scalars.jsonl").read_text(encoding="utf-8").splitlines()]
    names = set().union(*scalars)
    assert {
        "Train/loss",
        "Train/lr",
        "Train/clipped_share",
        "Val/MPJPE",
        "Val/PA-MPJPE",
        "Val/RGB-only/MPJPE",
    } <= names
    assert all(np.isfinite(v) for row in scalars for v in row.values())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"Val/MPJPE", "Train/loss"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"Val/worst", "Val/median", "Val/best", "Val/spread"}
    assert (run / "val" / "report.html").stat().st_size > 10_000


def no_picture() -> None:
    """Pictures that were read for the score cannot be read for the page."""

    def refuse(self: HO3DDataset, index: int) -> NoReturn:
        raise DataError(f"picture {index} is gone")

    HO3DDataset.__getitem__ = refuse  # type: ignore[method-assign]


def no_page() -> None:
    """Whatever is drawn fails."""

    def fail(self: Page) -> NoReturn:
        raise RuntimeError("no page today")

    Page.html = fail  # type: ignore[method-assign]


@pytest.mark.parametrize(("plant", "warnings"), [(no_picture, 0), (no_page, 1)])
def test_a_page_that_cannot_be_made_ends_no_run(
    trained: Trained, plant: Callable[[], None], warnings: int
) -> None:
    """A page decorates: without its pictures it says why, and without it the score is there all the same."""
    embedded, _, run = trained
    name = plant.__name__
    arguments = ("--evaluate", str(run / "checkpoints" / "best.pt"), f"name={name}", "validation.pictures=8")
    done = embedded.main(*arguments, ranks=2, plant=plant)
    assert done.returncode == 0, done.stderr
    assert "  Evaluated on 16 samples from all 2 CPU ranks" in done.stdout.splitlines()
    assert done.stdout.count("WARNING: the validation's page: RuntimeError: no page today") == warnings
    folder = embedded.newest(name) / "val"
    assert (folder / "report.html").is_file() == (not warnings)
    assert f"Per-sample results: {folder / 'per_sample.npz'}" in done.stdout
    if not warnings:
        assert "No picture: picture " in (folder / "report.html").read_text(encoding="utf-8")


def test_the_same_checkpoint_scores_the_same_at_any_number_of_ranks(
    trained: Trained,
) -> None:
    """The score is a property of the checkpoint, not of the machine: to the last digit, file and all.

    Nor does it take a file of settings: two ranks work with those that the checkpoint keeps.
    """
    embedded, _, run = trained
    seen = {}
    for ranks in (1, 2, 3, 4):
        arguments = ("--evaluate", str(run / "checkpoints" / "best.pt"), f"name=score{ranks}")
        done = (embedded.bare if ranks == 2 else embedded.main)(*arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert f"  Evaluated on 16 samples from all {ranks} CPU ranks" in done.stdout.splitlines()
        path = re.search(r"^Per-sample results: (.+)$", done.stdout, re.M)
        assert path is not None
        lines = (embedded.newest(f"score{ranks}") / "scalars.jsonl").read_text().splitlines()
        values = [{k: v for k, v in json.loads(x).items() if k != "minutes"} for x in lines]
        seen[ranks] = (Path(path.group(1)).read_bytes(), values)
    assert seen[1] == seen[2] == seen[3] == seen[4]
    taken = f"No --config: the settings are those kept in {run / 'checkpoints' / 'best.pt'}: "
    assert taken in (embedded.newest("score2") / "log.txt").read_text(encoding="utf-8")
    assert taken not in (embedded.newest("score3") / "log.txt").read_text(encoding="utf-8")
    rows = np.load(embedded.newest("score3") / "val" / "per_sample.npz")
    assert rows["sample_index"].tolist() == list(range(16))
    assert rows["mpjpe_mm"].mean() == pytest.approx(seen[1][1][0]["Val/MPJPE"], rel=1e-12)


def test_two_agents_are_one_run(embedded: Embedded) -> None:
    """Several machines work through torchrun's own rendezvous: two agents on one machine train as one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test", "--local_addr=127.0.0.1",
    ]  # fmt: skip
    arguments = [*launch, "train.py", *embedded.settings("name=agents", "training.num_epochs=1")]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: command(*arguments, env={"GLOO_SOCKET_IFNAME": "lo"}), range(2)))
    assert [b.returncode for b in both] == [0, 0], both[0].stderr + both[1].stderr
    text = both[0].stdout + both[1].stdout
    assert text.count("Evaluated on 16 samples from all 2 CPU ranks") == 1
    state = torch.load(embedded.newest("agents") / "checkpoints" / "last.pt", weights_only=True)
    assert state["world"] == 2
