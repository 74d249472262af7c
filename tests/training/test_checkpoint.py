"""Checkpoints: complete, whole, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import ModelConfig, RunConfig, TrainingConfig
from src.errors import AssetError
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.files.tensor_file import save_tensors
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints import checkpoint as ckpt
from src.training.step import TrainStep
from tests.models.scene import hand_model
from tests.training.test_step import ALONE, batch, weights

CONFIG = RunConfig(
    name="trial",
    model=ModelConfig(preset="tiny", image_size=(64, 64), drop_path=0.2),
    training=TrainingConfig(batch_size=2, ema_decay=0.9, keep_every_epochs=1),
)


def fresh(config: RunConfig = CONFIG, seed: int = 5, total_steps: int = 8) -> TrainStep:
    torch.manual_seed(seed)
    model = UTNet(config.model, hand_model())
    return TrainStep(model, HandLoss(config.loss, hand_model()), config, ALONE, total_steps)


def changed(config: RunConfig = CONFIG, **training: Any) -> RunConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def saved(folder: Path, step: TrainStep, progress: ckpt.Progress | None = None) -> Path:
    path = folder / "checkpoints" / "last.pt"
    ckpt.save_checkpoint(path, step, progress or ckpt.Progress(), CONFIG, hand_model(), "abc", ALONE)
    return path


def test_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Scheduler, moments, average, dropped paths and position all survive: nothing is forgotten."""
    run = fresh()
    for k in range(3):
        run([batch(k)])
    position = ckpt.Progress(
        epoch=1, step_in_epoch=3, loss_sum=4.5, clipped_steps=2, best_mpjpe_mm=31.0, best_epoch=0
    )
    path = saved(tmp_path, run, position)
    reports = [run([batch(k)]) for k in range(3, 6)]
    other = fresh(seed=99)
    assert ckpt.restore(path, other, CONFIG, hand_model(), "abc", ALONE) == position
    again = [other([batch(k)]) for k in range(3, 6)]
    assert [(r.loss, r.grad_norm, r.learning_rate) for r in reports] == [
        (r.loss, r.grad_norm, r.learning_rate) for r in again
    ]
    assert torch.equal(weights(run), weights(other))
    assert run.ema is not None
    assert other.ema is not None
    with run.ema.applied(), other.ema.applied():
        assert torch.equal(weights(run), weights(other))


def test_no_licensed_data_in_a_checkpoint(tmp_path: Path) -> None:
    """MANO's arrays must not leave the machine inside a checkpoint that is shared."""
    run = fresh()
    state = ckpt.load_checkpoint(saved(tmp_path, run))
    shapes = {tuple(v.shape) for v in state["model"].values()}
    for forbidden in ((778, 3), (778, 3, 10), (778, 16), (16, 778), (135, 2334), (2334, 135), (778, 3, 135)):
        assert forbidden not in shapes
    assert sum(v.numel() for v in state["model"].values()) == sum(p.numel() for p in run.model.parameters())


def test_evaluation_loads_the_averaged_weights(tmp_path: Path) -> None:
    """What was validated is what --evaluate scores."""
    run = fresh()
    for k in range(2):
        run([batch(k)])
    path = saved(tmp_path, run)
    model = UTNet(CONFIG.model, hand_model())
    ckpt.load_weights(model, ckpt.load_checkpoint(path), path)
    loaded = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert run.ema is not None
    with run.ema.applied():
        assert torch.equal(loaded, weights(run))


@pytest.mark.parametrize(("decay", "said"), [(0.9, "averaged"), (0.0, "plain")])
def test_the_log_says_whose_weights_are_scored(tmp_path: Path, decay: float, said: str) -> None:
    """It is the file that has an average or has none, whatever the present settings ask for."""
    run = fresh(changed(ema_decay=decay))
    run([batch(0)])
    path = saved(tmp_path, run)
    state = ckpt.load_checkpoint(path)
    assert ckpt.named(state, path) == f"{path} (step 1, {said} weights)"
    model = UTNet(CONFIG.model, hand_model())
    ckpt.load_weights(model, state, path)
    plain = {name: torch.equal(value, state["model"][name]) for name, value in model.named_parameters()}
    assert all(plain.values()) == (said == "plain")


def test_another_hand_network_split_or_batch_is_refused(tmp_path: Path) -> None:
    """Going on with other labels, another hand or half an epoch of other batches gives numbers that mean
    nothing.
    """
    path = saved(tmp_path, fresh(), ckpt.Progress(step_in_epoch=2))
    hand = hand_model()
    other_hand = type("Hand", (), {"fingerprint": "0" * 16, "is_standin": False})()
    with pytest.raises(AssetError, match=r"trained with the procedural stand-in.*is a MANO file"):
        ckpt.restore(path, fresh(), CONFIG, other_hand, "abc", ALONE)
    with pytest.raises(AssetError, match="another split"):
        ckpt.restore(path, fresh(), CONFIG, hand, "xyz", ALONE)
    with pytest.raises(AssetError, match="global batches of 2 samples, this run makes 3"):
        ckpt.restore(path, fresh(), changed(batch_size=3), hand, "abc", ALONE)
    with pytest.raises(AssetError, match=r"inside epoch 0, whose order was drawn with seed 0, .* seed is 1"):
        ckpt.restore(path, fresh(), dataclasses.replace(CONFIG, seed=1), hand, "abc", ALONE)
    with pytest.raises(AssetError, match=r"inside epoch 0 after 2 steps, training\.max_steps_per_epoch is 1"):
        ckpt.restore(path, fresh(), changed(max_steps_per_epoch=1), hand, "abc", ALONE)
    larger = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, refine_iterations=0))
    here = ckpt.commit()[:12]
    with pytest.raises(AssetError, match=f"another network.* written by code {here}, this is {here}: "):
        ckpt.restore(path, fresh(larger), larger, hand, "abc", ALONE)


def test_nothing_left_to_train_is_said(tmp_path: Path) -> None:
    """A run that was cut short by its number of epochs ended as finished, its last epoch never validated."""
    path = saved(tmp_path, fresh(), ckpt.Progress(epoch=2))
    with pytest.raises(
        AssetError, match=r"2 epochs and 0 steps behind it, training\.num_epochs is 2: nothing"
    ):
        ckpt.restore(path, fresh(), changed(num_epochs=2), hand_model(), "abc", ALONE)
    assert ckpt.restore(path, fresh(), changed(num_epochs=3), hand_model(), "abc", ALONE).epoch == 2


def test_the_rate_goes_on_where_it_stood_when_an_epoch_has_other_steps(tmp_path: Path) -> None:
    """On twice the ranks half the steps are left: counted in old steps, the rate was at its end for all of
    them, 0.01 of the peak.
    """
    config = changed(num_epochs=4)
    run = fresh(config, total_steps=16)
    for k in range(8):
        run([batch(k)])
    path = tmp_path / "checkpoints" / "last.pt"
    ckpt.save_checkpoint(path, run, ckpt.Progress(epoch=2), config, hand_model(), "abc", ALONE)
    rates = [run([batch(0)]).learning_rate for _ in range(2)]
    # Shares of the peak on a cosine from 1 to 0.01, after a warm-up of a twentieth in whole steps.
    plans = ((16, 4, 8, 0.453258), (8, 4, 4, 0.394852), (32, 4, 16, 0.505), (24, 6, 8, 0.772617))
    for total, epochs, schedule_step, share in plans:
        other_config = changed(num_epochs=epochs)
        other = fresh(other_config, total_steps=total)
        ckpt.restore(path, other, other_config, hand_model(), "abc", ALONE)
        assert (other.step, other.schedule_step) == (8, schedule_step)
        rate = other([batch(0)]).learning_rate
        assert rate == pytest.approx(share * other.peak_rate, rel=1e-4)
        if epochs == 4:
            assert rate == pytest.approx(rates[0], rel=0.2)
    # And once more from what the resumed run wrote.
    ckpt.save_checkpoint(
        path, other, ckpt.Progress(epoch=2, step_in_epoch=1), other_config, hand_model(), "abc", ALONE
    )
    again = fresh(other_config, total_steps=24)
    ckpt.restore(path, again, other_config, hand_model(), "abc", ALONE)
    assert (again.step, again.schedule_step) == (9, 9)


def test_inside_an_epoch_of_other_steps_the_rate_goes_on_after_those_done(tmp_path: Path) -> None:
    """With training.max_steps_per_epoch raised, the steps of the epoch that are done count as they are."""
    config = changed(num_epochs=4)
    path = tmp_path / "checkpoints" / "last.pt"
    position = ckpt.Progress(epoch=2, step_in_epoch=3)
    ckpt.save_checkpoint(path, fresh(config, total_steps=16), position, config, hand_model(), "abc", ALONE)
    for total, schedule_step in ((24, 15), (32, 19), (12, 9)):
        other = fresh(config, total_steps=total)
        ckpt.restore(path, other, config, hand_model(), "abc", ALONE)
        assert other.schedule_step == schedule_step, total  # 2 epochs of total / 4 steps, and 3


def test_the_checkpoint_from_before_a_validation_goes_on(tmp_path: Path) -> None:
    """All steps of its epoch are done: a run that was lost while it validated goes on with validating."""
    path = saved(tmp_path, fresh(), ckpt.Progress(epoch=1, step_in_epoch=2))
    position = ckpt.restore(path, fresh(), changed(max_steps_per_epoch=2), hand_model(), "abc", ALONE)
    assert (position.epoch, position.step_in_epoch) == (1, 2)


def test_another_seed_draws_anew(tmp_path: Path) -> None:
    """At an epoch's end another seed is another order of samples; dropped paths must follow it."""
    path = saved(tmp_path, fresh(), ckpt.Progress(epoch=1))
    before = torch.get_rng_state()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    other = fresh()
    torch.set_rng_state(state)
    ckpt.restore(path, other, dataclasses.replace(CONFIG, seed=1), hand_model(), "abc", ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    ckpt.restore(path, other, CONFIG, hand_model(), "abc", ALONE)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)


def test_each_rank_goes_on_with_its_own_random_state(tmp_path: Path) -> None:
    """With rank 0's state on all of them, all ranks drop the same paths."""
    before = torch.get_rng_state()
    path = saved(tmp_path, fresh(), ckpt.Progress(epoch=1))
    states = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        states.append({"cpu": torch.get_rng_state()})
    state = torch.load(path, weights_only=True) | {"world": 2, "rng": states}
    save_tensors(state, path)
    for rank in range(2):
        ckpt.restore(
            path, fresh(), CONFIG, hand_model(), "abc", DistContext(rank, 2, rank, torch.device("cpu"), None)
        )
        assert torch.equal(torch.get_rng_state(), states[rank]["cpu"]), f"rank {rank}"
    torch.set_rng_state(before)


def test_a_checkpoint_of_the_format_before_is_scored_but_not_resumed(tmp_path: Path) -> None:
    """Its moments have no names: put on parameters by their order they would be others'."""
    path = saved(tmp_path, fresh())
    state = torch.load(path, weights_only=True) | {"format": 2, "commit": "0123456789abcdef"}
    torch.save(state, path)
    ckpt.load_weights(UTNet(CONFIG.model, hand_model()), ckpt.load_checkpoint(path), path)
    with pytest.raises(
        AssetError, match=r"format 2, runs go on from format 3\. Code 0123456789ab wrote it: resume"
    ):
        ckpt.restore(path, fresh(), CONFIG, hand_model(), "abc", ALONE)
    torch.save(state | {"format": 9}, path)
    with pytest.raises(AssetError, match="format 9"):
        ckpt.load_checkpoint(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A torn or foreign file ends with one sentence, not with a traceback of zip internals."""
    with pytest.raises(AssetError, match="no such file"):
        ckpt.load_checkpoint(tmp_path / "none.pt")
    whole = saved(tmp_path, fresh()).read_bytes()
    torn = tmp_path / "torn.pt"
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", b"\x80\x02not a checkpoint"):
        torn.write_bytes(content)
        with pytest.raises(AssetError, match=r"torn\.pt .{20,140}\. Use another copy$"):
            ckpt.load_checkpoint(torn)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(1)}, foreign)
    with pytest.raises(AssetError, match="not a UTNet checkpoint"):
        ckpt.load_checkpoint(foreign)


def test_a_checkpoint_with_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """Its score is nan and its next step is nan: the tensor is named before hours are spent on it."""
    run = fresh()
    run([batch(0)])
    path = saved(tmp_path, run)
    state = torch.load(path, weights_only=True)
    name = "vit.blocks.1.attn.qkv.weight"
    moments = state["optimizer"]["adamw"][name]
    for part, inside, key in (
        ("optimizer", moments, "exp_avg_sq"),
        ("ema", state["ema"]["average"], name),
        ("model", state["model"], name),
    ):
        inside[key].view(-1)[7] = float("inf")
        torch.save(state, path)
        for mapped in (False, True):
            with pytest.raises(AssetError, match=rf"not finite, first in {part}\..*{name}.*\(1 of 110,592 "):
                ckpt.load_checkpoint(path, mapped=mapped)
    with pytest.raises(AssetError, match="not finite"):
        ckpt.restore(path, run, CONFIG, hand_model(), "abc", ALONE)


def _unfit(state: dict[str, Any], part: str) -> None:
    """Plant something that has the right kind and not the right content."""
    moments = next(m for m in state["optimizer"]["adamw"].values() if "exp_avg" in m)
    if part == "a moment is missing":
        del moments["exp_avg_sq"]
    elif part == "a moment is a number":
        moments["exp_avg"] = torch.tensor(1.0)
    elif part == "no moments":
        state["optimizer"] = {}
    elif part == "a random state is cut":
        state["rng"][0]["cpu"] = state["rng"][0]["cpu"][:-1]
    elif part == "another average":
        state["ema"]["average"] = {"weight": torch.ones(2)}


@pytest.mark.parametrize(
    "part",
    ["a moment is missing", "a moment is a number", "no moments", "a random state is cut", "another average"],
)
def test_parts_that_do_not_fit_are_refused_in_a_line(tmp_path: Path, part: str) -> None:
    """torch takes them and fails in the first step, or counts them for something else."""
    run = fresh()
    run([batch(0)])
    path = saved(tmp_path, run)
    state = torch.load(path, weights_only=True)
    _unfit(state, part)
    save_tensors(state, path)
    with pytest.raises(AssetError, match=r"optimiser state|rng is not|averaged weights"):
        ckpt.restore(path, fresh(), CONFIG, hand_model(), "abc", ALONE)
    if part == "another average":
        with pytest.raises(AssetError, match=r"its averaged weights are not the model's, e\.g\. weight"):
            ckpt.load_weights(fresh().model, ckpt.load_checkpoint(path), path)
