"""Nothing in a training step, or in predicting and judging a validation batch, makes a GPU's host wait."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import train
from dataloader.crop.prepare import prepare
from src.config import (
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
    ValidationConfig,
)
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.debug import DebugBatches
from src.runtime.ranks.distributed import DistContext
from src.runtime.signals import StopRequest
from src.training.checkpoints.checkpoint import Progress
from src.training.diagnosis import doctor
from src.training.mesh_scorer import MeshScorer
from src.training.picture_page import PicturePage
from src.training.recorder import Recorder
from src.training.step import TrainStep
from tests.models.scene import hand_model, make_batch, patch_stem
from tests.training.test_step import raw
from tests.waits import Waits

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)
DRAWN = "src/models/vit.py:_drawn"
"""Which samples keep a branch is drawn on the host, of host numbers."""

NUMBERS = "src/training/step.py:values"
"""Numbers of a step that the device did before the one that it has now: copied beside its work."""


def config_of(
    model: ModelConfig, optimizer: Literal["adamw", "muon"] = "adamw", accumulation: int = 1
) -> RunConfig:
    return RunConfig(
        model=model,
        optimizer=OptimizerConfig(name=optimizer),
        training=TrainingConfig(accumulation=accumulation, ema_decay=0.9, num_epochs=1),
        validation=ValidationConfig(pictures=2),
    )


def stepper(config: RunConfig, *, bf16: bool = False, lag: int = 9) -> TrainStep:
    """As on a GPU: what a step did is read `lag` steps later."""
    torch.manual_seed(0)
    model = UTNet(config.model, hand_model())
    model.backbone_dtype = torch.bfloat16 if bf16 else torch.float32
    return TrainStep(model, HandLoss(config.loss, hand_model()), config, ALONE, total_steps=10, lag=lag)


def waits_of(step: TrainStep, allowed: tuple[str, ...] = (DRAWN,)) -> tuple[list[str], list[str]]:
    """Of a step from raw batches on, and of a validation's forward pass and loss."""
    raws = [raw(k) for k in range(step.config.training.accumulation)]
    with Waits(allowed=allowed) as training:
        step([prepare(r) for r in raws])
    step.model.eval()
    with Waits() as validation, torch.no_grad():
        batch = prepare(raws[0])
        step.loss.per_sample(step.model(batch), batch)
    return training.seen, validation.seen


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


TINY = ModelConfig(preset="tiny", image_size=(64, 64))


def test_a_plain_step_waits_for_nothing() -> None:
    """Each value asked for empties the queue of a GPU, which then idles until the next kernels come."""
    model = dataclasses.replace(TINY, refine_iterations=0, drop_path=0.5)
    assert waits_of(stepper(config_of(model))) == ([], [])


def test_a_step_with_all_that_there_is_waits_for_nothing() -> None:
    """Patches, two refinements, recomputed blocks, Muon, accumulation and bf16."""
    model = dataclasses.replace(TINY, refine_iterations=2, drop_path=0.5)
    with patch_stem(recompute=True):
        assert waits_of(stepper(config_of(model, "muon", accumulation=2), bf16=True)) == ([], [])


def test_a_step_without_depth_or_labels_waits_for_nothing() -> None:
    """Samples that lack something are the ones that invite indexing by what is there."""
    step, batch = stepper(config_of(TINY)), make_batch(2, 64, 64, noise=True).without_depth()
    bare = dataclasses.replace(
        batch,
        mano_valid=torch.tensor([True, False]),
        joints_conf=torch.eye(21)[:2],
        betas=torch.full_like(batch.betas, torch.nan),
    )
    with Waits() as waits:
        step([bare])
        step.loss.per_sample(step.model(bare), bare)
    assert waits.seen == []


class Batches(list[Any]):
    """A loader's interface around batches that are there."""

    sampler: Any = ()
    died = None

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Every epoch is the same."""


def run_of(step: TrainStep, folder: Path, steps: int, logging: LoggingConfig) -> Any:
    """What `train_epoch` works with."""
    config = dataclasses.replace(step.config, logging=logging)
    return types.SimpleNamespace(
        config=config,
        progress=Progress(),
        train_loader=Batches(make_batch(2, 32, 32, seed=k, noise=True) for k in range(steps)),
        context=ALONE,
        doctor=doctor.Doctor(config, ALONE, hand_model()),
        trainer=step,
        stop=StopRequest(),
        recorder=Recorder(folder, ALONE),
        saver=types.SimpleNamespace(tries_again=lambda step: False),
    )


def test_a_run_waits_only_where_it_is_meant_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks of debug lines, doctor and recorder an epoch reads one thing: what the step before
    the present one did. The doctor looks after steps 0 and 3, the recorder after 2 and 5.
    """
    monkeypatch.setattr(doctor, "FIRST_STEPS", 1)
    monkeypatch.setattr(doctor, "LATER_STEP", 4)
    monkeypatch.setattr(DebugBatches, "COUNT", 1)
    step = stepper(config_of(dataclasses.replace(TINY, image_size=(32, 32))), lag=1)
    run = run_of(step, tmp_path, 6, LoggingConfig(every=3))
    listed: list[set[str]] = []
    read: list[int] = []
    after = run.doctor.after

    def note(*args: Any) -> None:
        """Where was waited since the last call: in what followed the step before, and in this step."""
        listed.append({line.partition(" at ")[2].partition(":")[0] for line in waits.seen})
        read.append(len(waits.meant))
        waits.seen.clear()
        after(*args)

    monkeypatch.setattr(run.doctor, "after", note)
    with Waits(allowed=(NUMBERS,)) as waits:
        assert train.train_epoch(run) is not None
    note_of_the_end = {line.partition(" at ")[2].partition(":")[0] for line in waits.seen}
    debug, record = "src/runtime/debug.py", "src/training/recorder.py"
    looks = {f"src/training/diagnosis/{name}.py" for name in ("samples", "training")}
    for k, places in enumerate([*listed, note_of_the_end]):
        meant = {0: {debug}, 1: looks, 3: {record}, 4: looks, 6: {record}}.get(k, set())
        beside = (
            {place for place in places if place.startswith("src/training/diagnosis/")} if meant else set()
        )
        assert places - beside <= meant <= places, (k, places)
    # When step k ends, those before it have been read and it has not.
    assert read == [0, 1, 2, 3, 4, 5]


def test_a_validation_waits_only_behind_its_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go to the host once a batch, after network and loss; nothing else may."""
    step = stepper(config_of(TINY))
    truth = types.SimpleNamespace(truth_vertices=lambda *_: None, truth_joints=lambda *_: None)
    scoring = types.SimpleNamespace(
        config=step.config,
        context=ALONE,
        meshes=MeshScorer(hand_model(), truth, official=False),
        baselines=None,
        dataset=types.SimpleNamespace(
            frames=types.SimpleNamespace(split=types.SimpleNamespace(id="split")), __len__=lambda: 4
        ),
    )
    loader = Batches(make_batch(2, 64, 64, seed=k, noise=True) for k in range(2))
    loader.sampler = [[0, 1], [2, 3]]
    monkeypatch.setattr(train, "evaluate", lambda shard, **_: shard)
    monkeypatch.setattr(
        train, "len", lambda value: 4 if value is scoring.dataset else len(value), raising=False
    )
    with Waits() as waits:
        shard: Any = train.test(step.model, step.loss, loader, scoring, PicturePage(2, 2))
    assert shard.count == 4
    files = {line.partition(" at ")[2].partition(":")[0] for line in waits.seen}
    meant = {f"src/evaluation/{name}.py" for name in ("collect", "metrics", "statistics")}
    beside = {"src/training/mesh_scorer.py", "src/training/picture_page.py", "src/geometry/procrustes.py"}
    assert files == meant | beside, waits.seen
