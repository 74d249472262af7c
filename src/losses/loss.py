"""All loss terms: means over what is labelled, each of order 1 when training starts.

A term is a mean over a sample's labelled entries, then over the samples that have any: duplicating the batch
changes nothing, and a sample with few labelled joints counts as much as one with all. Units are divided out
by the size of a hand (0.1 m, 0.1 of the crop, 0.1 of the wrist's depth). Computed in float32; nothing here
asks the device for a value, and what is not finite stays so.

Legend: B batch, J joints, V vertices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.config import LossConfig
from src.geometry.camera import project
from src.geometry.rotation import rotation_from_aa
from src.hand.mano import ManoLayer
from src.runtime.debug import trace_loss_3d
from src.schema import HandBatch, HandEstimate, LossTerms, Prediction

HAND_M = 0.1
"""Metres of error that count 1."""

SMOOTH_M = 0.01
"""Below this error the 3D terms are quadratic, above it they grow linearly."""

CROP_SHARE = 0.1
"""Share of the crop's side that counts 1."""

DEPTH_SHARE = 0.1
"""Share of the wrist's depth that counts 1."""

BETAS, PRIOR = 0.02, 0.005
"""Weights of shape and prior: both are squares of standard deviations, and a hint beside what is seen."""

ROOT = 0.15
"""Weight of the wrist's depth, which no score reads but `joints_2d` needs."""

COARSE = 0.5
"""Factor on all terms of the hand before refinement: it is a step on the way to the one that is scored."""

_NEAR_M = 0.02
"""Joints nearer than this are projected as if they stood there; behind the camera no pixel means anything."""


@dataclass(frozen=True)
class _Term:
    """One term before the mean over samples."""

    value: Tensor
    """(B,) mean over the sample's labelled entries; 0 where there are none."""
    has: Tensor
    """(B,) bool, the sample has labels for this term."""


class HandLoss(nn.Module):
    """The training loss. Holds no parameters; move it to the device like a module.

    Args:
        config: weights; a term of weight 0 is left out.
        mano: decodes the labelled parameters into target vertices.
    """

    mean_pose: Tensor

    def __init__(self, config: LossConfig, mano: ManoLayer) -> None:
        super().__init__()
        self.mano = mano
        of_hand = {
            "joints_3d": config.joints_3d,
            "joints_canonical": config.joints_canonical,
            "vertices": config.vertices,
            "joints_2d": config.joints_2d,
            "rotations": config.rotations,
            "betas": BETAS,
            "prior": PRIOR,
            "root": ROOT,
        }
        coarse = {f"coarse_{name}": COARSE * weight for name, weight in of_hand.items()}
        votes = {"votes_3d": config.joints_3d, "votes_2d": config.joints_2d, "heatmap": config.heatmap}
        self.weights = {name: weight for name, weight in (of_hand | coarse | votes).items() if weight}
        mean = rotation_from_aa(mano.hands_mean.detach().reshape(15, 3).float())
        self.register_buffer("mean_pose", mean, persistent=False)

    def forward(self, prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
        """The loss of a batch.

        Args:
            prediction: of this batch, crop camera.
            batch: labels, crop camera.
            trace: log the lines of `[Debug 3D Loss]`, which waits for the device.

        Returns:
            Total, and unweighted values and weights by name.
        """
        terms = self._terms(prediction, batch)
        values = {name: term.value.sum() / term.has.sum().clamp_min(1) for name, term in terms.items()}
        total = _anchor(prediction).sum() + sum(self.weights[name] * value for name, value in values.items())
        if trace and "joints_3d" in values:
            hand, error = prediction.hand, (prediction.hand.joints_root_m - batch.joints_root_m).abs()
            before, after = (hand.joints_cam_m, batch.joints_cam_m), (hand.joints_root_m, batch.joints_root_m)
            trace_loss_3d(*before, *after, error, values["joints_3d"])
        return LossTerms(total, values, self.weights)

    def per_sample(self, prediction: Prediction, batch: HandBatch) -> Tensor:
        """(B,) the same total for each sample; their mean is `total` where all samples have all labels."""
        terms = self._terms(prediction, batch)
        weighted = [self.weights[name] * term.value for name, term in terms.items()]
        return _anchor(prediction) + torch.stack(weighted).sum(0)

    def _terms(self, prediction: Prediction, batch: HandBatch) -> dict[str, _Term]:
        """Terms by name, in the order of the weights."""
        with torch.autocast(batch.rgb.device.type, enabled=False):
            vertices, conf = self._target_vertices(batch), batch.joints_conf
            terms = self._terms_of(prediction.hand, batch, vertices)
            coarse = terms  # without refinement the two hands are one
            if prediction.coarse is not prediction.hand:
                coarse = self._terms_of(prediction.coarse, batch, vertices)
            terms = terms | {f"coarse_{name}": term for name, term in coarse.items()}
            terms["votes_3d"] = _points_3d(prediction.vote_joints_root_m, batch.joints_root_m, conf)
            terms["votes_2d"] = _points_2d(prediction.vote_joints_unit, batch.joints_unit, conf)
            terms["heatmap"] = _heatmap(prediction.vote_logits, batch)
        return {name: terms[name] for name in self.weights}

    def _terms_of(self, hand: HandEstimate, batch: HandBatch, vertices_m: Tensor) -> dict[str, _Term]:
        """Terms of one hand, with the (B, V, 3) vertices that it should have."""
        has, conf = batch.mano_valid, batch.joints_conf
        orient, pose, betas = (_known(x, has) for x in (batch.global_orient, batch.hand_pose, batch.betas))
        canonical = _known(batch.joints_root_m, conf > 0) @ orient
        of_mesh = has[:, None].expand(vertices_m.shape[:2]).float()
        wrist_known = conf[:, 0] > 0
        z = torch.where(wrist_known, batch.root_cam_m[:, 2], 1.0)
        # Where terms are made here is the order in which their gradients add up.
        return {
            "joints_3d": _points_3d(hand.joints_root_m, batch.joints_root_m, conf),
            # Row vectors: j R is the joint with the wrist's rotation R undone. Fingers alone are judged.
            "joints_canonical": _points_3d(
                hand.joints_root_m @ hand.global_orient, canonical, conf * has[:, None]
            ),
            "vertices": _points_3d(hand.vertices_root_m, vertices_m, of_mesh),
            "joints_2d": _points_2d(_projected_unit(hand, batch), batch.joints_unit, conf),
            "rotations": _masked(_square(hand.global_orient - orient) + _square(hand.hand_pose - pose), has),
            "betas": _masked(_square(hand.betas - betas), has),
            "prior": _masked(
                _square(hand.hand_pose - self.mean_pose) + _square(hand.betas), torch.ones_like(has)
            ),
            # The wrist's depth; where it stands across the picture is what joints_2d measures.
            "root": _masked((hand.root_cam_m[:, 2] - z).abs() / z / DEPTH_SHARE, wrist_known),
        }

    @torch.no_grad()
    def _target_vertices(self, batch: HandBatch) -> Tensor:
        """(B, V, 3) wrist-relative vertices of the labels; the rest pose where there are none."""
        has = batch.mano_valid
        eye = torch.eye(3, device=has.device)
        orient = torch.where(has[:, None, None], batch.global_orient, eye)
        pose = torch.where(has[:, None, None, None], batch.hand_pose, eye)
        out = self.mano(orient, pose, _known(batch.betas, has), torch.zeros_like(batch.translation_m))
        result: Tensor = out.vertices_m - out.joints_m[:, :1]
        return result


def _square(difference: Tensor) -> Tensor:
    """(B, ...) -> (B,) mean square."""
    return difference.square().mean(dim=tuple(range(1, difference.ndim)))


def _projected_unit(hand: HandEstimate, batch: HandBatch) -> Tensor:
    """(B, J, 2) joints as `joints_unit`: pixels over (W, H), once, minus 0.5."""
    joints = hand.joints_cam_m
    height, width = batch.rgb.shape[-2:]
    in_front = torch.cat([joints[..., :2], joints[..., 2:].clamp_min(_NEAR_M)], dim=-1)
    pixels = project(in_front, batch.intrinsics_crop_px)
    return torch.stack([pixels[..., 0] / width, pixels[..., 1] / height], dim=-1) - 0.5


def _points_3d(predicted_m: Tensor, target_m: Tensor, weight: Tensor) -> _Term:
    """Smooth L1 of (B, P, 3) points, metres, weighted by (B, P)."""
    error = (predicted_m - _known(target_m, weight > 0)) / HAND_M
    loss = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=SMOOTH_M / HAND_M)
    return _weighted(loss.mean(dim=-1), weight)


def _points_2d(predicted_unit: Tensor, target_unit: Tensor, weight: Tensor) -> _Term:
    """L1 of (B, J, 2) places in the crop, weighted by (B, J)."""
    error = (predicted_unit - _known(target_unit, weight > 0)).abs() / CROP_SHARE
    return _weighted(error.mean(dim=-1), weight)


def _heatmap(logits: Tensor, batch: HandBatch) -> _Term:
    """Divergence of (B, J, h, w) votes from a Gaussian of one cell around the labelled joints.

    1 is log(h w), the most by which even votes can differ. Joints outside the crop have no map.
    """
    h, w = logits.shape[-2:]
    height, width = batch.rgb.shape[-2:]
    inside = (batch.joints_unit.abs() < 0.5).all(dim=-1) & (batch.joints_conf > 0)
    place = _known(batch.joints_unit, inside)
    x, y = _gaussian(place[..., 0], w, width // w), _gaussian(place[..., 1], h, height // h)
    log_share = logits.float().flatten(2).log_softmax(dim=-1).view_as(logits)
    cross = -(torch.einsum("bjhw,bjw->bjh", log_share, x) * y).sum(dim=-1)
    own = torch.special.entr(x).sum(dim=-1) + torch.special.entr(y).sum(dim=-1)
    return _weighted((cross - own) / math.log(h * w), batch.joints_conf * inside)


def _gaussian(place_unit: Tensor, count: int, stride: int) -> Tensor:
    """(...) places in [-0.5, 0.5] -> (..., count) shares of cells of `stride` pixels, deviation one cell."""
    # Pixel centres are integers, so cell k is centred on pixel stride k + (stride - 1) / 2.
    middle = (place_unit[..., None] + 0.5) * count - (stride - 1) / (2 * stride)
    cells = torch.arange(count, device=place_unit.device)
    return (-0.5 * (cells - middle).square()).softmax(dim=-1)


def _known(target: Tensor, has: Tensor) -> Tensor:
    """Labels with zeros where there are none: an absent label may be nan, and 0 x nan is nan."""
    return torch.where(has.reshape(has.shape + (1,) * (target.ndim - has.ndim)), target, 0.0)


def _weighted(error: Tensor, weight: Tensor) -> _Term:
    """Mean of (B, P) errors with (B, P) weights over each sample."""
    total = weight.sum(dim=1)
    has = total > 0
    return _Term((error * weight).sum(dim=1) / torch.where(has, total, 1.0), has)


def _masked(value: Tensor, has: Tensor) -> _Term:
    """(B,) values that count where `has`."""
    return _Term(value * has.to(value.dtype), has)


def _anchor(prediction: Prediction) -> Tensor:
    """(B,) zeros that depend on every output: no weight of 0 leaves a parameter out of the backward pass,
    which distributed training without a search for unused parameters needs, and no absent label hides a nan.
    """
    outputs = [prediction.vote_joints_root_m, prediction.vote_joints_unit]
    for hand in (prediction.hand, prediction.coarse):
        outputs += [hand.joints_root_m, hand.vertices_root_m, hand.betas, hand.root_cam_m]
    return torch.stack([0.0 * output.flatten(1).sum(dim=1) for output in outputs]).sum(dim=0)
