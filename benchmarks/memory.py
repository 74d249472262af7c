"""Memory of a training sample by preset: what its forward pass keeps for the backward pass.

On a GPU the peak above the weights, their gradients and moments, per sample of the batch. On a CPU the
bytes of the tensors that autograd saves, each storage once and without parameters: what a GPU would hold at
the turn from forward to backward. Large and huge also with activation checkpointing.

    python -m benchmarks memory [preset ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.common import Row, report
from benchmarks.scene import Scene, alone, device, scene
from src.schema import HandBatch
from src.training.step import TrainStep

PRESETS = ("tiny", "small", "base", "large", "huge")
DEEP = ("large", "huge")
SMALL, LARGE = 1, 2
"""Batches; their difference is what a sample takes."""


def _saved_bytes(step: TrainStep, batch: HandBatch) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in step.model.buffers()}
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no storage is freed and its place taken by the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = step.loss(step.model(batch), batch)
    assert terms.total.requires_grad
    return sum(held.values())


def _peak_bytes(step: TrainStep, batch: HandBatch) -> int:
    """Peak of a whole step on a GPU."""
    step([batch])  # moments
    torch.cuda.reset_peak_memory_stats(batch.rgb.device)
    step([batch])
    step.settled(everything=True)
    return int(torch.cuda.max_memory_allocated(batch.rgb.device))


def _row(made: Scene, preset: str, *, recompute: bool, where: torch.device, reference: float | None) -> Row:
    """One preset."""
    step = made.trainer(alone(where), preset=preset, activation_checkpointing=recompute)
    step.model.train()
    count = sum(p.numel() for p in step.model.parameters())
    measure = _peak_bytes if where.type == "cuda" else _saved_bytes
    small, large = (measure(step, made.batch(size, where)) for size in (SMALL, LARGE))
    mib = (large - small) / (LARGE - SMALL) / 2**20
    name = f"{preset}, recomputed" if recompute else preset
    return Row(
        f"{name} ({count / 1e6:.1f} M parameters), a sample: {mib:.0f}",
        "as it is" if reference is None else f"not recomputed: {reference:.0f}",
        1.0 if reference is None else reference / mib,
        "MiB",
    )


def main(argv: Sequence[str] = ()) -> None:
    """All presets, or those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("presets", nargs="*", help=f"of {', '.join(PRESETS)}; none: all")
    names = parser.parse_args(argv).presets or PRESETS
    torch.set_num_threads(1)
    where = device()
    rows = []
    with scene(sequences=1, frames=4) as made:
        for preset in names:
            plain = _row(made, preset, recompute=False, where=where, reference=None)
            rows.append(plain)
            if preset in DEEP:
                mib = float(plain.what.rpartition(": ")[2])
                rows.append(_row(made, preset, recompute=True, where=where, reference=mib))
    report("memory", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
