"""The picture page of a validation: crops with the true and the predicted skeleton."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from src.geometry.camera import project
from src.render.pictures import grid, picture_from_network, truth_and_prediction, write_picture
from src.schema import HandBatch, Prediction


class PicturePage:
    """Collects a few samples of each batch, spread over the whole validation, and writes them as one
    picture.
    """

    def __init__(self, limit: int, batches: int) -> None:
        """Args: `limit` samples on the page, at most; `batches` that will be added."""
        self._limit = limit
        self._batches = max(1, batches)
        self._seen = 0
        self._tiles: list[NDArray[np.uint8]] = []

    @torch.no_grad()
    def add(self, batch: HandBatch, prediction: Prediction) -> None:
        """Draw this batch's share: truth on the left, prediction on the right, evenly spaced samples."""
        self._seen += 1
        due = math.ceil(self._limit * self._seen / self._batches) - len(self._tiles)
        count = min(due, batch.size, self._limit - len(self._tiles))
        if count <= 0:
            return
        rows = torch.arange(count, device=batch.rgb.device) * batch.size // count
        hand = prediction.hand
        predicted_px = project(hand.joints_cam_m[rows], batch.intrinsics_crop_px[rows]).float().cpu().numpy()
        error_m = torch.linalg.vector_norm(hand.joints_root_m[rows] - batch.joints_root_m[rows], dim=-1).mean(
            -1
        )
        rgb, truth_px = (
            batch.rgb[rows].float().cpu().numpy(),
            batch.joints_crop_px[rows].float().cpu().numpy(),
        )
        captions = zip(batch.sample_index[rows].tolist(), (error_m * 1000).tolist(), strict=True)
        for i, (index, millimetres) in enumerate(captions):
            caption = f"sample {index}: {millimetres:.1f} mm"
            self._tiles.append(
                truth_and_prediction(picture_from_network(rgb[i]), truth_px[i], predicted_px[i], caption)
            )

    def write(self, path: Path) -> NDArray[np.uint8] | None:
        """Write the page (.jpg or .png) and return it, (H, W, 3) uint8 RGB; None if nothing was added."""
        if not self._tiles:
            return None
        page = grid(self._tiles, columns=max(1, math.isqrt(len(self._tiles))))
        write_picture(path, page)
        return page
