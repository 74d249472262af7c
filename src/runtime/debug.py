"""The debug lines that users grep: their text is a contract, so it is written here and nowhere else.

All values are in millimetres except the picture and depth ranges, which are in the network's input units.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, LossTerms, Prediction

_log = get_logger("debug")

TERM_UNITS = {
    "joints_3d": "x 100 mm",
    "joints_canonical": "x 100 mm",
    "vertices": "x 100 mm",
    "joints_2d": "x 10 % of the crop",
    "rotations": "squared matrix elements",
    "betas": "squared standard deviations",
    "prior": "squared deviations from the mean hand",
    "root": "x 10 % of the wrist's depth",
    "votes_3d": "x 100 mm",
    "votes_2d": "x 10 % of the crop",
    "heatmap": "x the divergence of even votes",
}
"""What one unit of a loss term is; `coarse_<term>` is the same of the hand before refinement."""


def debug_loss_enabled() -> bool:
    """True if the user set UTNET_DEBUG_LOSS=1."""
    return os.environ.get("UTNET_DEBUG_LOSS", "0") == "1"


def trace_enabled() -> bool:
    """True if the user wants tracebacks (UTNET_TRACE=1)."""
    return os.environ.get("UTNET_TRACE", "0") == "1"


@torch.no_grad()
def batch_lines(index: int, batch: HandBatch, prediction: Prediction) -> list[str]:
    """The lines of `[Debug Batch k]`.

    `GT centered by root` compares the labelled wrist with the wrist of the independent path (hand
    translation + J0(betas)): about 0 for absolute labels, hundreds for labels already relative to the wrist,
    tens when only one of label and root was augmented. Joints minus their own wrist would print the same
    number in all cases.

    Args:
        index: number of the batch in the epoch.
        batch: crop camera, metres.
        prediction: of that batch.
    """
    gt, pred = batch.joints_cam_m.float() * 1000, prediction.hand.joints_root_m.float() * 1000
    gap = (batch.joints_cam_m[:, 0] - batch.root_cam_m).float().abs() * 1000
    root = gt[0, 0].tolist()
    pred_root = (prediction.hand.root_cam_m[0].float() * 1000).tolist()
    return [
        f"[Debug Batch {index}]",
        f"  RGB range: [{batch.rgb.min():.3f}, {batch.rgb.max():.3f}]",
        f"  Depth range: [{batch.depth.min():.3f}, {batch.depth.max():.3f}]",
        f"  GT 3D joints mean: {gt.mean():.3f}, std: {_std(gt):.3f}",
        f"  Pred 3D joints mean: {pred.mean():.3f}, std: {_std(pred):.3f}",
        f"  GT root joint: [{root[0]:.3f}, {root[1]:.3f}, {root[2]:.3f}]",
        f"  Pred root joint: [{pred_root[0]:.3f}, {pred_root[1]:.3f}, {pred_root[2]:.3f}]",
        f"  GT centered by root mean: {gap.mean():.3f}, std: {_std(gap):.3f}",
    ]


class DebugBatches:
    """Logs `batch_lines` of the first batches of epoch 0, on rank 0.

    Every rank calls it with each batch and its prediction, and waits for the lines.
    """

    COUNT = 3
    """Batches that are shown."""

    def __init__(self, first: int, context: DistContext) -> None:
        """Args: `first`, number of the next batch in the epoch (a resumed run does not start at 0)."""
        self._next = first
        self._context = context

    def __call__(self, batch: HandBatch, prediction: Prediction) -> None:
        """Show this batch if it is one of the first."""
        if self._next < self.COUNT:
            if self._context.is_main:
                for line in batch_lines(self._next, batch, prediction):
                    _log.info(line)
            self._context.barrier("the debug lines of a batch")
        self._next += 1


@torch.no_grad()
def trace_loss_3d(
    pred_cam_m: Tensor,
    gt_cam_m: Tensor,
    pred_root_m: Tensor,
    gt_root_m: Tensor,
    per_element_m: Tensor,
    value: Tensor,
) -> None:
    """Log the lines of `[Debug 3D Loss]`.

    Args:
        pred_cam_m, gt_cam_m: (B, J, 3) camera frame, metres, before centring.
        pred_root_m, gt_root_m: (B, J, 3) wrist-relative, after centring.
        per_element_m: (B, J, 3) absolute difference that the loss is made of, metres.
        value: () the loss term itself.
    """

    def line(when: str, who: str, joints_m: Tensor) -> str:
        joints = joints_m.detach().float() * 1000
        return f"  {when} centering - {who} mean: {joints.mean():.3f}, std: {_std(joints):.3f}"

    error = per_element_m.detach().float() * 1000
    for text in (
        "[Debug 3D Loss]",
        line("Before", "Pred", pred_cam_m),
        line("Before", "GT", gt_cam_m),
        line("After", "Pred", pred_root_m),
        line("After", "GT", gt_root_m),
        f"  Per-element loss mean: {error.mean():.3f}, max: {error.max():.3f}",
        f"  Loss value: {float(value):.6f}",
    ):
        _log.info(text)


@torch.no_grad()
def loss_table_lines(step: int, terms: LossTerms) -> list[str]:
    """The lines of `[Debug Loss Terms]`: value in its unit, weight, and share of the total.

    Args:
        step: optimiser steps done.
        terms: of this rank's last batch.
    """
    total = float(terms.total)
    lines = [f"[Debug Loss Terms] step {step}, total {total:.4f}"]
    for name, tensor in terms.values.items():
        value, weight = float(tensor), terms.weights[name]
        unit = TERM_UNITS.get(name.removeprefix("coarse_"), "of no stated unit")
        share = 100 * weight * value / total if total else 0.0
        lines.append(f"  {name}: {value:.4f} {unit}, weight {weight:g}, share {share:.1f} %")
    return lines


def _std(values: Tensor) -> Tensor:
    """Population standard deviation: defined for one element too."""
    return values.std(correction=0)
