"""Nothing that trains or validates makes a GPU's host wait, and nothing of it stays behind on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

import train
from dataloader.crop.prepare import prepare
from src.config import (
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
    ValidationConfig,
)
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.models.vit import PRESETS
from src.runtime.debug import DebugBatches
from src.runtime.ranks.distributed import DistContext
from src.runtime.signals import StopRequest
from src.schema import HandBatch, Prediction
from src.training.checkpoints.checkpoint import Progress
from src.training.diagnosis import doctor
from src.training.kept_hands import KeptHands
from src.training.mesh_scorer import MeshScorer
from src.training.recorder import Recorder
from src.training.step import TrainStep
from tests.fake_gpu import GPU, fake_gpu, network
from tests.models.scene import hand_model, make_batch, patch_stem
from tests.training.test_step import raw
from tests.training.toy import ALONE
from tests.waits import Waits

TINY = ModelConfig(preset="tiny", image_size=(64, 64))
DRAWN = "src/models/vit.py:_drawn"
"""Which samples keep a branch is drawn on the host, of host numbers."""

NUMBERS = "src/training/step.py:values"
"""Numbers of a step that the device did before the one that it has now: copied beside its work."""


def stepper(model: ModelConfig = TINY, *, lag: int = 9, accumulation: int = 1) -> TrainStep:
    """As on a GPU: what a step did is read `lag` steps later."""
    config = RunConfig(
        model=model,
        optimizer=OptimizerConfig(name="muon"),
        training=TrainingConfig(accumulation=accumulation, ema_decay=0.9, num_epochs=1),
        validation=ValidationConfig(pictures=2),
    )
    torch.manual_seed(0)
    net = UTNet(config.model, hand_model())
    return TrainStep(net, HandLoss(config.loss, hand_model()), config, ALONE, total_steps=10, lag=lag)


ASKS: dict[str, Callable[[Tensor], object]] = {
    "aten._local_scalar_dense": lambda x: bool((x > 0).any()),
    "Tensor.tolist()": lambda x: x.tolist(),
    "Tensor.numpy()": lambda x: x.numpy(force=True),
    "Tensor.cpu()": lambda x: x.cpu(),
    "Tensor.to('cpu')": lambda x: x.to("cpu"),
    "aten.nonzero": lambda x: torch.where(x > 0),
    "aten.index.Tensor by a mask": lambda x: x[x > 0],
    "aten.index_put_.default by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "index by a list": lambda x: x[[0, 1]],
    "aten.masked_select": lambda x: x.masked_select(x > 0),
    "aten._linalg_svd": lambda x: torch.linalg.svd(x),
    "aten._linalg_check_errors": lambda x: torch.linalg.solve(x, x),
    "aten.repeat_interleave.Tensor": lambda x: x.repeat_interleave((x[0] > 0).long() + 1, dim=0),
    "aten.equal": lambda x: torch.equal(x, x),
    "torch.tensor(numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "(sparse)": lambda x: x.to_sparse_csr(),
}
"""What is seen, by the operator that is listed."""


def test_what_waits_is_seen_and_nothing_else() -> None:
    """A list that overlooks an operator calls a step free that is not; harmless ones hide the others."""
    for name, ask in ASKS.items():
        x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        with Waits() as waits:
            ask(x)
        assert any(name in line for line in waits.seen), waits.seen
        assert all("tests/training/test_waits.py" in line and "<lambda>" in line for line in waits.seen)
    places = torch.arange(3)
    with Waits() as waits:
        torch.where(x > 0, x, 0.0).masked_fill(x > 1, 0.0)
        torch.linalg.vector_norm(torch.linalg.cross(x, x.roll(1, 0)), dim=-1)
        x[places, places] = x.index_select(0, places)[:, 0]
        places.repeat_interleave(places * 0 + 1, output_size=3)
        x.to(x.device)
        torch.tensor([1.0])
        len(x), x.shape, list(x), x.sort(), x.argmax(-1)
    assert waits.seen == []


@pytest.mark.parametrize("lacks", [False, True])
def test_a_step_waits_for_nothing(lacks: bool) -> None:
    """Each value asked for empties the queue of a GPU, which then idles until the next kernels come. Patches,
    two refinements, recomputed blocks, dropped paths, Muon, accumulation and bf16; samples that lack depth or
    labels invite indexing by what is there.
    """
    bare = {"mano_valid": torch.tensor([True, False]), "joints_conf": torch.eye(21)[:2]}
    raws = [raw(k) for k in range(2)]
    with patch_stem(recompute=True):
        step = stepper(dataclasses.replace(TINY, refine_iterations=2, drop_path=0.5), accumulation=2)
        step.model.backbone_dtype = torch.bfloat16  # type: ignore[assignment]
        with Waits(allowed=(DRAWN,)) as waits:
            batches = [prepare(r) for r in raws]
            if lacks:
                batches = [dataclasses.replace(b.without_depth(), **bare, betas=b.betas / 0) for b in batches]
            step(batches)
            step.model.eval()
            with torch.no_grad():
                step.loss.per_sample(step.model(batches[0]), batches[0])
    assert waits.seen == []


class Batches(list[Any]):
    """A loader's interface around batches that are there."""

    sampler: Any = ()
    died = None

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Every epoch is the same."""


def places(waits: Waits) -> set[str]:
    """Files in which was waited since the last look."""
    found = {line.partition(" at ")[2].partition(":")[0] for line in waits.seen}
    waits.seen.clear()
    return found


def test_a_run_waits_only_where_it_is_meant_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks of debug lines, doctor and recorder an epoch reads one thing: what the step before
    the present one did. The doctor looks after steps 0 and 3, the recorder after 2 and 5.
    """
    monkeypatch.setattr(doctor, "FIRST_STEPS", 1)
    monkeypatch.setattr(doctor, "LATER_STEP", 4)
    monkeypatch.setattr(DebugBatches, "COUNT", 1)
    step = stepper(dataclasses.replace(TINY, image_size=(32, 32)), lag=1)
    config = dataclasses.replace(step.config, logging=LoggingConfig(every=3))
    run: Any = SimpleNamespace(
        config=config,
        progress=Progress(),
        train_loader=Batches(make_batch(2, 32, 32, seed=k, noise=True) for k in range(6)),
        context=ALONE,
        doctor=doctor.Doctor(config, ALONE, hand_model()),
        trainer=step,
        stop=StopRequest(),
        recorder=Recorder(tmp_path, ALONE),
        saver=SimpleNamespace(tries_again=lambda step: False),
    )
    listed: list[set[str]] = []
    read: list[int] = []
    after = run.doctor.after

    def note(*args: Any) -> None:
        """Where was waited since the last call: in what followed the step before, and in this step."""
        listed.append(places(waits))
        read.append(len(waits.meant))
        after(*args)

    monkeypatch.setattr(run.doctor, "after", note)
    with Waits(allowed=(NUMBERS,)) as waits:
        assert train.train_epoch(run) is not None
    listed.append(places(waits))
    looks, record = "src/training/diagnosis", "src/training/recorder.py"
    rooms = [{looks if place.startswith(looks) else place for place in found} for found in listed]
    assert rooms == [{"src/runtime/debug.py"}, {looks}, set(), {record}, {looks}, set(), {record}]
    # When step k ends, those before it have been read and it has not.
    assert read == [0, 1, 2, 3, 4, 5]


def test_a_validation_waits_only_behind_its_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go to the host once a batch, after network and loss; nothing else may."""
    step = stepper()
    truth: Any = SimpleNamespace(truth_vertices=lambda *_: None, truth_joints=lambda *_: None)
    dataset: Any = Batches([None] * 4)
    dataset.frames = SimpleNamespace(split=SimpleNamespace(id="split"))
    meshes = MeshScorer(hand_model(), truth, official=False)
    scoring: Any = SimpleNamespace(
        config=step.config, context=ALONE, meshes=meshes, baselines=None, dataset=dataset
    )
    loader = Batches(make_batch(2, 64, 64, seed=k, noise=True) for k in range(2))
    loader.sampler = [[0, 1], [2, 3]]
    monkeypatch.setattr(train, "evaluate", lambda shard, **_: shard)
    with Waits() as waits:
        shard: Any = train.test(step.model, step.loss, loader, scoring, KeptHands())
    assert shard.count == 4
    meant = {f"src/evaluation/{name}.py" for name in ("collect", "metrics", "statistics")}
    beside = {"src/training/mesh_scorer.py", "src/geometry/procrustes.py"}
    assert places(waits) == meant | beside


@pytest.fixture
def deterministic() -> Iterator[None]:
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


@pytest.mark.usefixtures("deterministic")
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


@pytest.mark.usefixtures("deterministic")
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
