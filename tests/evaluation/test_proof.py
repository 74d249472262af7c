"""The user's proof: test_distributed_eval.py."""

from __future__ import annotations

import pytest

import test_distributed_eval as proof
from src.runtime.distributed import setup_distributed


def test_the_proof_passes_and_says_so(capsys):
    """What a user runs on a new cluster before spending a week on it."""
    assert proof.main(["--world", "4", "--num-samples", "331"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("PASS  ") for line in lines) == 6
    assert not any(line.startswith("FAIL") for line in lines)
    assert "  Evaluated on 331 samples from all 4 CPU ranks" in lines


def test_the_proof_can_fail(capsys, monkeypatch):
    """A proof that passes for a collection that loses rows proves nothing."""

    def lossy(num_samples: int, batch_size: int, rank: int, world: int) -> list[range]:
        return [range(0, num_samples - 1)]

    monkeypatch.setattr(proof, "validation_batches", lossy)
    assert proof.main(["--num-samples", "9", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  Validation over 1 CPU ranks: 1 of 9 samples are missing (first: 8)" in out
    assert "Evaluated on" not in out


def test_the_proof_notices_rows_in_the_wrong_place(monkeypatch):
    """Right count, right mean, wrong rows: only a comparison row by row sees it."""
    real = proof.score

    def shuffled(samples, batch_size, rank, world, context, timeout_s):
        order = [*range(1, len(samples.loss)), 0]
        moved = proof.Samples(samples.pred[order], samples.target[order], samples.conf, samples.loss)
        return real(moved, batch_size, rank, world, context, timeout_s)

    monkeypatch.setattr(proof, "score", shuffled)
    outcome = proof.prove(setup_distributed("cpu"), 9, 4, 0, 5.0)
    assert outcome is not None
    assert not outcome.passed
    assert "FAIL  row i holds sample i" in outcome.lines


@pytest.mark.parametrize(
    "argv", [["--world", "0"], ["--num-samples", "-1"], ["--timeout", "0"], ["--wrld", "2"]]
)
def test_wrong_arguments_leave_with_status_2(argv):
    """A misspelt flag must not become a proof of something else."""
    with pytest.raises(SystemExit) as left:
        proof.main(argv)
    assert left.value.code == 2
