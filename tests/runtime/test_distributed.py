"""Ranks: they agree, they name who failed, and nothing waits for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from src.errors import ConfigError, DataError, PeerError, UTNetError
from src.runtime.distributed import DistContext, RankOutcome, setup_distributed, spawn_ranks


def sums(context: DistContext) -> tuple[float, list[int], str]:
    total = context.sum(torch.tensor([float(context.rank)])).item()
    return total, context.gather_objects(context.rank * 2), context.broadcast_object(f"from {context.rank}")


def one_fails(context: DistContext, bad: int) -> str:
    def work() -> int:
        if context.rank == bad:
            raise DataError("frame 7 is torn")
        return context.rank

    try:
        context.together("opening the data", work, main_first=True)
    except PeerError as error:
        return f"peer: {error}"
    except DataError as error:
        return f"own: {error}"
    return "nothing"


def dies(context: DistContext, bad: int, others_are_ready: str) -> int:
    """The bad rank leaves only after the other has left the set-up, which needs both."""
    ready = Path(others_are_ready)
    if context.rank != bad:
        ready.touch()
        return context.rank
    while not ready.exists():
        time.sleep(0.01)
    os._exit(7)


def sleeps(context: DistContext) -> None:
    time.sleep(60)


def test_helpers_agree_on_every_rank() -> None:
    """Decisions taken from these values must be the same everywhere."""
    assert spawn_ranks(sums, 3) == [(3.0, [0, 2, 4], "from 0")] * 3
    assert sums(DistContext(0, 1, 0, torch.device("cpu"), None)) == (0.0, [0], "from 0")


@pytest.mark.parametrize("bad", [0, 2])
def test_one_failing_rank_stops_all_and_speaks_once(bad: int) -> None:
    """One rank's torn frame ends all ranks, with one message and not a hang."""
    seen = spawn_ranks(one_fails, 3, (bad,))
    for rank, text in enumerate(seen):
        expected = (
            "own: frame 7 is torn"
            if rank == bad
            else f"peer: opening the data: rank {bad} failed: frame 7 is torn"
        )
        assert text == expected


def test_a_dead_and_a_sleeping_rank_are_named(tmp_path: Path) -> None:
    """A rank that vanishes must not leave the caller waiting."""
    outcomes: list[RankOutcome] = spawn_ranks(dies, 2, (1, str(tmp_path / "ready")), check=False)
    assert outcomes[0].value == 0
    assert outcomes[1].error is not None
    assert "exit code 7" in outcomes[1].error
    began = time.monotonic()
    with pytest.raises(UTNetError, match="rank 0 of 2 failed: did not end in time"):
        spawn_ranks(sleeps, 2, timeout_s=4.0)
    assert time.monotonic() - began < 30


def test_asking_for_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """runtime.device=cuda on a machine without a GPU says so instead of running for days on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"need a GPU each, found 0.*runtime\.device=cpu"):
        setup_distributed("cuda")
    context = setup_distributed("auto")
    assert (context.device.type, context.world, context.devices_label) == ("cpu", 1, "CPU ranks")
