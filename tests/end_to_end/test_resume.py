"""A killed run goes on as if nothing had happened."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests import processes
from tests.end_to_end.conftest import Embedded
from tests.rooms.sources import ROOT

SETTINGS = (
    "training.num_epochs=2", "training.max_steps_per_epoch=5", "training.save_every_steps=3",
    "model.drop_path=0.1", "validation.pictures=0", "logging.every=1",
)  # fmt: skip


def start(embedded: Embedded, *more: str, new_session: bool = False) -> subprocess.Popen[str]:
    """A run in the background."""
    command = [sys.executable, "train.py", *embedded.settings(*SETTINGS, *more)]
    return processes.start(command, cwd=ROOT, env=dict(os.environ), new_session=new_session)


def wait_for_step(embedded: Embedded, name: str, step: int) -> Path:
    """Wait until a run has recorded an optimiser step."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for run in embedded.runs.glob(f"*-{name}"):
            scalars = run / "scalars.jsonl"
            if scalars.is_file() and f'"step": {step},' in scalars.read_text():
                return run
        time.sleep(0.02)
    raise AssertionError(f"run {name} did not reach step {step}")


def final(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return {**state["model"], **{f"ema.{k}": v for k, v in state["ema"]["average"].items()}}


def curve(run: Path) -> list[dict[str, float]]:
    """Every scalar of a run but what the clock says."""
    rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    minutes = [row["minutes"] for row in rows]
    assert minutes == sorted(minutes), "minutes of a resumed run go on where its first part stopped"
    clock = ("Train/samples_per_s_and_rank", "Train/data_wait_share", "minutes")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_killed_and_resumed_equals_uninterrupted(embedded: Embedded) -> None:
    """kill -9 in the middle of an epoch, --resume auto: the same weights, bit for bit, and the same curve."""
    whole = embedded.main(*SETTINGS, "name=whole")
    assert whole.returncode == 0, whole.stderr
    process = start(embedded, "name=killed")
    run = wait_for_step(embedded, "killed", 4)
    process.kill()
    process.communicate(timeout=60)
    assert 0 < torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"] < 2 * 5
    resumed = embedded.main(*SETTINGS, "name=killed", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert f"Resumed {run / 'checkpoints' / 'last.pt'} at epoch " in resumed.stdout
    assert list(embedded.runs.glob("*-killed")) == [run]
    first, second = final(embedded.newest("whole")), final(run)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert curve(embedded.newest("whole")) == curve(run)
    again = embedded.main(*SETTINGS, "name=killed", "--resume", "auto")
    assert again.returncode == 0
    finished = re.compile(r"Finished 2 epochs, best MPJPE [\d.]+ mm \(epoch \d\)")
    best = finished.findall(whole.stdout)
    assert len(best) == 1
    assert finished.findall(again.stdout) == best
    # From a copy elsewhere, with the settings inside: a run folder of its own, which needs a best.pt of its
    # own; and nothing that was read to begin the run.
    copied = embedded.runs.parent / f"{embedded.runs.name}-copied.pt"
    copied.write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    moved = embedded.bare(
        "name=moved", "training.num_epochs=3", "model.pretrained=gone.pt", "--resume", str(copied)
    )
    assert moved.returncode == 0, moved.stderr
    changed = set(re.findall(r"Changed since the checkpoint: (.+): ", moved.stdout))
    assert changed == {"name", "training.num_epochs", "model.pretrained"}
    assert re.search(r"Finished 3 epochs, best MPJPE [\d.]+ mm \(epoch 2\)", moved.stdout)
    assert (embedded.newest("moved") / "checkpoints" / "best.pt").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves_and_leaves(embedded: Embedded, number: signal.Signals) -> None:
    """Ctrl-C and a closed terminal signal every process: the run saves, says how to go on, leaves with 3."""
    name = f"group{number.value}"
    process = start(embedded, f"name={name}", "dataset.num_workers=2", new_session=True)
    run = wait_for_step(embedded, name, 2)
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 3, text
    assert f"Stopped by {number.name} after step" in text
    assert "Traceback" not in text
    assert f"--resume {run / 'checkpoints' / 'last.pt'}" in text
    assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"] >= 2


def test_other_labels_under_the_same_lists_are_said(embedded: Embedded, tmp_path: Path) -> None:
    """Annotations were mended in place: the run goes on, and its log and best.pt know of it."""
    root = tmp_path / "HO3D"
    shutil.copytree(embedded.root, root)
    settings = (*SETTINGS, f"dataset.root_dir={root}", "name=mended", "training.max_steps_per_epoch=2")
    first = embedded.main(*settings, "training.num_epochs=1")
    assert first.returncode == 0, first.stderr
    for path in root.glob("train/*/meta/*.pkl"):
        meta = pickle.loads(path.read_bytes())
        for key in ("handTrans", "handJoints3D"):
            meta[key] = meta[key] + [0.0, 0.0, -0.002]  # 2 mm farther away
        path.write_bytes(pickle.dumps(meta))
    second = embedded.main(*settings, "--resume", "auto")
    assert second.returncode == 0, second.stderr
    assert "WARNING: labels of the training list have changed since" in second.stdout
    assert "best.pt was chosen on other validation samples or labels" in second.stdout
    scored = embedded.main(*settings, "--evaluate", str(embedded.newest("mended") / "checkpoints/last.pt"))
    assert scored.returncode == 0, scored.stderr
    assert "have changed since" not in scored.stdout


def signalled(number: signal.Signals, place: str) -> None:
    """Send this process a signal when it comes to a function, `module:name`."""
    signal.signal(number, signal.SIG_DFL)  # a shell ignores INT in what it starts with `&`
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    work = getattr(owner, name)

    def stopped(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), number)
        return work(*arguments, **settings)

    setattr(owner, name, stopped)


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGINT, "src.build:build_model"),
        (signal.SIGTERM, "src.training.run_folder:_take"),
        (signal.SIGUSR1, "src.training.run_folder:_take"),
    ],
)
def test_a_signal_during_the_start_is_a_line_and_leaves_no_folder(
    embedded: Embedded, number: signal.Signals, place: str
) -> None:
    """An index takes minutes: whoever stops it then has nothing to keep."""
    name = f"early-{number.name}-{place[-4:]}"
    done = embedded.main(f"name={name}", plant=functools.partial(signalled, number, place))
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1] == f"Stopped by {number.name}, nothing was saved"
    assert "Traceback" not in done.stderr
    assert not list(embedded.runs.glob(f"*-{name}"))


@pytest.mark.parametrize(("starts", "status"), [("0", 0), ("2", 3)])
def test_an_agreed_stop_is_not_undone_by_torchrun(embedded: Embedded, starts: str, status: int) -> None:
    """With restarts left it starts a run again that left with any status but 0."""
    plant = functools.partial(signalled, signal.SIGTERM, "train:PaceMeter")
    env = {"TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_RESTART_COUNT": starts}
    done = embedded.main(f"name=agreed{starts}", env=env, plant=plant)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Stopped by SIGTERM after step 1, saved" in done.stdout
    assert ("Leaving with status 0" in done.stdout) == (status == 0)


def test_nohup_outlives_its_terminal_and_a_path_is_told_from_anywhere(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closed terminal is what nohup is for; and last.pt named from beside it is that run's."""
    brief = ("name=nohup", "training.num_epochs=1", "training.max_steps_per_epoch=4", "logging.every=1")
    command = ["nohup", sys.executable, "train.py", *embedded.settings(*brief)]
    process = processes.start(command, cwd=ROOT, env=dict(os.environ))
    run = wait_for_step(embedded, "nohup", 1)
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    monkeypatch.chdir(run / "checkpoints")
    more = ("--resume", "last.pt", "training.num_epochs=3", f"logging.runs_dir={embedded.runs}")
    arguments = train.parse_arguments(more)
    assert arguments.resume == str(run / "checkpoints" / "last.pt")
