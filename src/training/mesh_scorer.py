"""Errors of predicted meshes and of the hand before refinement, computed on the rank that predicted them.

Vertices never travel.

Legend: B batch, V 778 vertices, J 21 joints.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.evaluation.collect import MESH_USABLE
from src.evaluation.metrics import mesh_rows, mpjpe_mm, pa_mpjpe_mm
from src.evaluation.official import MESH_SCORES, official_mesh_rows
from src.evaluation.submission import points_to_official
from src.hand.mano import ManoLayer
from src.schema import HandBatch, Prediction

_MESH_NAMES = ("mpvpe_mm", "pa_mpvpe_mm")
_COARSE_NAMES = ("coarse_mpjpe_mm", "coarse_pa_mpjpe_mm")


class PublishedTruth(Protocol):
    """A data set that may know the official ground truth of its samples."""

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """(B, J, 3) `OPENPOSE21`, image camera, metres; None without ground truth."""

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """(B, V, 3) image camera, metres; None without ground truth."""


class MeshScorer:
    """Scores meshes against the published ground truth where there is one, else against decoded labels."""

    def __init__(
        self, hand: ManoLayer, truth: PublishedTruth, *, official: bool, refined: bool = True
    ) -> None:
        """Choose the columns.

        Args:
            hand: decodes labels, on the device of the batches.
            truth: knows the published meshes, if there are any.
            official: the split is HO3D's own.
            refined: the network refines; else nothing is said of a hand before.
        """
        self._hand = hand
        self._truth = truth
        self._official = official
        self.columns: tuple[str, ...] = (MESH_USABLE, *_MESH_NAMES, *(_COARSE_NAMES if refined else ()))
        if official:
            published = truth.truth_vertices(np.empty(0, np.int64)) is not None
            self.columns = (*self.columns, *MESH_SCORES) if published else ()

    @torch.no_grad()
    def __call__(self, batch: HandBatch, prediction: Prediction) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            batch: labels, crop camera.
            prediction: crop camera.

        Returns:
            a (B,) float64 CPU tensor for each of `columns`; nan where a sample's mesh has no label.
        """
        if not self.columns:
            return {}
        if self._official:
            rows = self._against_truth(batch, prediction)
            usable = np.ones(batch.size, np.bool_)
        else:
            rows = self._against_labels(batch, prediction)
            usable = batch.mano_valid.numpy(force=True)
        scored = {name: np.where(usable, values, np.nan) for name, values in rows.items()}
        scored[MESH_USABLE] = usable.astype(np.float64)
        return {name: torch.from_numpy(scored[name]) for name in self.columns}

    def _against_labels(self, batch: HandBatch, prediction: Prediction) -> dict[str, NDArray[np.float64]]:
        """Distances to what the labelled parameters decode to; both are in the crop camera."""
        target = self._hand(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
        hand, wrist = prediction.hand, target.joints_m[:, 0]
        ours = mesh_rows(hand.vertices_cam_m, target.vertices_m, hand.joints_cam_m[:, 0], wrist)
        return ours | _coarse_rows(prediction.coarse.joints_root_m, batch.joints_root_m)

    def _against_truth(self, batch: HandBatch, prediction: Prediction) -> dict[str, NDArray[np.float64]]:
        """Distances to the published meshes, also as the official evaluation takes them."""
        rows = batch.sample_index.numpy(force=True)
        vertices, joints = self._truth.truth_vertices(rows), self._truth.truth_joints(rows)
        assert vertices is not None
        assert joints is not None
        hand = prediction.hand
        predicted = batch.to_image_camera(hand.vertices_cam_m).float().numpy(force=True)
        wrist = batch.to_image_camera(hand.joints_cam_m).float()[:, 0]
        ours = mesh_rows(predicted, vertices, wrist, joints[:, 0])
        ours |= _coarse_rows(batch.to_image_camera(prediction.coarse.joints_cam_m), joints)
        return ours | official_mesh_rows(points_to_official(predicted), points_to_official(vertices))


def _coarse_rows(joints_m: Tensor, target_m: Tensor | NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Errors of (B, J, 3) joints of the hand before refinement; what it brings is the difference."""
    return {
        "coarse_mpjpe_mm": mpjpe_mm(joints_m, target_m),
        "coarse_pa_mpjpe_mm": pa_mpjpe_mm(joints_m, target_m),
    }
