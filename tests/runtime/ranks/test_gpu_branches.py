"""What only a GPU does, tried without one (see also tests/training/test_waits.py)."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src.config import RunConfig
from src.runtime.machine import has_bf16
from src.runtime.ranks import distributed
from src.runtime.ranks.distributed import DistContext, setup_distributed
from src.runtime.ranks.launch import Place
from src.training import step
from src.training.checkpoints import checkpoint
from src.training.recorder import Recorder
from tests.fake_gpu import GPU
from tests.models.scene import hand_model


def test_bf16_is_asked_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that emulates bf16 is slower in it than in float32."""
    for native in (True, False):
        monkeypatch.setattr(  # every card emulates it
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, n=native: n or including_emulation,
        )
        assert has_bf16(GPU) is native


@pytest.mark.parametrize(("gpus", "want"), [(4, "cuda:2"), (2, "cpu")])
def test_ranks_of_gpus_talk_through_nccl(gpus: int, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank its own card, gradients over NCCL with the run's limit; too few cards: all on the CPU."""
    place = Place(rank=6, world=8, local_rank=2, local_world=4, launched=True)
    monkeypatch.setattr(distributed, "place_from_environment", lambda: place)
    monkeypatch.setattr(distributed, "reach_ranks", lambda place, timeout_s: ("store", timeout_s))
    done: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *a, **k: done.append((a, k)))
    monkeypatch.setattr(distributed, "_gloo_group", lambda timeout_s: ("gloo", timeout_s))
    monkeypatch.setattr(distributed, "Meetings", lambda group, timeout_s: (group, timeout_s))
    context = setup_distributed(timeout_s=7.0)
    assert (context.rank, context.world, context.local_rank) == (6, 8, 2)
    assert context.device == torch.device(want)
    assert (context.side_group, context.meetings) == (("gloo", 7.0), (("gloo", 7.0), 7.0))
    ranks = {"store": ("store", 7.0), "rank": 6, "world_size": 8, "timeout": timedelta(seconds=7.0)}
    if want == "cpu":
        assert done == [(("gloo",), ranks)]
        assert context.devices_label == "CPU ranks"
    else:
        assert done == [context.device, (("nccl",), {**ranks, "device_id": context.device})]
        assert context.devices_label == "GPUs"


def test_ranks_of_gpus_exchange_gradients_on_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP that is not told its card takes the first one, for all ranks of the machine."""
    told: list[dict[str, Any]] = []

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module, device_ids: Any, **options: Any) -> None:
            super().__init__()
            told.append({"device_ids": device_ids, **options})

    monkeypatch.setattr(step, "DistributedDataParallel", Wrapper)
    for device in (torch.device("cuda", 3), torch.device("cpu")):
        step.wrap_for_ranks(nn.Linear(1, 1), DistContext(3, 4, 3, device, None), accumulation=1)
    assert [options["device_ids"] for options in told] == [[3], None]


def test_a_gpus_random_numbers_travel_in_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run must drop what the uninterrupted one drops, on a GPU too; a CPU takes its file."""
    drawn, put = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: drawn if device == GPU else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((state, device)))
    before = torch.get_rng_state()
    state = checkpoint._rng_state(GPU)
    torch.rand(3)
    checkpoint._set_rng_state(state, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert put == []
    checkpoint._set_rng_state(state, GPU)
    assert put == [(drawn, GPU)]
    checkpoint._set_rng_state(checkpoint._rng_state(torch.device("cpu")), GPU)
    assert len(put) == 1


def test_the_gpu_is_named_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds of two runs are compared only by who knows what they ran on."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    Recorder(tmp_path, DistContext(0, 1, 0, GPU, None)).write_setup(RunConfig(), hand_model(), {})
    assert json.loads((tmp_path / "meta.json").read_text())["device"] == "card 0"
