"""Every branch that only a GPU takes, and the test that takes it without one."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src.config import LoggingConfig, RunConfig
from src.runtime.machine import has_bf16
from src.runtime.ranks import distributed
from src.runtime.ranks.distributed import DistContext, setup_distributed
from src.runtime.ranks.launch import Place
from src.training import step
from src.training.checkpoints import checkpoint
from src.training.recorder import Recorder
from tests.fake_gpu import GPU
from tests.models.scene import hand_model
from tests.rooms.sources import ROOT, source_files, tree

BRANCH = re.compile(r"""is_cuda|device\.type [!=]=|["']cuda["']|["']nccl["']|torch\.cuda\.|pin_memory""")

FAKE, LOADER = "tests/training/test_fake_gpu.py::", "tests/dataloader/batches/test_gpu_loader.py::"
HERE, PROOF = "tests/runtime/test_gpu_branches.py::", "tests/evaluation/test_proof.py::"
STEP = FAKE + "test_a_whole_step_on_a_gpu_reads_the_step_before"
KERNELS = FAKE + "test_kernels_of_a_gpu_are_the_ones_that_run"
PRESETS = FAKE + "test_every_preset_runs_on_a_gpu_and_never_waits"
READY = LOADER + "test_batches_are_made_ahead_and_handed_over_in_order"
LOADERS = LOADER + "test_loaders_of_a_gpu_pin_and_do_not_fork"
LABELS = LOADER + "test_labels_are_read_with_a_hand_on_the_cpu"
GROUP = HERE + "test_ranks_of_gpus_talk_through_nccl"
RNG = HERE + "test_a_gpus_random_numbers_travel_in_checkpoints"
REACHED = {
    "dataloader/build.py build_splits": LABELS,
    "dataloader/batches/loader.py __iter__": READY,
    "dataloader/batches/loader.py _one_ahead": READY,
    "dataloader/batches/loader.py following": READY,
    "dataloader/batches/loader.py __init__": LOADERS,
    "dataloader/batches/loader.py _context": LOADERS,
    "src/schema.py pin_memory": READY,
    "src/models/gcn.py forward": KERNELS,
    "src/models/vertex_sampling.py sample_map": KERNELS,
    "src/models/vit.py forward": KERNELS,
    "src/models/vit.py _with_branch": PRESETS,
    "src/runtime/ranks/distributed.py devices_label": GROUP,
    "src/runtime/ranks/distributed.py setup_distributed": GROUP,
    "src/runtime/ranks/distributed.py _choose_device": GROUP,
    "src/runtime/machine.py has_bf16": HERE + "test_bf16_is_asked_of_the_gpu",
    "src/tools/export_submission.py open_evaluation": LABELS,
    "src/training/checkpoints/checkpoint.py _rng_state": RNG,
    "src/training/checkpoints/checkpoint.py _set_rng_state": RNG,
    "src/training/optim.py __init__": STEP,
    "src/training/recorder.py write_setup": HERE + "test_the_gpu_is_named_in_the_run_folder",
    "src/training/step.py __init__": STEP,
    "src/training/step.py wrap_for_ranks": HERE + "test_ranks_of_gpus_exchange_gradients_on_their_own_device",
    "test_distributed_eval.py _parser": PROOF + "test_a_device_that_is_not_there_is_a_wrong_argument",
    "test_distributed_eval.py _parse": PROOF + "test_ranks_of_our_own_are_on_the_cpu_and_say_so",
}
"""File and function of each branch, and what reaches it."""


def branches() -> Iterator[str]:
    """Files and functions whose code asks for a GPU."""
    for path in source_files():
        name = str(path.relative_to(ROOT))
        if name == "src/config.py":  # names the choices
            continue
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if BRANCH.search(line.partition("  # ")[0]):
                around = [f for f in functions if f.lineno <= number <= (f.end_lineno or 0)]
                yield f"{name} {max(around, key=lambda f: f.lineno).name if around else 'module'}"


def test_every_branch_of_a_gpu_is_reached_without_one() -> None:
    """A branch that no test takes is tried first by whoever has paid for four GPUs."""
    found = set(branches())
    assert found - REACHED.keys() == set(), "a GPU's branch that no test is named for"
    assert REACHED.keys() - found == set(), "no longer a GPU's branch"
    for place in REACHED.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), place


def test_bf16_is_asked_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that emulates bf16 is slower in it than in float32."""
    for native in (True, False):
        monkeypatch.setattr(  # every card emulates it
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, n=native: n or including_emulation,
        )
        assert has_bf16(GPU) is native


@pytest.mark.parametrize(
    ("gpus", "device", "want"), [(4, "auto", "cuda:2"), (4, "cuda", "cuda:2"), (2, "auto", "cpu")]
)
def test_ranks_of_gpus_talk_through_nccl(
    gpus: int, device: str, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    context = setup_distributed(device, timeout_s=7.0, side_timeout_s=3.0)
    assert (context.rank, context.world, context.local_rank) == (6, 8, 2)
    assert context.device == torch.device(want)
    assert (context.side_group, context.meetings) == (("gloo", 3.0), (("gloo", 7.0), 7.0))
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
    config, context = RunConfig(logging=LoggingConfig(tensorboard=False)), DistContext(0, 1, 0, GPU, None)
    Recorder(tmp_path, config, context).write_setup(config, hand_model(), context, {})
    assert json.loads((tmp_path / "meta.json").read_text())["device"] == "card 0"
