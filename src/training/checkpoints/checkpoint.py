"""A checkpoint: whole or not there, complete enough to go on bit for bit, free of licensed data.

It is one dictionary of tensors and plain values, readable with `torch.load(weights_only=True)`, with a
checksum of every byte. The hand model is not in it, only its fingerprint: evaluating with another hand is
refused. When one is written, and which one a run goes on from, is `folder`'s matter.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.config import RunConfig
from src.config_file import config_to_dict
from src.errors import AssetError, UTNetError
from src.hand.mano import ManoLayer
from src.runtime.files.tensor_file import (
    ADVICE,
    copy_tensors,
    first_nonfinite,
    load_tensors,
    save_tensors,
    tensor_bytes,
)
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.content import misfit
from src.training.optim import global_batch
from src.training.step import StepReport, TrainStep

FORMAT = 3
READABLE = (2, 3)
"""Formats whose weights can be used; runs go on from FORMAT alone (2 has moments without names)."""
_NEEDED = ("format", "model", "step", "progress")
"""Parts by which any format is known."""
_NUMBERS = ("model", "ema", "optimizer")
"""Parts that a network or an optimiser cannot work with if a number in them is not finite."""
_log = get_logger("checkpoint")


@dataclass
class Progress:
    """Where a run stands; all that a loop needs beside weights and optimiser."""

    epoch: int = 0
    """Epoch at work."""
    step_in_epoch: int = 0
    """Optimiser steps of that epoch that are done: the sampler's position."""
    loss_sum: float = 0.0
    """Sum of the losses of those steps."""
    clipped_steps: int = 0
    """How many of them were clipped."""
    best_mpjpe_mm: float = float("inf")
    """Best validation score so far."""
    best_epoch: int = -1
    """Epoch that reached it; -1: none."""
    judged_by: str = ""
    """Identity of the split that it is a score of."""
    labels_hash: str = ""
    """Identity of the labels of the training list, as the last process trained on them."""

    def count(self, reports: Iterable[StepReport]) -> bool:
        """Add steps that were checked to the epoch's sums; True if a rank was asked to stop in one."""
        asked = False
        for report in reports:
            self.loss_sum += report.loss
            self.clipped_steps += report.clipped
            asked |= report.stop_requested
        return asked


def save_checkpoint(
    path: Path,
    trainer: TrainStep,
    progress: Progress,
    config: RunConfig,
    hand: ManoLayer,
    split_hash: str,
    context: DistContext,
    copies: Sequence[Path] = (),
) -> None:
    """Write a checkpoint; all ranks call it, rank 0 writes, all raise if that fails.

    Args:
        path: file to be replaced when the new one is whole.
        trainer: weights, average, optimiser, step.
        progress: position of the loop.
        config: the resolved configuration, stored inside.
        hand: its fingerprint and whether it is the stand-in are stored.
        split_hash: identity of the training split.
        context: ranks; each one's random state is stored.
        copies: files that then get the same bytes, one after the other: damage to one is not damage to all.

    Raises:
        AssetError: a file could not be written; what was at its place is there still, and whole.
    """
    states = context.gather_objects(_rng_state(context.device), f"what comes before {path}")
    error: UTNetError | None = None
    if context.is_main:
        state = {
            "format": FORMAT,
            "model": trainer.model.state_dict(),
            "ema": None if trainer.ema is None else trainer.ema.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "step": trainer.step,
            "schedule_step": trainer.schedule_step,
            "total_steps": trainer.total_steps,
            "progress": vars(progress).copy(),
            "rng": states,
            "world": context.world,
            "config": config_to_dict(config),
            "hand_fingerprint": hand.fingerprint,
            "hand_is_standin": hand.is_standin,
            "split_hash": split_hash,
            "commit": commit(),
            "torch": str(torch.__version__),
        }
        target = path
        try:
            save_tensors(state, path)
            for target in copies:
                copy_tensors(path, target)
        except (OSError, RuntimeError) as caught:  # torch makes a RuntimeError of the system's own
            reason = caught.__context__ if isinstance(caught.__context__, OSError) else caught
            room = _room(target.parent, tensor_bytes(state))
            text = f"checkpoint {target} was not written: {reason}. {room}. The previous file is whole"
            error = AssetError(text)
    context.agree(error, f"writing {path}")


def _room(folder: Path, needed: int) -> str:
    """How much room a file needs and how much there is."""
    text = f"About {needed / 1e6:,.1f} MB are needed"
    try:
        return f"{text}, {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free"
    except OSError:
        return text


def load_checkpoint(path: Path, *, mapped: bool = False, any_format: bool = False) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Args:
        path: the file; all of it is read, to look at its checksum and numbers.
        mapped: leave the tensors in the file until they are looked at again.
        any_format: one of newer code too, which is whole all the same.

    Raises:
        AssetError: no such file, not a UTNet checkpoint, damaged, of a newer format, with parts that are
            missing or of another kind, or with numbers that are not finite.
    """
    state: dict[str, Any] = load_tensors(path, "checkpoint", mapped=mapped)
    missing = [name for name in _NEEDED if not isinstance(state, dict) or name not in state]
    if missing:
        raise AssetError(
            f"checkpoint {path} is not a UTNet checkpoint (no {', '.join(missing)} inside){ADVICE}"
        )
    if type(state["format"]) is not int:
        raise AssetError(f"checkpoint {path} is not a UTNet checkpoint (format is no whole number){ADVICE}")
    if state["format"] not in READABLE and not any_format:
        raise AssetError(f"checkpoint {path} has format {state['format']}, this program reads {READABLE}")
    if state["format"] in READABLE and (odd := misfit(state, Progress, resumable=state["format"] == FORMAT)):
        raise AssetError(f"checkpoint {path} is not what this program writes: {odd}{ADVICE}")
    if (bad := first_nonfinite({part: state.get(part) for part in _NUMBERS})) is not None:
        raise AssetError(f"checkpoint {path} holds numbers that are not finite, first in {bad}{ADVICE}")
    return state


def check_hand(state: Mapping[str, Any], hand: ManoLayer, path: Path) -> None:
    """Refuse a checkpoint that was trained with another hand model.

    Raises:
        AssetError: fingerprints differ.
    """
    if state["hand_fingerprint"] == hand.fingerprint:
        return

    def name(standin: bool) -> str:
        return "the procedural stand-in" if standin else "a MANO file"

    raise AssetError(
        f"checkpoint {path} was trained with {name(state['hand_is_standin'])} "
        f"(fingerprint {state['hand_fingerprint']}), mano.model_path is {name(hand.is_standin)} "
        f"({hand.fingerprint}). Set mano.model_path to the hand that it was trained with"
    )


def load_weights(model: torch.nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a model for evaluation, the averaged ones if there are any.

    Raises:
        AssetError: names or shapes differ from the model's.
    """
    _load_model(model, state, path)
    if state["ema"] is not None:
        _require_average(model, state, path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state["ema"]["average"][name])


def named(state: Mapping[str, Any], path: Path) -> str:
    """A checkpoint as the log names it: its file, its step, and which weights `load_weights` takes of it."""
    return f"{path} (step {state['step']}, {'averaged' if state['ema'] else 'plain'} weights)"


def restore(
    path: Path, trainer: TrainStep, config: RunConfig, hand: ManoLayer, split_hash: str, context: DistContext
) -> Progress:
    """Continue a run from a checkpoint: weights, average, optimiser, step, random states, position.

    Raises:
        AssetError: other hand, other network, other training split, an older format, nothing left to train,
            or a position inside an epoch that the present global batch, seed or length of epochs cannot
            continue.
    """
    state = load_checkpoint(path)
    if state["format"] != FORMAT:
        raise AssetError(
            f"checkpoint {path} has format {state['format']}, runs go on from format {FORMAT}. Code "
            f"{state['commit'][:12]} wrote it: resume with that, or score the checkpoint with --evaluate"
        )
    if (wrote := state["commit"].rstrip("+")) != (here := commit().rstrip("+")):
        _log.warning(
            f"WARNING: code {wrote[:12]} wrote {path}, this is {here[:12]}: what was changed between them, "
            "such as augmentation or how the rate falls, changes in the middle of this run. To keep one "
            "recipe, resume with that code"
        )
    check_hand(state, hand, path)
    if state["split_hash"] != split_hash:
        raise AssetError(
            f"checkpoint {path} was trained on another split (hash {state['split_hash'][:12]}, now "
            f"{split_hash[:12]}). Use the data set and the split section that it was trained with"
        )
    progress = Progress(**state["progress"])
    _check_position(state, config, context, progress, path)
    log_changes(state["config"], config)
    _load_model(trainer.model, state, path)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step, trainer.schedule_step = state["step"], state["schedule_step"]
    epoch_was = state["total_steps"] / state["config"]["training"]["num_epochs"]
    epoch_is = trainer.total_steps / config.training.num_epochs
    if epoch_was != epoch_is:
        trainer.schedule_step = round(progress.epoch * epoch_is) + progress.step_in_epoch
    if state["total_steps"] != trainer.total_steps:
        _log.info(
            f"Changed since the checkpoint: {state['total_steps']} -> {trainer.total_steps} steps in all; "
            f"the learning rate goes on from step {trainer.schedule_step} of the new schedule"
        )
    if (trainer.ema is None) != (state["ema"] is None):
        raise AssetError(
            f"checkpoint {path}: training.ema_decay was switched on or off since; use the same setting"
        )
    if trainer.ema is not None:
        _require_average(trainer.model, state, path)
        trainer.ema.load_state_dict(state["ema"])
    if state["config"]["seed"] != config.seed:
        _log.info("Random states are of another seed: drawn anew")
    elif state["world"] == context.world:
        _set_rng_state(state["rng"][context.rank], context.device)
    else:
        _log.info(f"Random states are for {state['world']} ranks, this run has {context.world}: drawn anew")
    return progress


def global_batch_of(state: Mapping[str, Any]) -> int:
    """Samples of one optimiser step, on all ranks, of the run that saved this state."""
    trained, world = state["config"]["training"], int(state["world"])
    return int(trained["batch_size"]) * int(trained["accumulation"]) * world


def commit() -> str:
    """Commit of the source tree, with '+' if it was changed since; 'unknown' outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    texts = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        texts.append(done.stdout.strip())
    return texts[0] + ("+" if texts[1] else "")


def _load_model(model: torch.nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Put the weights as they were trained, not averaged, into a model.

    Raises:
        AssetError: names or shapes differ from the model's.
    """
    if odd := _other_weights(model.state_dict(), state["model"]):
        settings = ", ".join(f"{name}: {value}" for name, value in state["config"]["model"].items())
        raise AssetError(
            f"checkpoint {path} is of another network than the model section builds: {len(odd)} weights are "
            f"on one side alone or of another shape (first: {odd[0]}). Trained with model ({settings}) by "
            f"code {state['commit'][:12]}, this is {commit()[:12]}. Leave out --config and model.* "
            "settings, if any, so that those of the checkpoint hold; otherwise use that code"
        )
    model.load_state_dict(state["model"], strict=True)


def _other_weights(wanted: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that only one side has, or that differ in shape."""
    shapes = ({name: value.shape for name, value in side.items()} for side in (wanted, kept))
    return sorted({name for name, _ in set.symmetric_difference(*(set(side.items()) for side in shapes))})


def _require_average(model: torch.nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """AssetError: the averaged weights have other names or shapes than the model's."""
    if odd := _other_weights(dict(model.named_parameters()), state["ema"]["average"]):
        raise AssetError(f"checkpoint {path}: its averaged weights are not the model's, e.g. {odd[0]}")


def _check_position(
    state: Mapping[str, Any], config: RunConfig, context: DistContext, progress: Progress, path: Path
) -> None:
    """Something is left to train; a position inside an epoch counts global batches of one permutation."""
    old, done = state["config"], progress.step_in_epoch
    epochs, most = config.training.num_epochs, config.training.max_steps_per_epoch
    before, now = global_batch_of(state), global_batch(config, context.world)
    inside, why = f"stands inside epoch {progress.epoch}", None
    if progress.epoch >= epochs and old["training"]["num_epochs"] > epochs:
        why = (
            f"has {progress.epoch} epochs and {done} steps behind it, training.num_epochs is {epochs}: "
            "nothing is left to train. Raise it, or score the checkpoint with --evaluate"
        )
    elif done and before != now:
        why = (
            f"{inside} with global batches of {before} samples, this run makes {now}. Use as many ranks, or "
            "change training.batch_size or training.accumulation to match"
        )
    elif done and old["seed"] != config.seed:
        why = (
            f"{inside}, whose order was drawn with seed {old['seed']}, this run's seed is {config.seed}. Use "
            "the same seed, or a checkpoint from the end of an epoch"
        )
    elif most is not None and done > most:
        why = f"{inside} after {done} steps, training.max_steps_per_epoch is {most}. Raise it"
    if why is not None:
        raise AssetError(f"checkpoint {path} {why}")


def log_labels(before: str, now: str, path: Path) -> str:
    """Say that a checkpoint was trained on other labels than those that the data set has now; what was said.

    Args:
        before: `labels_hash` of its `Progress`; empty in files of programs that did not keep it.
        now: of the training list.
        path: the checkpoint.
    """
    if not before or before == now:
        return ""
    text = (
        f"labels of the training list have changed since {path} was written (labels {before[:12]}, now "
        f"{now[:12]}): its weights were trained on the old ones"
    )
    _log.warning(f"WARNING: {text}")
    return text


def log_changes(saved: Mapping[str, Any], config: RunConfig, sections: Sequence[str] = ()) -> None:
    """Say which settings differ from those that a checkpoint was written with.

    Args:
        saved: the checkpoint's `config`.
        config: the present one.
        sections: only these; empty: all.
    """
    now = config_to_dict(config)
    for section in sections or now:
        before, after = saved.get(section), now[section]
        pairs = [(section, before, after)]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            pairs = [(f"{section}.{key}", before.get(key), value) for key, value in after.items()]
        for key, old, new in pairs:
            if old != new:
                _log.info(f"Changed since the checkpoint: {key}: {old} -> {new}")


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
