"""The model card of an exported network: its training, its scores, what it wants, and who may use it.

It says what the checkpoint, its run folder and the measurements of the export say, and where they say nothing
it says that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataloader.crop.camera import CENTRE_SHARE, HAND_REACH_M, HAND_SIDE_M, NEAREST_PERCENTILE
from dataloader.synthetic.found import RECORD_NAME
from src.config import RunConfig
from src.errors import plain_text
from src.hand.mano_assets import HandAsset
from src.predict.graph import NORMALISED_INPUTS, RAW_INPUTS
from src.predict.predictor import ROOT, Facts
from src.training.checkpoints.checkpoint import commit

MANO_TERMS = (
    "The files CONTAIN MANO's arrays (template, shape and pose directions, skinning): they fall under MANO's "
    "licence (https://mano.is.tue.mpg.de, research only) and must not be passed on."
)
HO3D_TERMS = (
    "Nothing here says that the data which the weights were trained on are of this program's generator. If "
    "they are HO3D's, its terms hold: research only."
)

OUTPUTS = {
    "joints_m": "(B, 21, 3) float32, metres: wrist, then thumb to pinky, each from knuckle to tip",
    "vertices_m": "(B, 778, 3) float32, metres: the hand model's vertices",
    "global_orient": "(B, 3, 3) float32, rotation: hand model's rest frame -> image camera",
    "hand_pose": "(B, 15, 3, 3) float32, local rotations: index, middle, pinky, ring, thumb, three each",
    "betas": "(B, 10) float32, the hand model's shape",
    "translation_m": "(B, 3) float32, metres: wrist = translation + the model's rest wrist of that shape",
}
"""Outputs of all files."""


@dataclass(frozen=True)
class Source:
    """What is known of a network before it is exported."""

    path: Path
    """Of the checkpoint."""
    state: Mapping[str, Any]
    """Its content."""
    config: RunConfig
    """Its settings."""
    asset: HandAsset
    """Its hand."""
    run: Mapping[str, Any]
    """What its run folder says: `train` and `val`, lines about the data; `scores`; empty where it is not
    there."""


def first_part(source: Source, facts: Facts, parameters: int) -> dict[str, Any]:
    """The card as it travels inside the files: all but what is measured on them."""
    state, config = source.state, source.config
    progress, root = state["progress"], config.dataset.root_dir
    beside = source.path.absolute().parents[min(3, len(source.path.absolute().parents) - 1)]  # of runs/
    generated = any((place / RECORD_NAME).is_file() for place in (root, ROOT / root, beside / root))
    return {
        "what": "UTNet: one RGB-D crop of a hand -> its joints, mesh and MANO parameters in metres",
        "checkpoint": {
            "file": source.path.name,
            "step": state["step"],
            "epochs": progress["epoch"],
            "weights": "averaged" if state["ema"] else "plain",
            "commit": state["commit"],
            "torch": state.get("torch"),
        },
        "network": {
            "preset": config.model.preset,
            "parameters": parameters,
            "image_size": list(facts.image_size),
            "box_scale": facts.box_scale,
            "arithmetic": "float32",
        },
        "data": {
            "layout": f"HO3D {config.dataset.version}",
            "root": root.name,
            "generated_by_this_program": generated or None,
            "split": f"by {config.split.by}",
            "train": source.run.get("train"),
            "val": source.run.get("val"),
        },
        "scores": _scores(source),
        "hand_model": {
            "kind": "procedural stand-in" if source.asset.is_standin else "MANO",
            "fingerprint": source.asset.fingerprint,
        },
        "licences": _licences(source, generated),
        "inputs": {"utnet": dict(RAW_INPUTS), "utnet_normalised": dict(NORMALISED_INPUTS)},
        "outputs": dict(OUTPUTS),
        "contract": _contract(facts),
        "limits": _limits(source),
        "exported_by": {"commit": commit(), "torch": str(torch.__version__)},
    }


def _scores(source: Source) -> dict[str, Any]:
    """Scores of this checkpoint and of its run, as far as they are known."""
    progress = source.state["progress"]
    known = progress["best_epoch"] >= 0
    best = {"mpjpe_mm": progress["best_mpjpe_mm"], "epoch": progress["best_epoch"]} if known else None
    return {"best_of_run": best, "split": source.config.validation.split, **source.run.get("scores", {})}


def _licences(source: Source, generated: bool) -> list[str]:
    """What others may do with the files."""
    terms = ["The program that computes them is MIT."]
    if source.asset.is_standin:
        terms.append("The hand inside is this program's procedural stand-in, not MANO: no licence holds it.")
    else:
        terms.append(MANO_TERMS)
    if not generated:
        terms.append(HO3D_TERMS)
    if (pretrained := source.config.model.pretrained) is not None:
        terms.append(f"The backbone began as {Path(pretrained).name}, whose licence holds too.")
    return terms


def _contract(facts: Facts) -> list[str]:
    """How inputs are made and outputs are read; the numbers are those that training used."""
    height, width = facts.image_size
    return [
        f"Crops are {height} x {width} pixels (H x W). B, the number of hands, is free.",
        f"The box is that of the 21 joints in the picture. The crop is a square of {facts.box_scale:g} times "
        "its longer side, seen by the crop camera: a virtual camera at the same place, turned so that the "
        "box's centre lies on its axis (src/predict/crops.py makes it).",
        "Both cameras are OpenCV's: x right, y down, z forward. Pixel centres have whole numbers.",
        "Depth is z of the camera that took the picture, aligned to it, resampled by nearest neighbour; 0 "
        "where nothing was measured. Where depth_present is false depth is not read: give zeros.",
        f"z_ref_m: of the depths in the middle {CENTRE_SHARE:.0%} of the crop, along the crop camera's axis, "
        f"the median of those within {HAND_REACH_M:g} m of the {NEAREST_PERCENTILE:g} % nearest; without "
        f"depth {HAND_SIDE_M:g} m over the angle (radians) that the box fills.",
        "Outputs are right hands in the camera that took the picture. A left hand: mirror picture, depth, "
        "camera and box, and mirror what comes out.",
    ]


def _limits(source: Source) -> list[str]:
    """What the network does not do."""
    limits = [
        "It finds no hands and does not say how sure it is: a box without a hand gets a hand.",
        "It knows the cameras, skins, objects and rooms of its training data; others were not measured here.",
        "Without depth the distance comes from the size of the hand in the picture.",
    ]
    if source.asset.is_standin:
        limits.append("Shape parameters are the stand-in's and mean nothing to MANO.")
    return limits


def markdown(card: Mapping[str, Any], latency: Sequence[str], tolerance_mm: float) -> str:
    """The card to be read.

    Args:
        card: `first_part` with `parity` and `latency`.
        latency: lines of its table.
        tolerance_mm: what was asked of parity.
    """
    made, network, data, hand = card["checkpoint"], card["network"], card["data"], card["hand_model"]
    commits = card["exported_by"]
    unknown = "the checkpoint's run folder, which says it, was not beside the checkpoint"
    parts = [
        "# Model card",
        card["what"] + ".",
        f"- Checkpoint: {made['file']}, step {made['step']}, {made['epochs']} epochs, {made['weights']} "
        f"weights, code {made['commit'][:12]}",
        f"- Network: {network['preset']}, {network['parameters']:,} parameters, {network['arithmetic']}",
        f"- Hand model: {hand['kind']}, fingerprint {hand['fingerprint']}",
        "- Exported by code "
        + f"{commits['commit'][:12]}; "
        + ", ".join(f"{name} {version}" for name, version in commits.items() if name != "commit"),
        "\n## Licences",
        *(f"- {line}" for line in card["licences"]),
        "\n## Training data",
        f"- Folder {data['root']} in the layout of {data['layout']}, split {data['split']}"
        + ("; generated by this program" if data["generated_by_this_program"] else ""),
        f"- Trained on: {data['train'] or unknown}",
        f"- Validated on: {data['val'] or unknown}",
        "\n## Scores",
        *_score_lines(card["scores"]),
        "\n## Files",
        "`utnet.*` start from raw crops, `utnet_normalised.*` from normalised ones.\n",
        "| file | largest deviation from the network, mm | allowed |",
        "|---|---|---|",
        *(f"| {name} | {gap:.6f} | {tolerance_mm:g} |" for name, gap in card["parity"]["largest_mm"].items()),
        f"\nOver joints and vertices of {card['parity']['frames']}.",
        "\n## Latency",
        *latency,
        f"\nMedians on {card['machine']}. Without a row `compiled`, torch.compile was not asked for.",
        "\n## Inputs and outputs",
        *(f"- {line}" for line in card["contract"]),
        *(f"\n`{name}.*`\n" + _table(inputs) for name, inputs in card["inputs"].items()),
        "\nAll files answer\n" + _table(card["outputs"]),
        "\n## Limits",
        *(f"- {line}" for line in card["limits"]),
    ]
    return "\n".join("\n".join(map(plain_text, part.split("\n"))) for part in parts) + "\n"


def _score_lines(scores: Mapping[str, Any]) -> list[str]:
    """The section about scores."""
    lines = []
    if (best := scores["best_of_run"]) is not None:
        lines.append(
            f"- Best validation of the run up to here: MPJPE {best['mpjpe_mm']:.3f} mm, epoch "
            f"{best['epoch']} (counted from 0)"
        )
    if not scores.get("of_this_checkpoint"):
        missing = "no validation of this very step is in a run folder beside the checkpoint"
        return [*lines, f"- Scores with intervals and baselines are not known: {missing}."]
    lines += [
        f"\nThis checkpoint on split {scores['split']}, wrist-relative, means with 95 % intervals over "
        "motions (all cameras of a motion are one; too narrow with fewer than ten motions):\n",
        "| shown | MPJPE mm | PA-MPJPE mm | frames | motions |",
        "|---|---|---|---|---|",
    ]
    for shown, row in scores["of_this_checkpoint"].items():
        cells = " | ".join(_interval(row[name]) for name in ("mpjpe_mm", "pa_mpjpe_mm"))
        lines.append(f"| {shown} | {cells} | {row['frames']} | {row['motions']} |")
    if scores.get("baselines"):
        lines += ["\nBaselines on the same frames:\n", "| baseline | mm |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in scores["baselines"].items()]
    return lines


def _interval(found: Mapping[str, Any]) -> str:
    """`mean [low, high]`."""
    if found["low"] is None:
        return f"{found['mean']:.3f} (no interval: one motion)"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _table(rows: Mapping[str, str]) -> str:
    """Names and what they mean."""
    return "\n".join(["| name | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])
