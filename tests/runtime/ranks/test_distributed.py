"""Ranks: they agree, they name who failed, and nothing waits for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import ConfigError, DataError, PeerError, UTNetError
from src.runtime.ranks import distributed
from src.runtime.ranks.distributed import DistContext, setup_distributed, spawn_ranks


def fails(context: DistContext, bad: int) -> str:
    """What a rank hears when the work of one of them fails."""

    def work() -> None:
        if context.rank == bad:
            raise DataError("frame 7 is torn")

    try:
        context.together("opening the data", work, main_first=True)
    except (PeerError, DataError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def agree(context: DistContext) -> tuple[Any, ...]:
    """What the helpers give on a rank."""
    values = context.gather_objects(context.rank * 2), context.broadcast_object(f"from {context.rank}")
    return *values, fails(context, 0), fails(context, 2)


def returns_early(context: DistContext, folder: str) -> int:
    """Rank 1 returns at once; rank 0 looks a while later whether its process is still there."""
    if context.rank == 1:
        (Path(folder) / str(os.getpid())).touch()
        return 1
    while not (found := list(Path(folder).iterdir())):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(int(found[0].name), 0)  # raises if that process has left
    return 0


def fails_beside_a_sleeper(context: DistContext) -> None:
    if context.rank == 1:
        raise DataError("frame 7 is torn")
    time.sleep(60)


def test_a_rank_that_is_done_waits_for_the_others(tmp_path: Path) -> None:
    """Whoever still talks to it must not lose it in the middle of a message."""
    assert spawn_ranks(returns_early, 2, (str(tmp_path),), 60.0) == [0, 1]


def test_after_a_failure_the_others_have_a_grace() -> None:
    """A proof of a stalled rank must end although that rank does not; it would end by itself in a minute."""
    with pytest.raises(UTNetError) as caught:
        spawn_ranks(fails_beside_a_sleeper, 2, timeout_s=600.0, grace_s=0.2)
    first, second = str(caught.value).splitlines()
    assert first == "rank 0 of 2 failed: did not end in time and was stopped"
    assert "Traceback" in second
    assert "DataError: frame 7 is torn" in second


def test_helpers_agree_on_every_rank() -> None:
    """Decisions taken from these values must be the same everywhere; one rank's torn frame ends all ranks,
    with one message and not a hang.
    """
    own, peer = "DataError: frame 7 is torn", "PeerError: opening the data: rank {} failed: frame 7 is torn"
    alone = DistContext(0, 1, 0, torch.device("cpu"), None)
    assert agree(alone) == ([0], "from 0", own, "nothing")
    same = [0, 2, 4], "from 0"
    assert spawn_ranks(agree, 3) == [
        (*same, own, peer.format(2)),
        (*same, peer.format(0), peer.format(2)),
        (*same, peer.format(0), own),
    ]


def test_asking_for_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """runtime.device=cuda on a machine without a GPU says so instead of running for days on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"need a GPU each, found 0.*runtime\.device=cpu"):
        setup_distributed("cuda")
    context = setup_distributed("auto")
    assert (context.device.type, context.world, context.devices_label) == ("cpu", 1, "CPU ranks")


@pytest.mark.parametrize(
    ("asked", "gpus", "ranks", "kinds"),
    [
        ("auto", 4, 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", 1, 4, ["cpu"] * 4),  # one for some is one for none: ranks of two kinds cannot talk
        ("cpu", 4, 2, ["cpu"] * 2),
    ],
)
def test_every_rank_of_a_machine_has_a_gpu_or_none_has(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, ranks: int, kinds: list[str]
) -> None:
    """runtime.device=auto decides for all ranks of a machine alike, and no two share a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [str(distributed._choose_device(asked, rank, ranks)) for rank in range(ranks)] == kinds
