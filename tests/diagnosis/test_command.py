"""`python -m src.tools.doctor` and the doctor inside `train.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import dataloader.batches.loader as loading
import dataloader.crop.prepare as preparation
from src.hand.mano import ManoLayer
from src.runtime.files.tensor_file import load_tensors, save_tensors
from src.schema import HandBatch
from src.tools import doctor
from src.training.checkpoints.checkpoint import Progress, save_checkpoint
from src.training.diagnosis.table import Finding
from tests.diagnosis.conftest import ALONE, Clinic
from tests.diagnosis.test_data import bgr, planted
from tests.diagnosis.watched import Watched
from tests.end_to_end.conftest import Embedded


def exchange_channels() -> None:
    """BGR pictures."""
    original = preparation.prepare
    loading.prepare = lambda raw: planted(original(raw), bgr)  # type: ignore[assignment]


def run(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], *more: str, steps: str = "2"
) -> tuple[int, list[str], str]:
    arguments = clinic.data.settings("training.batch_size=8", "dataset.p_drop_depth=0", *more)
    status = doctor.main([*arguments, "--steps", steps])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_a_healthy_set_up_leaves_with_0(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that asks before a week of training must be let through, and nothing may be written."""
    before = set(clinic.data.runs.iterdir())
    status, lines, err = run(clinic, capsys)
    assert (status, err) == (0, "")
    assert all(line.startswith("OK  ") for line in lines if line[:4] in ("OK  ", "WARN", "FAIL"))
    assert lines[-1].startswith("Doctor: ")
    assert lines[-1].endswith(" checks OK")
    assert int(lines[-1].split()[1]) > 30
    assert set(clinic.data.runs.iterdir()) == before


def test_a_checkpoint_is_looked_at(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A network that says the same for every picture must not be taken for a trained one."""
    watched = Watched(clinic)
    watched.steps(1)
    with torch.no_grad():  # nothing but constants is left of what the network knows
        for parameter in watched.model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        watched.trainer.ema.load_state_dict(  # type: ignore[union-attr]
            {"average": {n: p.detach() for n, p in watched.model.named_parameters()}, "updates": 1}
        )
    path = tmp_path / "last.pt"
    hand, config = clinic.hand, watched.config
    save_checkpoint(path, watched.trainer, Progress(), config, hand, watched.train_set.frames.split.id, ALONE)
    state = load_tensors(path, "checkpoint")  # as four ranks with two batches a step save it
    state["world"], state["config"]["training"]["accumulation"] = 4, 2
    state["rng"] *= 4
    save_tensors(state, path)
    more = ("--checkpoint", str(path), "validation.batch_size=8")
    status, lines, _ = run(clinic, capsys, *more, steps="0")
    assert status == 1
    assert any(line.startswith("FAIL  constant predictions: ") for line in lines), lines
    assert "Checkpoint: 1 steps, 64 samples" in lines, "1 step x 8 samples x 2 accumulated x 4 ranks"


def test_bad_input_leaves_with_2(clinic: Clinic, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What keeps the doctor from looking is one line, not a finding and not a traceback."""
    for argument in (("--checkpoint", str(tmp_path / "none.pt")), ("dataset.root_dir=nowhere",)):
        status, _, err = run(clinic, capsys, *argument)
        assert (status, err.count("\n")) == (2, 1)


def test_a_defect_leaves_with_1(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script reads the status, a human the name of the cause."""
    check, calls = doctor.check_data, []

    def spoilt(batches: Sequence[HandBatch], hand: ManoLayer) -> list[Finding]:  # another one in each split
        calls.append(len(batches))
        change = bgr if len(calls) == 1 else lambda batch: {"rgb": batch.rgb * 0}
        return check([planted(batch, change) for batch in batches], hand)

    monkeypatch.setattr(doctor, "check_data", spoilt)
    status, lines, _ = run(clinic, capsys, steps="0")
    assert status == 1
    failed = [line.partition(":")[0] for line in lines[:-1] if line[:4] in ("FAIL", "Vali")]
    assert failed[:2] == ["FAIL  BGR", "Validation batches"]
    assert failed[2] == "FAIL  blank crops"
    assert "FAIL BGR, FAIL blank crops" in lines[-1]


def test_two_ranks_stop_on_a_fail_where_that_is_asked_for(embedded: Embedded) -> None:
    """Rank 0 alone looks; both ranks must leave after the same step, saved, and say why."""
    asked = ("name=stopped", "logging.doctor_stops=true", "training.batch_size=8")
    done = embedded.main(*asked, ranks=2, plant=exchange_channels)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("  Doctor FAIL  BGR: ") == 1
    assert "Stopped by the doctor (BGR; logging.doctor_stops) after step 2, saved." in done.stdout
    assert (embedded.newest("stopped") / "checkpoints" / "last.pt").is_file()


def test_a_healthy_run_says_so_in_its_log(embedded: Embedded) -> None:
    """One line after the first batches, one after each validation; the loss table where it was asked for."""
    more = ("name=watched", "training.num_epochs=1", "training.max_steps_per_epoch=4", "logging.every=2")
    done = embedded.main(*more, env={"UTNET_DEBUG_LOSS": "1"})
    assert done.returncode == 0, done.stderr
    lines = (embedded.newest("watched") / "log.txt").read_text(encoding="utf-8").splitlines()
    said = [line for line in lines if line.startswith(("Doctor", "  Doctor"))]
    assert [line.partition(" checks OK ")[2] for line in said] == ["(step 3)", "(validation)"], said
    tables = [k for k, line in enumerate(lines) if line.startswith("[Debug Loss Terms] step ")]
    assert [lines[k].split(",")[0][-6:] for k in tables] == ["step 2", "step 4"]
    assert lines[tables[0] + 1].startswith("  joints_3d: ")
