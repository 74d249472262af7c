"""Validation inside a run: it judges, it refuses to be fooled, and it leaves the training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.schema import HandBatch, Prediction
from tests.end_to_end.conftest import Embedded

SHORT = ("training.max_steps_per_epoch=3", "validation.pictures=0")


def _spoil(rows: slice) -> None:
    """Make the network's answers in evaluation NaN, in `rows` of each batch that holds sample 4."""
    forward = UTNet.forward

    def spoiled(model: UTNet, batch: HandBatch) -> Prediction:
        prediction = forward(model, batch)
        if not model.training and (rows == slice(None) or bool((batch.sample_index == 4).any())):
            prediction.hand.joints_root_m[rows] = torch.nan
        return prediction

    UTNet.forward = spoiled  # type: ignore[method-assign]


def nan_everywhere() -> None:
    _spoil(slice(None))


def nan_without_depth() -> None:
    """NaN where depth is hidden: the score with depth looks as always."""
    forward = UTNet.forward

    def spoiled(model: UTNet, batch: HandBatch) -> Prediction:
        prediction = forward(model, batch)
        if not model.training:
            prediction.hand.joints_root_m[~batch.depth_present] = torch.nan
        return prediction

    UTNet.forward = spoiled  # type: ignore[method-assign]


def nan_loss() -> None:
    """Finite joints, but a loss that is not."""
    per_sample = HandLoss.per_sample

    def spoiled(loss: HandLoss, prediction: Prediction, batch: HandBatch) -> torch.Tensor:
        return per_sample(loss, prediction, batch) + torch.where(batch.sample_index == 4, torch.nan, 0.0)

    HandLoss.per_sample = spoiled  # type: ignore[method-assign]


def nan_in_one_row() -> None:
    _spoil(slice(0, 1))


@pytest.fixture(scope="module")
def healthy(embedded: Embedded) -> Path:
    """A run of one epoch, with a best checkpoint."""
    done = embedded.main("name=healthy", "training.num_epochs=1", *SHORT)
    assert done.returncode == 0, done.stderr
    return embedded.newest("healthy")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (nan_everywhere, "  Non-finite predictions: 16 (samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)"),
        (nan_in_one_row, "  Non-finite predictions: 1 (samples 4)"),
        (
            nan_without_depth,
            "  Non-finite predictions without depth: 16 (samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)",
        ),
        (nan_loss, "  Non-finite predictions: 1 (samples 4)"),
    ],
)
def test_nan_is_never_the_best(embedded: Embedded, healthy: Path, plant: Any, said: str) -> None:
    """An all-NaN network once scored a normal-looking 65 mm: it must neither look normal nor win."""
    name = plant.__name__
    copied = embedded.runs / f"20200101-000000-{name}" / "checkpoints"
    copied.mkdir(parents=True)
    for file in (healthy / "checkpoints").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    best = (copied / "best.pt").read_bytes()
    settings = (f"name={name}", "training.num_epochs=3", *SHORT)
    done = embedded.main(*settings, "--resume", str(copied / "last.pt"), plant=plant)
    lines = done.stdout.splitlines()
    epochs = [k for k in range(3) if any(line.startswith(f"Epoch {k}: Train Loss: ") for line in lines)]
    assert any("MPJPE: nan mm, PA-MPJPE: nan mm" in line for line in lines), done.stdout
    assert said in lines
    assert (copied / "best.pt").read_bytes() == best
    assert (done.returncode, epochs) == (2, [1])
    assert "predictions are not finite" in done.stderr


def _everything(state: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path, but the settings and the best score."""
    if isinstance(state, dict):
        return {
            key: value
            for part, inner in state.items()
            if part not in ("config", "best_mpjpe_mm", "best_epoch")
            for key, value in _everything(inner, f"{name}/{part}").items()
        }
    if isinstance(state, list | tuple):
        return _everything(dict(enumerate(state)), name)
    return {name: state}


def mode_is_kept() -> None:
    """Make a validation that leaves the network in another mode than it found it end the run."""
    test = train.test

    def watched(model: UTNet, *arguments: Any) -> Any:
        before = model.training
        result = test(model, *arguments)
        assert model.training == before, "the network is left in another mode"
        return result

    train.test = watched


def test_validation_leaves_the_training_alone(embedded: Embedded) -> None:
    """Training with and without validation gives the same weights, moments, averages and random states."""
    settings = ("training.num_epochs=3", "training.max_steps_per_epoch=3", "model.drop_path=0.1")
    seen = {}
    for every in (1, 3):
        arguments = (f"name=every{every}", f"validation.every_epochs={every}", *settings)
        done = embedded.main(*arguments, ranks=2, plant=mode_is_kept)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Evaluated on 16 samples") == (3 if every == 1 else 1)
        path = embedded.newest(f"every{every}") / "checkpoints" / "last.pt"
        seen[every] = _everything(torch.load(path, weights_only=True))
    assert seen[1].keys() == seen[3].keys()
    different = [
        key
        for key, value in seen[1].items()
        if not (
            torch.equal(value, seen[3][key]) if isinstance(value, torch.Tensor) else value == seen[3][key]
        )
    ]
    assert different == []


def test_scores_do_not_depend_on_the_cache(embedded: Embedded, healthy: Path, tmp_path: Path) -> None:
    """A cache that moves a score by a hair would make runs with it and without it incomparable."""
    rows = {}
    for name, settings in {
        "none": ["dataset.cache=off"],
        "raw": [f"dataset.cache={tmp_path}"],
        "compact": [f"dataset.cache={tmp_path}", "dataset.cache_format=compact"],
    }.items():
        checkpoint = str(healthy / "checkpoints/best.pt")
        done = embedded.main(f"name=cache-{name}", "--evaluate", checkpoint, *settings)
        assert done.returncode == 0, done.stderr
        assert ("Crop cache" in done.stdout) == (name != "none")
        for file in ("per_sample.npz", "per_sample_rgb.npz"):
            with np.load(embedded.newest(f"cache-{name}") / "val" / file) as stored:
                rows[name, file] = {key: stored[key] for key in stored.files}
    for file in ("per_sample.npz", "per_sample_rgb.npz"):
        plain = rows["none", file]
        scores = [key for key in plain if key.endswith("mpjpe_mm")]
        assert len(scores) >= 2
        for key in scores:
            assert np.abs(rows["raw", file][key] - plain[key]).max() <= 1e-6
            # RGB at 42 dB is another picture, though no eye sees it.
            assert 0 < np.abs(rows["compact", file][key] - plain[key]).max() < 1.0
