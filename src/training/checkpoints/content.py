"""What is inside a checkpoint: its parts by name, and the kind of each. Whoever reads one may rely on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any], bool]

_MOST = 1 << 53
"""Counts stay below what a float can hold."""


def misfit(state: Mapping[str, Any], progress: type, *, resumable: bool) -> str | None:
    """The first part that is missing or of another kind, in words; None: all fit.

    Args:
        state: of a checkpoint whose format is known.
        progress: dataclass whose fields `progress` holds; older files lack some.
        resumable: also what only a run that goes on reads.
    """
    for name, (fits, want) in (_SCORED | _RESUMED if resumable else _SCORED).items():
        if name not in state:
            return f"{name} is missing"
        if not fits(state[name]):
            return f"{name} is not {want}"
    kinds: dict[str, Check] = {"int": _count(-1), "float": _number, "str": _text}
    known = {field.name: kinds[str(field.type)] for field in fields(progress)}
    odd = [name for name, value in state["progress"].items() if name not in known or not known[name](value)]
    if odd:
        return f"progress.{odd[0]} is not a number or text of the position of a run"
    if resumable and len(state["rng"]) != state["world"]:
        return f"rng is of {len(state['rng'])} ranks, world is {state['world']}"
    return None


def _count(least: int = 0) -> Check:
    return lambda value: type(value) is int and least <= value < _MOST  # bool is a subclass of int


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _named(fits: Check) -> Check:
    """A dictionary from names to something."""
    return lambda value: (
        isinstance(value, Mapping) and all(isinstance(k, str) and fits(v) for k, v in value.items())
    )


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _ema(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and _named(_tensor)(value.get("average"))
        and _count()(value.get("updates"))
    )


def _optimizer(value: Any) -> bool:
    """Moments by kind of optimiser, name and kind; which there must be is the optimiser's to say."""
    moments = _named(_named(_tensor))
    return isinstance(value, Mapping) and all(part is None or moments(part) for part in value.values())


def _rng(value: Any) -> bool:
    """Random states of each rank."""
    one = _named(lambda state: isinstance(state, Tensor) and state.dtype == torch.uint8 and state.ndim == 1)
    size = len(torch.get_rng_state())
    return isinstance(value, list) and all(one(v) and "cpu" in v and len(v["cpu"]) == size for v in value)


def _config(value: Any) -> bool:
    """What is asked of the configuration as it stands; `config_from_dict` checks the rest."""
    training = value.get("training") if isinstance(value, Mapping) else None
    needed = ("num_epochs", "batch_size", "accumulation")
    return (
        isinstance(training, Mapping)
        and all(_count(1)(training.get(name)) for name in needed)
        and type(value.get("seed")) is int
        and _plain_tree(value)
    )


def _plain_tree(value: Any, depth: int = 4) -> bool:
    """Sections of numbers, words and short lists, which can be compared and shown."""
    if isinstance(value, Mapping | list):
        inside = list(value.values() if isinstance(value, Mapping) else value)
        return depth > 0 and len(inside) <= 100 and all(_plain_tree(v, depth - 1) for v in inside)
    return value is None or isinstance(value, bool | int | float | str)


_TEXT = (_text, "text")
_SCORED: dict[str, tuple[Check, str]] = {
    "model": (_named(_tensor), "tensors by name"),
    "ema": (_ema, "null, or tensors by name and a number of updates"),
    "step": (_count(), "a whole number, at least 0"),
    "progress": (_named(lambda _: True), "values by name"),
    "config": (_config, "a configuration"),
    "world": (_count(1), "a number of ranks"),
    "hand_fingerprint": _TEXT,
    "hand_is_standin": (lambda value: isinstance(value, bool), "true or false"),
    "split_hash": _TEXT,
    "commit": _TEXT,
}
"""What a score, a submission or the doctor reads."""
_RESUMED: dict[str, tuple[Check, str]] = {
    "optimizer": (_optimizer, "moments by name"),
    "schedule_step": (_count(), "a whole number, at least 0"),
    "total_steps": (_count(1), "a whole number, at least 1"),
    "rng": (_rng, "the random states of the ranks"),
}
"""What a run that goes on reads beside that."""
