"""Which samples make a batch, on which rank: pure functions of seed, epoch, rank and world size.

Validation: fixed global batches dealt to ranks in turn, so the composition of a batch is the same for any
number of ranks. Training: one permutation per epoch, cut into global micro-batches. Nothing here touches a
global RNG.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from src.errors import ConfigError
from src.runtime.seed import stream


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What a loader process is asked for: the row of the split, and the epoch whose random draws it takes."""

    index: int
    epoch: int = 0


def validation_batches(num_samples: int, batch_size: int, rank: int, world: int) -> list[range]:
    """Rank's share of the fixed global batches: batch b holds samples [b * batch_size, (b + 1) * batch_size).

    Rank r takes batches r, r + world, r + 2 world, ... The last batch may be short, a rank may have none;
    nothing is padded, so every sample is in exactly one batch of one rank.

    Args:
        num_samples: N >= 0.
        batch_size: samples of a global batch, >= 1.
        rank: 0 <= rank < world.
        world: number of ranks.
    """
    starts = range(rank * batch_size, num_samples, world * batch_size)
    return [range(start, min(start + batch_size, num_samples)) for start in starts]


class TrainSampler(Sampler[list[SampleKey]]):
    """Batch sampler of one rank's training micro-batches.

    An epoch is one permutation drawn from (seed, epoch), cut into micro-batches of `batch_size`. With
    accumulation A and W ranks, optimiser step s consumes micro-batches s W A ... (s + 1) W A - 1, and rank r
    runs micro-batch s W A + a W + r as its a-th: all ranks do the same number of passes, a sample is seen at
    most once per epoch, and what does not fill a last step is left out (another part in each epoch).

    Args:
        num_samples: N of the training split.
        batch_size: samples of one forward pass on one rank.
        rank: 0 <= rank < world.
        world: number of ranks W.
        seed: the run's seed.
        accumulation: forward passes of one optimiser step A.
        max_steps: optimiser steps after which an epoch ends, or None.

    Raises:
        ConfigError: fewer samples than one optimiser step consumes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int,
        world: int,
        *,
        seed: int,
        accumulation: int = 1,
        max_steps: int | None = None,
    ) -> None:
        per_step = batch_size * world * accumulation
        if num_samples < per_step:
            raise ConfigError(
                f"training split has {num_samples:,} samples but one optimiser step consumes {per_step:,} "
                f"(batch_size {batch_size} x {world} ranks x accumulation {accumulation}). "
                "Lower training.batch_size or training.accumulation."
            )
        self.num_samples, self.batch_size, self.accumulation = num_samples, batch_size, accumulation
        self.rank, self.world, self.seed = rank, world, seed
        steps = num_samples // per_step
        self.steps_per_epoch = steps if max_steps is None else min(steps, max_steps)
        self.epoch, self.start_step = 0, 0

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration, and the optimiser step it starts from, after a resume.

        Raises:
            ConfigError: start_step is not inside the epoch (it may equal its length: nothing is left).
        """
        if start_step > self.steps_per_epoch:
            raise ConfigError(
                f"training sampler: start_step={start_step}, but an epoch has {self.steps_per_epoch} steps"
            )
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, start = self.epoch, self.start_step  # bound now: set_epoch affects the next iteration only
        order = stream(self.seed, "shuffle", epoch).permutation(self.num_samples)
        first, last = (step * self.accumulation for step in (start, self.steps_per_epoch))
        starts = range(
            (first * self.world + self.rank) * self.batch_size,
            last * self.world * self.batch_size,
            self.world * self.batch_size,
        )
        return ([SampleKey(int(row), epoch) for row in order[s : s + self.batch_size]] for s in starts)

    def __len__(self) -> int:
        """Micro-batches that the next iteration yields."""
        return (self.steps_per_epoch - self.start_step) * self.accumulation
