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


@torch.no_grad()
def picture_page(path: Path, batch: HandBatch, prediction: Prediction, *, limit: int) -> NDArray[np.uint8]:
    """Draw the first samples of a batch, truth on the left and prediction on the right, and write the page.

    Args:
        path: .jpg or .png.
        batch: any device.
        prediction: of that batch.
        limit: samples at most.

    Returns:
        (H, W, 3) uint8 RGB, the page.
    """
    count = min(limit, batch.size)
    truth = batch.joints_crop_px[:count].float().cpu().numpy()
    predicted_px = (
        project(prediction.hand.joints_cam_m[:count], batch.intrinsics_crop_px[:count]).float().cpu().numpy()
    )
    error = (
        torch.linalg.vector_norm(
            prediction.hand.joints_root_m[:count] - batch.joints_root_m[:count], dim=-1
        ).mean(-1)
        * 1000
    )
    rgb = batch.rgb[:count].float().cpu().numpy()
    index, millimetres = batch.sample_index[:count].tolist(), error.tolist()
    tiles = [
        truth_and_prediction(
            picture_from_network(rgb[i]),
            truth[i],
            predicted_px[i],
            f"sample {index[i]}: {millimetres[i]:.1f} mm",
        )
        for i in range(count)
    ]
    page = grid(tiles, columns=max(1, math.isqrt(count)))
    write_picture(path, page)
    return page
