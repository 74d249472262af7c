"""Figures of a page, as plotly has them. No text from files is in any: plotly reads some of it as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from src.hand.joints import FINGERS, OPENPOSE21, OPENPOSE_BONES
from src.pages.page import Json

_TINTS: Mapping[str, tuple[int, int, int]] = {
    "truth": (70, 170, 90),
    "RGB-D": (45, 115, 200),
    "RGB-only": (235, 140, 40),
    "A": (140, 80, 180),
    "B": (20, 150, 160),
    "right hand": (45, 115, 200),
    "left hand": (235, 140, 40),
}
_GREY = (122, 133, 144)
_HEAT = ((0.0, "#fffbe6"), (0.5, "#fdc37a"), (1.0, "#ef6a3a"))
"""Colours of errors, light enough for black letters."""
_KNUCKLE = dict(zip(FINGERS, ((-1.3, 1.5), (-1.15, 3.9), (-0.1, 4.1), (0.95, 3.9), (1.9, 3.4)), strict=True))
"""Where the knuckles of a drawn right hand lie, seen from its back; the wrist is the origin."""
_ALONG = dict(
    zip(FINGERS, ((-0.68, 1.15), (-0.19, 1.35), (-0.02, 1.35), (0.15, 1.35), (0.31, 1.35)), strict=True)
)
"""Which way the fingers point."""
_LENGTH = dict(zip(FINGERS, (1.0, 1.05, 1.15, 1.05, 0.85), strict=True))


def tint(name: str) -> tuple[int, int, int]:
    """RGB of all that belongs to a result, in figures, pictures and 3D; grey for what has none of its own."""
    return _TINTS.get(name, _GREY)


def colour(name: str) -> str:
    """The same as text."""
    return "rgb({}, {}, {})".format(*tint(name))


def plot(data: Sequence[Json], x: str, y: str, **layout: Json) -> dict[str, Json]:
    """A figure with titled axes."""
    return {
        "data": list(data),
        "layout": {
            "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
            "legend": {"orientation": "h", "y": -0.32, "yanchor": "top"},
            "hovermode": "x unified",
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
            **layout,
        },
    }


def line(
    name: str, x: Sequence[float], y: Sequence[float | None], shade: str, **more: Json
) -> dict[str, Json]:
    """A curve."""
    style = {"color": shade, "dash": more.pop("dash", "solid"), "width": 2}
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": style, **more,
    }  # fmt: skip


def shares(curves: Mapping[str, NDArray[np.float64]], thresholds_mm: NDArray[np.float64]) -> dict[str, Json]:
    """Share of correct joints over thresholds; a name that ends in `aligned` is dashed."""
    data = [
        line(name, thresholds_mm.tolist(), values.tolist(), colour(name.partition(",")[0]),
             dash="dot" if name.endswith("aligned") else "solid")
        for name, values in curves.items()
    ]  # fmt: skip
    axis = {"title": {"text": "share of the joints"}, "range": [0, 1], "tickformat": ".0%"}
    return plot(data, "within, mm", "", yaxis=axis)


def parts(means: Mapping[str, Sequence[tuple[float, float, int, float]]], x: str) -> dict[str, Json]:
    """Mean errors over parts of some property, see `src.evaluation.scored.means_over`."""
    data = []
    for name, rows in means.items():
        said = [f"{low:.3g} to {high:.3g}, n={count}" for low, high, count, _ in rows]
        middle = [(low + high) / 2 for low, high, _, _ in rows]
        drawn = line(name, middle, [error for *_, error in rows], colour(name), text=said)
        data.append(drawn | {"mode": "lines+markers", "hovertemplate": "%{y:.3f} mm (%{text})"})
    return plot(data, x, "MPJPE, mm", hovermode="closest")


def drawn_hand(errors_mm: Sequence[float], low: float, high: float) -> dict[str, Json]:
    """A right hand seen from its back, each joint with its error and in its colour.

    Args:
        errors_mm: J in `OPENPOSE21`.
        low: error of the lightest colour.
        high: error of the darkest.
    """
    places = [_place(name) for name in OPENPOSE21]
    bones: list[list[float | None]] = [[], []]
    for parent, child in OPENPOSE_BONES:
        for axis in (0, 1):
            bones[axis] += [places[parent][axis], places[child][axis], None]
    skeleton = {
        "type": "scatter", "mode": "lines", "x": bones[0], "y": bones[1], "hoverinfo": "skip",
        "line": {"color": "#c3cad2", "width": 10},
    }  # fmt: skip
    marker = {
        "size": 34, "color": list(errors_mm), "colorscale": _HEAT, "cmin": low, "cmax": high,
        "line": {"color": "#5b6773", "width": 1}, "colorbar": {"title": {"text": "mm"}, "thickness": 12},
    }  # fmt: skip
    joints = {
        "type": "scatter", "mode": "markers+text", "x": [p[0] for p in places], "y": [p[1] for p in places],
        "text": [f"{error:.1f}" for error in errors_mm], "textfont": {"size": 11}, "marker": marker,
        "hovertext": [f"{name}: {e:.3f} mm" for name, e in zip(OPENPOSE21, errors_mm, strict=True)],
        "hoverinfo": "text",
    }  # fmt: skip
    off = {"visible": False}
    figure = plot([skeleton, joints], "", "", showlegend=False, hovermode="closest")
    figure["layout"] |= {
        "xaxis": off, "yaxis": {**off, "scaleanchor": "x"}, "margin": {"l": 0, "r": 0, "t": 10, "b": 10},
    }  # fmt: skip
    return figure


def _place(joint: str) -> tuple[float, float]:
    """Where a joint of the drawn hand lies."""
    if joint == "wrist":
        return 0.0, 0.0
    finger, _, number = joint.partition("_")
    steps = (int(number) - 1) * _LENGTH[finger]
    x, y = _KNUCKLE[finger]
    along_x, along_y = _ALONG[finger]
    return x + steps * along_x, y + steps * along_y


def histogram(columns: Mapping[str, NDArray[np.float64]], x: str) -> dict[str, Json]:
    """How often each value is there; counted here, so that 20,000 values are not in the page."""
    known = {name: values[np.isfinite(values)] for name, values in columns.items()}
    every = np.concatenate([np.zeros(1), *known.values()])
    edges = np.linspace(every.min(), max(float(np.quantile(every, 0.995)), every.min() + 1e-6), 41)
    data = []
    for name, values in known.items():
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        data.append({
            "type": "bar", "name": name, "x": ((edges[1:] + edges[:-1]) / 2).tolist(), "y": counts.tolist(),
            "marker": {"color": colour(name)}, "opacity": 0.7,
        })  # fmt: skip
    return plot(data, x, "samples", barmode="overlay")
