"""Checkpoints: what of them is used, and where they are refused; tests/end_to_end says what is in them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.config import RunConfig
from src.errors import AssetError
from src.runtime.files.tensor_file import save_tensors
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.checkpoint import Progress
from src.training.step import TrainStep
from tests.log_lines import log_lines
from tests.training.toy import ALONE, toy_batch, toy_trainer

HAND: Any = SimpleNamespace(fingerprint="f" * 16, is_standin=True)
OTHER_HAND: Any = SimpleNamespace(fingerprint="0" * 16, is_standin=False)


def saved(folder: Path, step: TrainStep, progress: Progress | None = None) -> Path:
    path = folder / "checkpoints" / "last.pt"
    ckpt.save_checkpoint(path, step, progress or Progress(), step.config, HAND, "abc", ALONE)
    return path


def restored(
    path: Path,
    step: TrainStep | None = None,
    config: RunConfig | None = None,
    *,
    hand: Any = HAND,
    split: str = "abc",
    context: DistContext = ALONE,
) -> Progress:
    """Go on from `path` with a fresh trainer, unless one is given, by the settings of that trainer."""
    step = step or toy_trainer()
    return ckpt.restore(path, step, config or step.config, hand, split, context)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in a checkpoint of a toy after two steps."""
    run = toy_trainer()
    for k in range(2):
        run([toy_batch(k)])
    return ckpt.load_checkpoint(saved(tmp_path_factory.mktemp("toy"), run))


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


@pytest.mark.parametrize("which", ["averaged", "plain"])
def test_what_was_validated_is_what_is_scored(tmp_path: Path, written: dict[str, Any], which: str) -> None:
    """The averaged weights if the file has them, whatever the settings ask for; the log says which."""
    path, model = tmp_path / "last.pt", toy_trainer().model
    state = written if which == "averaged" else written | {"ema": None}
    ckpt.load_weights(model, state, path)
    assert ckpt.named(state, path) == f"{path} (step 2, {which} weights)"
    want = state["model"] if which == "plain" else state["ema"]["average"]
    assert all(torch.equal(value, want[name]) for name, value in model.named_parameters())


INSIDE = Progress(step_in_epoch=2)
REFUSED: dict[str, tuple[Progress, dict[str, Any], str]] = {
    "hand": (INSIDE, {"hand": OTHER_HAND}, "trained with the procedural stand-in.*is a MANO file"),
    "split": (INSIDE, {"split": "xyz"}, "another split"),
    "batch": (INSIDE, {"batch_size": 3}, "global batches of 32 samples, this run makes 3"),
    "seed": (INSIDE, {"seed": 1}, r"inside epoch 0, whose order was drawn with seed 0, .* seed is 1"),
    "steps": (INSIDE, {"max_steps_per_epoch": 1}, r"after 2 steps, training\.max_steps_per_epoch is 1"),
    "average": (INSIDE, {"ema_decay": 0.0}, r"training\.ema_decay was switched on or off"),
    # A run that was cut short by its number of epochs ended as finished, its last epoch never validated.
    "epochs": (Progress(epoch=2), {"num_epochs": 2}, r"training\.num_epochs is 2: nothing is left to train"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_run_that_cannot_go_on_is_refused(tmp_path: Path, what: str) -> None:
    """Another hand, other labels or half an epoch of other batches give numbers that mean nothing."""
    progress, changes, message = REFUSED[what]
    where = {name: changes[name] for name in ("hand", "split") if name in changes}
    training = {name: value for name, value in changes.items() if name not in ("hand", "split", "seed")}
    path, step = saved(tmp_path, toy_trainer(), progress), toy_trainer(**training)
    config = dataclasses.replace(step.config, seed=changes.get("seed", 0))
    with pytest.raises(AssetError, match=message):
        restored(path, step, config, **where)


def test_a_run_that_was_lost_while_it_validated_goes_on(tmp_path: Path) -> None:
    """All steps of its last epoch are done, and its validation is not."""
    position = Progress(epoch=1, step_in_epoch=2)
    path = saved(tmp_path, toy_trainer(), position)
    assert restored(path, toy_trainer(max_steps_per_epoch=2, num_epochs=2)) == position


@pytest.mark.parametrize(
    ("inside", "total", "epochs", "schedule_step"),
    [
        (0, 8, 4, 4),
        (0, 32, 4, 16),
        (0, 24, 6, 8),
        (3, 12, 4, 9),
    ],
)
def test_the_rate_goes_on_where_it_stood_when_an_epoch_has_other_steps(
    tmp_path: Path, inside: int, total: int, epochs: int, schedule_step: int
) -> None:
    """On twice the ranks half the steps are left: counted in old steps, the rate was at its end for all of
    them, 0.01 of the peak. Steps of the present epoch that are done count as they are.
    """
    run = toy_trainer(total_steps=16, num_epochs=4)
    run.step = run.schedule_step = 8 + inside
    path = saved(tmp_path, run, Progress(epoch=2, step_in_epoch=inside))
    other = toy_trainer(total_steps=total, num_epochs=epochs)
    restored(path, other)
    assert (other.step, other.schedule_step) == (8 + inside, schedule_step)
    # And once more from what the resumed run wrote.
    again = toy_trainer(total_steps=total, num_epochs=epochs)
    restored(saved(tmp_path, other, Progress(epoch=2, step_in_epoch=inside)), again)
    assert (again.step, again.schedule_step) == (other.step, other.schedule_step)


def test_random_states_are_each_ranks_own_and_of_the_seed(tmp_path: Path) -> None:
    """With rank 0's state on all ranks, all drop the same paths; another seed is another order of samples."""
    path = saved(tmp_path, toy_trainer(), Progress(epoch=1))
    states = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        states.append({"cpu": torch.get_rng_state()})
    save_tensors(torch.load(path, weights_only=True) | {"world": 2, "rng": states}, path)
    for rank in range(2):
        restored(path, context=DistContext(rank, 2, rank, torch.device("cpu"), None))
        assert torch.equal(torch.get_rng_state(), states[rank]["cpu"]), f"rank {rank}"
    step = toy_trainer()
    drawn = torch.get_rng_state()
    for config, context in (
        (dataclasses.replace(step.config, seed=1), DistContext(0, 2, 0, torch.device("cpu"), None)),
        (step.config, ALONE),
    ):
        restored(path, step, config, context=context)
        assert torch.equal(torch.get_rng_state(), drawn)


def test_a_checkpoint_of_the_format_before_is_scored_but_not_resumed(
    tmp_path: Path, written: dict[str, Any]
) -> None:
    """Its moments have no names: put on parameters by their order they would be others'."""
    path = tmp_path / "old.pt"
    torch.save(written | {"format": 2, "commit": "0123456789abcdef"}, path)
    ckpt.load_weights(toy_trainer().model, ckpt.load_checkpoint(path), path)
    want = r"format 2, runs go on from format 3\. Code 0123456789ab wrote it: resume"
    with pytest.raises(AssetError, match=want):
        restored(path)


def test_a_resume_of_other_code_says_so(
    tmp_path: Path, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate once fell along a cosine: a run that began with it would be half of each, without a word."""
    monkeypatch.setattr(ckpt, "commit", lambda: "0123456789abcdef+")
    path = tmp_path / "last.pt"
    for wrote, said in (("0123456789abcdef", 0), ("fedcba9876543210+", 1)):
        save_tensors(written | {"commit": wrote}, path)
        with log_lines("checkpoint") as lines:
            restored(path)
        assert len(lines) == said
    assert re.match(
        r"WARNING: code fedcba987654 wrote .*last\.pt, this is 0123456789ab: .* resume with", lines[0]
    )


def _pop(state: dict[str, Any], name: str) -> None:
    del state[name]


def _first(state: dict[str, Any]) -> dict[str, Any]:
    """Moments of a parameter."""
    return next(moments for moments in state["optimizer"]["adamw"].values() if "exp_avg" in moments)


def _spoil(tensor: torch.Tensor) -> None:
    tensor.view(-1)[7] = float("inf")


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda s: s.update(format=9), r"format 9, this program reads \(2, 3\)"),
    "foreign": (lambda s: _pop(s, "progress"), r"not a UTNet checkpoint \(no progress inside\)"),
    "no seed": (lambda s: _pop(s["config"], "seed"), "config is not a configuration"),
    "no rank": (lambda s: s.update(rng=[]), "rng is of 0 ranks, world is 1"),
    "cut random state": (lambda s: s["rng"][0].update(cpu=s["rng"][0]["cpu"][:-1]), "rng is not the random"),
    "no moment": (lambda s: _pop(_first(s), "exp_avg_sq"), "optimiser state: moments of inside"),
    "another average": (lambda s: s["ema"].update(average={"x": torch.ones(2)}), "averaged weights are not"),
    "another network": (
        lambda s: _pop(s["model"], "inside.bias"),
        r"another network.*first: inside\.bias.*model \(preset: .*by code \w{12}, this is \w{12}\. Leave out",
    ),
    "infinite weight": (lambda s: _spoil(s["model"]["inside.weight"]), "not finite, first in model.inside"),
    "infinite average": (lambda s: _spoil(s["ema"]["average"]["inside.weight"]), "finite, first in ema"),
    "infinite moment": (lambda s: _spoil(_first(s)["exp_avg"]), "not finite, first in optimizer"),
}


@pytest.mark.parametrize("part", list(UNFIT))
def test_parts_that_do_not_fit_are_refused_in_a_line(
    tmp_path: Path, written: dict[str, Any], part: str
) -> None:
    """torch takes them and fails in the first step, or counts them for something else, or goes on."""
    path, (change, message) = tmp_path / "last.pt", UNFIT[part]
    save_tensors(written, path)
    state = torch.load(path, weights_only=True)
    change(state)
    save_tensors(state, path)
    with pytest.raises(AssetError, match=message) as caught:
        restored(path)
    assert str(path) in str(caught.value) or "optimiser" in str(caught.value)
    if re.search("average|network|weight", part):
        with pytest.raises(AssetError, match=message):
            ckpt.load_weights(toy_trainer().model, ckpt.load_checkpoint(path), path)
