"""A run over its epochs: the curves of `scalars.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from src.pages.figures import colour, line, plot
from src.pages.page import Block, Json

_POINTS = 400
"""Points of a curve at most; more are averaged."""
_FEW = 12
"""Up to so many epochs each has a mark on the axis."""
_SCORES = {
    "Val/MPJPE": ("RGB-D", "solid", "MPJPE"),
    "Val/PA-MPJPE": ("RGB-D", "dot", "PA-MPJPE"),
    "Val/RGB-only/MPJPE": ("RGB-only", "solid", "MPJPE"),
    "Val/RGB-only/PA-MPJPE": ("RGB-only", "dot", "PA-MPJPE"),
}


def curve_blocks(scalars: Sequence[Mapping[str, Json]]) -> list[Block]:
    """Loss and scores over epochs; nothing of a run that has not trained.

    Args:
        scalars: the lines of scalars.jsonl, in the file's order: `step`, and values by name; None where one
            was not finite.
    """
    ends = [(row["step"], row["Train/epoch"] + 1) for row in scalars if row.get("Train/epoch") is not None]
    if not ends:
        return []
    steps, epochs = np.array([(0, 0), *ends], np.float64).T
    pace = steps[-1] / max(epochs[-1], 1.0)

    def points(name: str) -> tuple[list[float], list[float | None]]:
        rows = [(row["step"], row[name]) for row in scalars if name in row]
        at = np.array([step for step, _ in rows], np.float64)
        values = np.array([np.nan if value is None else value for _, value in rows], np.float64)
        # Behind the last whole epoch steps are as many an epoch as before it.
        x = np.where(
            at <= steps[-1], np.interp(at, steps, epochs), epochs[-1] + (at - steps[-1]) / max(pace, 1.0)
        )
        if len(x) > _POINTS:
            cut = np.array_split(np.arange(len(x)), _POINTS)
            x, values = (np.array([part[own].mean() for own in cut]) for part in (x, values))
        return x.tolist(), [None if np.isnan(value) else float(value) for value in values]

    losses = [line("training", *points("Train/loss"), colour("training"))]
    losses += [
        line(f"validation, {name}", *points(key), colour(name)) | {"mode": "lines+markers"}
        for key, name in (("Val/loss", "RGB-D"), ("Val/RGB-only/loss", "RGB-only"))
    ]
    scores = [
        line(f"{name} {metric}", *points(key), colour(name), dash=dash) | {"mode": "lines+markers"}
        for key, (name, dash, metric) in _SCORES.items()
    ]
    axis = {"title": {"text": "epochs"}, "rangemode": "tozero"} | ({"dtick": 1} if epochs[-1] <= _FEW else {})
    return [
        Block("Loss", figure=plot(losses, "", "loss", xaxis=axis)),
        Block("Error", figure=plot(scores, "", "mm", xaxis=axis)),
    ]
