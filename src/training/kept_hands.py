"""Hands that a validation predicted, kept on the rank that predicted them: a few of them are looked at later.

Legend: B batch, K kept hands. Metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.hand.mano import ManoLayer
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, Prediction

_PARTS = {"global_orient": (3, 3), "hand_pose": (15, 3, 3), "betas": (10,), "root_cam_m": (3,)}
"""What a mesh is posed from, crop camera, and its shape; behind it stands how that camera is turned."""


class KeptHands:
    """Parameters of this rank's predictions, 166 numbers a sample, on the device that made them."""

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._parameters: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: HandBatch, prediction: Prediction) -> None:
        """Keep a batch; nothing is waited for."""
        parts = [getattr(prediction.hand, name).flatten(1).float() for name in _PARTS]
        parts.append(batch.rot_crop_from_img.flatten(1))
        self._index.append(batch.sample_index)
        self._parameters.append(torch.cat(parts, dim=1))

    def of(self, samples: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Those of `samples` that this rank predicted: sample -> (166,) parameters."""
        if not self._index:
            return {}
        index = torch.cat(self._index).cpu()
        rows = torch.isin(index, torch.tensor(list(samples), dtype=index.dtype)).nonzero()[:, 0]
        kept = torch.cat(self._parameters)[rows.to(self._parameters[0].device)].cpu().numpy()
        return dict(zip(index[rows].tolist(), kept, strict=True))

    def gather(self, samples: Sequence[int], context: DistContext) -> dict[int, NDArray[np.float32]]:
        """Those of all ranks; every rank calls it with the same samples."""
        found: dict[int, NDArray[np.float32]] = {}
        for part in context.gather_objects(self.of(samples), "collecting hands to look at"):
            found |= part
        return found


@torch.no_grad()
def meshes_of(parameters: NDArray[np.float32], hand: ManoLayer) -> NDArray[np.float32]:
    """Pose kept hands.

    Args:
        parameters: (K, 166) as `KeptHands.of` gives them.
        hand: the hand model, on any device.

    Returns:
        (K, 778, 3) vertices, image camera.
    """
    shapes = {**_PARTS, "turned": (3, 3)}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    split = torch.split(torch.from_numpy(parameters).to(hand.faces.device), sizes, dim=1)
    parts = {
        name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), split, strict=True)
    }
    root, turned = parts.pop("root_cam_m"), parts.pop("turned")
    posed = hand(**parts, translation_m=root - hand.rest_root_m(parts["betas"]))
    vertices: NDArray[np.float32] = (posed.vertices_m @ turned).cpu().numpy()  # rows: times R is R^-1
    return vertices
