"""The user's proof: test_distributed_eval.py."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

import test_distributed_eval as proof
from src.errors import CollectError
from src.evaluation.seeded import Samples
from src.runtime.ranks.distributed import DistContext, setup_distributed, spawn_ranks
from tests import processes
from tests.rooms.sources import ROOT


def test_the_proof_passes_and_says_so(capsys):
    """What a user runs on a new cluster before spending a week on it."""
    assert proof.main(["--world", "4", "--num-samples", "331", "--with-vertices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Main group gloo, collection gloo, device cpu, world 4, hosts ")
    assert sum(line.startswith("PASS  ") for line in lines) == 6
    assert not any(line.startswith("FAIL") for line in lines)
    assert "  Evaluated on 331 samples from all 4 CPU ranks" in lines
    assert any(line.startswith("  Vertices: MPVPE ") for line in lines)


@pytest.mark.parametrize(
    ("inject", "words"),
    [
        ("duplicate@2", "1 samples came more than once (first: 10; 10 from rank 2)"),
        ("missing@1", "1 of 40 samples are missing (first: 39), rank 1 holds 14 of the 15 rows"),
        ("nan@1", "FAIL  1 predictions are not finite: samples 5 of rank 1. MPJPE nan mm, PA-MPJPE nan mm"),
        ("raise@0", "rank 0 raised RuntimeError: injected"),
        ("kill@1 send", "rank 1 did not deliver its rows"),
        ("stall@1", "rank 1 did not reach the collection (nothing came for 2 s)"),
    ],
)
def test_an_injected_failure_is_reported_and_nothing_is_scored(capsys, inject, words):
    """A user must know beforehand how a failure of their cluster looks; it must not look like a score, and a
    proof that passes for a collection that loses rows would prove nothing.
    """
    failure, _, moment = inject.partition(" ")
    arguments = ["--world", "3", "--num-samples", "40", "--batch-size", "5", "--inject", failure]
    assert proof.main([*arguments, "--inject-at", moment or "collection"]) == 1
    out = capsys.readouterr().out
    assert any(line.startswith("FAIL  ") and words in line for line in out.splitlines()), out
    assert "Evaluated on" not in out
    assert "PASS" not in out


def test_torchrun_ends_every_rank_and_each_says_why():
    """torchrun ends the survivors at once: without a moment's patience nobody would learn which rank died."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    proved = ["test_distributed_eval.py", "--num-samples", "40", "--device", "cpu", "--inject", "kill@2"]
    done = processes.run([*command, *proved], cwd=ROOT, timeout_s=120)
    lines = done.stdout.splitlines()
    assert done.returncode != 0
    for rank in (0, 1):
        told = f"FAIL  rank {rank}: Validation over 3 CPU ranks: rank 2 did not reach the collection"
        assert any(line.startswith(told) for line in lines), done.stdout + done.stderr
    assert "Evaluated on" not in done.stdout


def receives_sigterm(context: DistContext, says_it: bool) -> None:
    """As a rank of torchrun that is told to end: with something left to say, or with nothing and stuck."""
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    proof._LAST_WORDS_S = 60.0 if says_it else 0.1
    proof._speak_before_ending()
    os.kill(os.getpid(), signal.SIGTERM)
    if says_it:
        raise CollectError("rank 2 did it")
    threading.Event().wait(60.0)


def test_a_rank_may_finish_its_sentence_and_ends_all_the_same():
    """SIGTERM comes within a tenth of a second after a death; and a stuck rank must not stay for ever."""
    spoke = spawn_ranks(receives_sigterm, 1, (True,), 30.0, check=False)[0]
    assert spoke.brief == "rank 2 did it"
    stuck = spawn_ranks(receives_sigterm, 1, (False,), 30.0, check=False)[0]
    assert stuck.brief == "ended with exit code 1 and no result"


def test_an_injection_that_nobody_notices_fails(capsys, monkeypatch):
    """A collection that lets a duplicate pass must not leave with status 0."""
    real, replace = proof.fill_shard, proof.dataclasses.replace
    blind = lambda samples, plan, *where: real(samples, replace(plan, inject=""), *where)  # noqa: E731
    monkeypatch.setattr(proof, "fill_shard", blind)
    assert proof.main(["--num-samples", "9", "--device", "cpu", "--inject", "duplicate@0"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  duplicate at rank 0 was injected and nobody noticed" in out
    assert "Evaluated on" not in out


def test_the_proof_notices_rows_in_the_wrong_place(monkeypatch):
    """Right count, right mean, wrong rows: only a comparison row by row sees it."""
    real = proof.score
    rolled = lambda samples: Samples(*(part.roll(1, 0) for part in vars(samples).values()))  # noqa: E731
    monkeypatch.setattr(proof, "score", lambda samples, *arguments: real(rolled(samples), *arguments))
    lines, passed = proof.prove(setup_distributed("cpu"), proof.Plan(num_samples=9, batch_size=4))
    assert not passed
    assert "FAIL  row i holds sample i" in lines
    assert not any("Evaluated on" in line for line in lines)


@pytest.mark.parametrize(
    "argv",
    [
        ["--world", "0"],
        ["--world", "2", "--timeout", "1e12"],
        ["--wrld", "2"],
        ["--world", "3", "--inject", "kill@3"],
        ["--world", "3", "--inject", "explode@1"],
        ["--world", "1", "--inject", "stall@0"],
        ["--world", "3", "--inject", "nan@2", "--num-samples", "70"],
    ],
)
def test_wrong_arguments_leave_with_status_2(argv):
    """A misspelt flag must not become a proof of something else."""
    with pytest.raises(SystemExit) as left:
        proof.main(argv)
    assert left.value.code == 2


def test_the_device_that_was_asked_for_is_proved_or_refused(capsys, monkeypatch):
    """A proof that was asked for on GPUs and ran on the CPU would prove another cluster."""
    with pytest.raises(SystemExit) as left:
        proof.main(["--world", "2", "--device", "cuda"])
    assert left.value.code == 2
    assert "for GPUs: torchrun --nproc_per_node=2" in capsys.readouterr().err
    monkeypatch.setattr(proof.torch.cuda, "is_available", lambda: False)
    assert proof.main(["--device", "cuda", "--num-samples", "3"]) == 2
    assert "need a GPU each, found 0" in capsys.readouterr().out
