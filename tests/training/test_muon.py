"""Muon gives the steps that it is known for, in any arithmetic and on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.runtime.machine import cpu_flags, has_bf16
from src.training.muon import Muon, Share, orthogonal, orthogonalised

SHAPES = ((3, 3), (16, 48), (48, 16), (24, 200), (1, 8))


def matrix(shape: tuple[int, int], seed: int, *, smallest: float = 1.0) -> Tensor:
    """Random, its singular values falling from 1 to `smallest` where that is below 1."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if smallest == 1.0:
        return drawn
    u, s, v = torch.linalg.svd(drawn, full_matrices=False)
    return u @ torch.diag(torch.logspace(0, torch.tensor(smallest).log10(), len(s))) @ v


def by_the_book(x: Tensor) -> Tensor:
    """Five steps of the quintic of Jordan et al. 2024, as it is written down, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.double() / x.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smallest", [1.0, 1e-7])
def test_the_short_way_gives_the_matrix_of_the_long_one(shape: tuple[int, int], smallest: float) -> None:
    """Working on X X^T loses digits; lost in small singular values, they would turn steps into noise."""
    x = matrix(shape, 1, smallest=smallest)
    got, want = orthogonalised(x), by_the_book(x)
    assert (got - want).norm() < 1e-3 * want.norm()
    if smallest == 1.0:
        sizes = torch.linalg.svdvals(got)
        assert sizes.max() < 1.25
        assert sizes.min() > 0.6


def test_no_gradient_is_no_step() -> None:
    """0 / 0 would make every weight of the matrix nan."""
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_the_library(dtype: torch.dtype) -> None:
    """Rates found with torch's Muon and other machines' arithmetic must keep their meaning."""
    ours, theirs = ([nn.Parameter(matrix(s, k)) for k, s in enumerate(SHAPES)] for _ in range(2))
    mine = Muon([{"params": ours, "lr": 1e-2, "weight_decay": 0.3}], momentum=0.95, dtype=dtype)
    library = torch.optim.Muon(theirs, 1e-2, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = b.grad = matrix(SHAPES[k], 10 * step + k)
        mine.step()
        library.step()  # type: ignore[no-untyped-call]
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        moved = b.detach() - matrix(SHAPES[k], k)
        assert (a.detach() - b.detach()).norm() < 0.02 * moved.norm(), SHAPES[k]


@pytest.mark.parametrize("world", [2, 3, 9])
def test_ranks_share_the_work_and_get_the_same_bits(world: int) -> None:
    """Weights that differ between ranks in the last bit drift apart, and no collective notices."""
    matrices = [matrix(s, k) for k, s in enumerate(SHAPES * 2)]
    sent: list[Tensor] = []
    for rank in range(world):
        orthogonal(matrices, share=Share(rank, world, lambda t: sent.append(t.clone())))
    total = torch.stack(sent).sum(0)
    alone = orthogonal(matrices)
    parts = total.split([m.numel() for m in matrices])
    assert all(torch.equal(p.view_as(m), m) for p, m in zip(parts, alone, strict=True))
    written = torch.stack([flat != 0 for flat in sent]).sum(0)
    assert written.max() == 1, "two ranks did the same matrix"
    if world == 2:
        costs = [
            sum(
                min(m.shape) ** 2 * max(m.shape)
                for m, p in zip(matrices, flat.split([m.numel() for m in matrices]), strict=True)
                if p.any()
            )
            for flat in sent
        ]
        assert max(costs) < 1.5 * min(costs), "one rank waits for the other"


def test_only_matrices_are_taken() -> None:
    """A kernel of four axes would be orthogonalised along axes that mean nothing."""
    with pytest.raises(ValueError, match=r"got a parameter of shape \(2, 3, 3\), want a matrix"):
        Muon([{"params": [nn.Parameter(torch.zeros(2, 3, 3))]}], momentum=0.95)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs : bf16\n", False),
        (None, False),
    ],
)
def test_bf16_is_used_where_the_processor_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, found: bool
) -> None:
    """Emulated, it made a training step on a plain machine ten times as long."""
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    flags = cpu_flags(tmp_path / "cpuinfo")
    monkeypatch.setattr("src.runtime.machine.cpu_flags", lambda: flags)
    assert has_bf16(torch.device("cpu")) is found
