"""The one line with which a command ends that could not go on."""

from __future__ import annotations

import torch.distributed as dist

from src.errors import CollectError, ConfigError, PeerError, TrainingError
from src.runtime.ranks.launch import rank_from_environment


def complaint(error: Exception) -> str | None:
    """What this rank has to say about what ended the run.

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
