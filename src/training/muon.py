"""Muon: steps of equal size in all directions of a matrix, its work shared out over the ranks.

The averaged gradient of each matrix is replaced by the nearest matrix of orthonormal rows, found by a few
Newton-Schulz steps. torch.optim.Muon does the same in bfloat16 alone, which a processor without bfloat16
arithmetic emulates at a thirtieth of its speed, on every rank for every matrix.

Legend: R rows, C columns of a matrix.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 (Jordan et al. 2024): steep at 0, then between 0.7 and 1.2."""

NEWTON_SCHULZ_STEPS = 5
ADAMW_RMS = 0.2
"""Root mean square of AdamW's usual steps in units of the rate (Liu et al. 2025)."""
_LOW_SIDE = 128
"""Matrices with a shorter side stay in float32: copying them to bfloat16 takes longer than the products."""
_TINY = 1e-7


@dataclass(frozen=True)
class Share:
    """This rank's part of the work."""

    rank: int
    """0 .. world - 1."""
    world: int
    """Ranks that hold the same gradients."""
    add_up: Callable[[Tensor], object]
    """Sums a tensor over the ranks, in place."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with steps of AdamW's size (Liu et al. 2025) and Nesterov momentum.

    Args:
        params: groups of matrices (R, C), float32; the keys `lr` and `weight_decay` may be a group's own.
        momentum: decay of the averaged gradient.
        dtype: arithmetic of the Newton-Schulz steps; bfloat16 is enough where the device computes it.
        share: the ranks among which the matrices are dealt out; None: this process does all. Every rank must
            hold the same gradients, and each gets the same steps to the last bit.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        momentum: float,
        dtype: torch.dtype = torch.float32,
        share: Share | None = None,
    ) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum = momentum
        self.dtype = dtype
        self.share = share
        for parameter in parameters_of(self):
            if parameter.ndim != 2:
                raise ValueError(f"Muon: got a parameter of shape {tuple(parameter.shape)}, want a matrix")

    @torch.no_grad()
    def step(self, closure: None = None, *, alive: Tensor | None = None) -> None:  # type: ignore[override]
        """Change every matrix by its gradient; matrices without one stay.

        Args:
            closure: not used; torch's optimisers have it.
            alive: () on the device, 1 or 0; at 0 no matrix changes, whatever its gradient is. None: 1.
        """
        moving = [p for p in parameters_of(self) if p.grad is not None]
        wanted = [self._averaged(p) for p in moving]
        updates = orthogonal(wanted, self.dtype, self.share)
        rates = {p: (g["lr"], g["weight_decay"]) for g in self.param_groups for p in g["params"]}
        for parameter, update in zip(moving, updates, strict=True):
            rate, decay = rates[parameter]
            size = rate * ADAMW_RMS * math.sqrt(max(parameter.shape))
            if alive is None:
                parameter.mul_(1 - rate * decay).add_(update, alpha=-size)
            else:
                moved = (parameter * (1 - rate * decay)).add_(update, alpha=-size)
                parameter.copy_(torch.where(alive > 0, moved, parameter))

    def _averaged(self, parameter: Tensor) -> Tensor:
        """(R, C) gradient with Nesterov momentum; the average moves on."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All of an optimiser's, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def orthogonal(
    matrices: Sequence[Tensor], dtype: torch.dtype = torch.float32, share: Share | None = None
) -> list[Tensor]:
    """`orthogonalised` for each matrix, the work dealt out among the ranks.

    Args:
        matrices: (R, C) each, the same on every rank.
        dtype: of the arithmetic.
        share: the ranks; None: this process does all.

    Returns:
        float32, one per matrix, the same on every rank to the last bit.
    """
    if share is None or share.world == 1 or not matrices:
        return [orthogonalised(m, dtype).float() for m in matrices]
    owners = _deal([_work(m) for m in matrices], share.world)
    # Each place is written by one rank and zero on the others: their sum is exact.
    flat = torch.zeros(sum(m.numel() for m in matrices), device=matrices[0].device)
    parts = [
        p.view_as(m) for p, m in zip(torch.split(flat, [m.numel() for m in matrices]), matrices, strict=True)
    ]
    for matrix, part, owner in zip(matrices, parts, owners, strict=True):
        if owner == share.rank:
            part.copy_(orthogonalised(matrix, dtype))
    share.add_up(flat)
    return parts


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearly the orthonormal factor U V^T of a matrix U S V^T.

    Singular values above a 200th of the norm come out between 0.7 and 1.2, smaller ones grow 485 times. In
    float32 the steps run on the small square X X^T, whose powers are all that they need: a matrix four
    times as long as it is high takes half the products. bfloat16 has too few digits for that.

    Args:
        matrix: (R, C).
        dtype: of the arithmetic of large matrices; float32 for those with a side below _LOW_SIDE.

    Returns:
        (R, C) of that type; zeros for zeros.
    """
    if min(matrix.shape) < _LOW_SIDE:
        dtype = torch.float32
    a, b, c = COEFFICIENTS
    high = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if high else matrix).to(dtype)
    x = x / x.norm().clamp_min(_TINY)
    square = x @ x.T
    if dtype == torch.float32 and matrix.shape[0] != matrix.shape[1]:
        eye = torch.eye(len(x), device=x.device)
        factor = eye
        for k in range(NEWTON_SCHULZ_STEPS):
            change = torch.addmm(square, square, square, beta=b, alpha=c).add_(eye, alpha=a)
            factor = change @ factor if k else change
            if k < NEWTON_SCHULZ_STEPS - 1:
                square = change @ square @ change
        x = factor @ x
    else:
        for k in range(NEWTON_SCHULZ_STEPS):
            square = x @ x.T if k else square
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if high else x


def _work(matrix: Tensor) -> int:
    """Multiplications of `orthogonalised`, near enough to deal them out evenly."""
    low, high = sorted(matrix.shape)
    return low * low * (2 * high + 4 * NEWTON_SCHULZ_STEPS * low)


def _deal(work: Sequence[int], world: int) -> list[int]:
    """Owner of each item: the largest first, each to whoever has least."""
    loads = [(0, rank) for rank in range(world)]
    owners = [0] * len(work)
    for k in sorted(range(len(work)), key=lambda k: (-work[k], k)):
        load, rank = heapq.heappop(loads)
        owners[k] = rank
        heapq.heappush(loads, (load + work[k], rank))
    return owners
