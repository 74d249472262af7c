"""Batches, network, loss and optimiser step on a GPU that is not there: nothing stays behind on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from dataloader.crop.prepare import prepare
from src.config import LossConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.models.vit import PRESETS
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, Prediction
from src.training.step import TrainStep
from tests.fake_gpu import GPU, fake_gpu, network
from tests.training.test_step import raw
from tests.waits import Waits


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """As runs are by default; some kernels have another form then."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def on_gpu(seed: int) -> HandBatch:
    """A batch as loader and device make it: one block of page-locked memory, copied beside the work."""
    with unset_fake_temporarily():  # what it is made with is kept for other tests
        parcel = raw(seed).pack(shared=False)
    return prepare(parcel.pin_memory().unpack(GPU))


def test_the_fake_gpu_is_as_strict_as_a_real_one() -> None:
    """A mode that lets everything through would pass a network whose buffers were left behind."""
    with fake_gpu():
        there = torch.ones(3, device=GPU)
        with pytest.raises(RuntimeError, match=r"device|cuda"):
            there + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with Waits("cuda") as waits:
            there.cpu(), torch.ones(3).to(GPU), torch.tensor([1.0, 2.0], device=GPU)
            torch.ones(3).to(GPU, non_blocking=True), torch.empty(3).copy_(there, non_blocking=True)
    places = {line.partition(" at ")[0] for line in waits.seen}
    assert "aten._to_copy.default to the host" in places
    assert "aten._to_copy.default from the host" in places
    assert "torch.tensor(numbers, device=...)" in places
    assert "aten.copy_.default to the host" in places
    with fake_gpu(), Waits("cuda") as waits:
        torch.ones(3).pin_memory().to(GPU, non_blocking=True)
        torch.tensor([1], pin_memory=True).to(GPU, non_blocking=True)
        torch.empty(3, pin_memory=True).copy_(torch.ones(3, device=GPU), non_blocking=True)
    assert waits.seen == []


MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"drop_path": 0.5},
    "small": {"refine_iterations": 2},
    "base": {},
    "large": {"refine_iterations": 0},
    "huge": {"drop_path": 0.3},
}
"""Each preset with options that the others have not."""


def judged(model: UTNet, loss: HandLoss) -> tuple[Prediction, list[Tensor]]:
    """What a training batch, and a validation batch without depth, give."""
    batch = on_gpu(0)
    prediction = model.train()(batch)
    found = [loss(prediction, batch).total, batch.to_image_camera(prediction.hand.joints_cam_m)]
    hidden = batch.without_depth()
    with torch.no_grad():
        found.append(loss.per_sample(model.eval()(hidden), hidden))
    target = model.decoder.mano(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    return prediction, [*found, target.vertices_m]


@pytest.mark.parametrize("preset", list(MODELS))
def test_every_preset_runs_on_a_gpu_and_never_waits(preset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that stays on the CPU, or a value that is asked for, ends the first step of a paid machine."""
    # Blocks are all alike.
    monkeypatch.setitem(PRESETS, preset, dataclasses.replace(PRESETS[preset], depth=2))
    config = ModelConfig(preset=preset, image_size=(64, 64), **MODELS[preset])
    with fake_gpu():
        hand, model = network(config)
        loss = HandLoss(LossConfig(), hand).to(GPU)
        with Waits("cuda") as waits:
            prediction, found = judged(model, loss)
    assert waits.seen == []
    assert {tensor.device for tensor in (*tree_leaves(prediction), *found)} == {GPU}


def test_a_whole_step_on_a_gpu_reads_the_step_before() -> None:
    """All but the backward pass: clipping, checks, both optimisers, average. The host may wait for one thing:
    that the numbers of the step before have arrived, once this step's work is in the queue.
    """
    config = RunConfig(
        model=ModelConfig(preset="tiny", image_size=(64, 64)),
        optimizer=OptimizerConfig(name="muon"),
        training=TrainingConfig(ema_decay=0.9),
    )
    with fake_gpu() as gpu:
        hand, model = network(config.model)
        loss = HandLoss(config.loss, hand).to(GPU)
        step = TrainStep(model, loss, config, DistContext(0, 1, 0, GPU, None), total_steps=10)

        def backward(total: Tensor) -> None:
            assert total.device == GPU
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        with mock.patch.object(torch.Tensor, "backward", backward), Waits("cuda") as waits:
            for _ in range(2):
                step([on_gpu(0)])
            assert [report.step for report in step.settled()] == [0]
            assert step.unsettled == 1
            averages = [] if step.ema is None else list(step.ema.state_dict()["average"].values())
            moments = step.optimizer.state_dict()
    assert waits.seen == []
    assert step.lag == 1
    assert gpu.done == ["event 1 on main", "event 2 on main", "host waits for event 1"]
    assert step.optimizer.adamw.param_groups[0]["fused"]
    kept = [m for state in moments.values() if state for of in state.values() for m in of.values()]
    assert {tensor.device for tensor in (*averages, *kept)} == {GPU}
