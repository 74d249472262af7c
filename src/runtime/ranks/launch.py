"""How this process was started: by torchrun, or alone; and what ties it to its parent."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from src.runtime.ranks.parent import AGENT, Agent

import torch.distributed as dist

from src.errors import CollectError, ConfigError, PeerError, TrainingError
from src.runtime.files.unfinished import remove_unfinished

_COPIES = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "SLURM_NTASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
"""Where other launchers say how many copies they started, and which of them this is."""
_LOOK_S = 0.5
_REACH_S = 300.0
"""Longest wait for the other ranks when a group begins: torchrun starts them at the same time."""


@dataclass(frozen=True)
class Place:
    """This process among those that torchrun started; alone without it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launched: bool = False
    """Whether there is a torchrun, or what sets the same names."""


def place_from_environment() -> Place:
    """What torchrun says in the environment.

    Raises:
        ConfigError: it is incomplete, no number, or another launcher started several copies without torchrun.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE") if not os.environ.get(name)]
    if len(missing) == 1:
        (other,) = {"RANK", "WORLD_SIZE"} - set(missing)
        raise ConfigError(
            f"the environment has {other}={os.environ[other]!r} and no {missing[0]}: torchrun sets both. "
            f"Start with torchrun, or, for one process, unset {other}"
        )
    if missing:
        _require_one_copy()
        return Place()
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    place = Place(rank, world, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", world), launched=True)
    if not 0 <= rank < world:
        raise ConfigError(f"the environment has RANK={rank} of WORLD_SIZE={world}: want 0 to {world - 1}")
    lost = [name for name in ("MASTER_ADDR", "MASTER_PORT") if world > 1 and not os.environ.get(name)]
    if lost:
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} and no {' and no '.join(lost)}: the ranks cannot find "
            "one another. Start with torchrun, or, for one process, unset RANK and WORLD_SIZE"
        )
    if world > 1 and not 0 <= _number("MASTER_PORT") < 1 << 16:
        raise ConfigError(f"the environment has MASTER_PORT={os.environ['MASTER_PORT']}: want 0 to 65535")
    return place


def rank_from_environment() -> int:
    """Rank of this process before anything was checked; 0 without torchrun, or where it is no number."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def complaint(error: Exception) -> str | None:
    """The one line with which this rank ends a run that could not go on.

    An error that all ranks share is said by rank 0 alone, one rank's own by that rank.

    Args:
        error: of ours, of the system, or a RuntimeError of torch that means a lost rank.

    Returns:
        None where another rank says it.
    """
    rank = rank_from_environment()
    if isinstance(error, PeerError):
        return None  # the rank that failed has said why
    if isinstance(error, RuntimeError):
        first = str(error).splitlines()[0]
        text = f"rank {rank} lost another rank ({first}). Its own line says why, if it had time"
    else:
        text = f"{type(error).__name__}: {error}"
    alone = dist.is_initialized() and not isinstance(error, CollectError | TrainingError | ConfigError)
    return text if rank == 0 or alone else None


def reach_ranks(place: Place, timeout_s: float) -> dist.Store:  # type: ignore[name-defined]  # not typed
    """The store through which the ranks of this start find one another.

    On one machine torchrun keeps its store when it starts a group again, and with it the addresses of ranks
    that are gone: each start gets names of its own. (Several machines count their starts each for itself,
    and torchrun makes a new store for them.)

    Args:
        place: of this process.
        timeout_s: longest wait for the others; at most `_REACH_S`.
    """
    wait = timedelta(seconds=min(timeout_s, _REACH_S))
    meeting = dist.rendezvous  # type: ignore[attr-defined]  # exported, but not typed
    try:
        store, _, _ = next(meeting("env://", place.rank, place.world, timeout=wait))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"rank {place.rank} of {place.world} did not meet the others at {where} in {wait.seconds} s "
            f"({first}). Look at MASTER_ADDR and MASTER_PORT, and whether all ranks were started"
        ) from error
    if place.local_world != place.world:
        return store
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"utnet-start-{start}", store)  # type: ignore[attr-defined]


def starts_again() -> bool:
    """Whether torchrun would start the run again if this process left with a status other than 0."""
    counts = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    most, now = (int(count) if count.isdecimal() else 0 for count in counts)
    return now < most


def end_with_parent() -> None:
    """From now on this process ends, with its helpers, within a second or two after torchrun did.

    A torchrun that was killed tells nobody: its ranks would go on alone, hold their GPUs, and share the run's
    folder with those that are started in their place.
    """
    if AGENT is not None:
        threading.Thread(target=_follow, args=(AGENT,), name="parent", daemon=True).start()


def _follow(agent: Agent) -> None:
    while agent.lives():
        time.sleep(_LOOK_S)
    for child in multiprocessing.active_children():
        child.kill()
    remove_unfinished()
    text = f"[rank {rank_from_environment()}] torchrun (process {agent.pid}) is gone: this rank ends too.\n"
    sys.stderr.write(text)
    os._exit(2)


def _require_one_copy() -> None:
    for count, number in _COPIES.items():
        text = os.environ.get(count, "")
        if text.isdecimal() and int(text) > 1 and os.environ.get(number):
            raise ConfigError(
                f"{text} copies were started ({count}={text}) without torchrun: each would be a run of its "
                "own. Start torchrun once on each machine (srun --ntasks-per-node=1 torchrun ...). If this "
                f"is the only copy, unset {count}"
            )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name) or ("" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"the environment has {name}={text!r}, which is no number: torchrun sets it. Start with "
            "torchrun, or unset it"
        ) from None
