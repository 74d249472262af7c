"""Made-up validations that every rank can make by itself: samples, meshes, and inputs with known answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from src.evaluation import metrics
from src.evaluation.collect import MESH_USABLE, EvaluationShard
from src.runtime.seed import stream

MESH_COLUMNS = ("mpvpe_mm", "pa_mpvpe_mm", MESH_USABLE)
"""What `mesh_columns` computes."""

_HAND_M = 0.05
_ERROR_M = 0.02
_VERTICES = 778


@dataclasses.dataclass(frozen=True)
class Samples:
    """Made-up validation: (N, 21, 3) float32 metres, weights, losses."""

    pred: Tensor
    target: Tensor
    conf: Tensor
    loss: Tensor

    def add_to(
        self, shard: EvaluationShard, batch: range, columns: Mapping[str, Tensor] | None = None
    ) -> None:
        """Give a shard the samples of a batch; `columns`: name -> (B,), as its `add` takes them."""
        rows = slice(batch.start, batch.stop)
        shard.add(
            sample_index=torch.arange(batch.start, batch.stop, device=self.loss.device),
            pred_joints_m=self.pred[rows],
            target_joints_m=self.target[rows],
            conf=self.conf[rows],
            loss=self.loss[rows],
            columns=columns,
        )


def make_samples(num_samples: int, seed: int) -> Samples:
    """Seeded samples, the same on every rank."""
    random = stream(seed, "distributed-evaluation-proof")
    target = random.normal(0.0, _HAND_M, (num_samples, 21, 3)) + random.normal(0.0, 0.1, (num_samples, 1, 3))
    target[..., 2] += 0.6
    pred = target + random.normal(0.0, _ERROR_M, target.shape)
    loss = random.gamma(2.0, 2.0, num_samples)
    return Samples(
        pred=torch.from_numpy(pred.astype(np.float32)),
        target=torch.from_numpy(target.astype(np.float32)),
        conf=torch.ones(num_samples, 21),
        loss=torch.from_numpy(loss.astype(np.float32)),
    )


def mesh_columns(samples: Samples, batch: range, seed: int) -> dict[str, Tensor]:
    """Scores of made-up meshes of a batch: (B, 778, 3) are made, scored and forgotten where they are."""
    random = stream(seed, "distributed-evaluation-proof-meshes", batch.start)
    wrists = samples.target[batch.start : batch.stop, 0].numpy()
    pred_wrists = samples.pred[batch.start : batch.stop, 0].numpy()
    target = wrists[:, None] + random.normal(0.0, _HAND_M, (len(batch), _VERTICES, 3))
    pred = target + random.normal(0.0, _ERROR_M, target.shape)
    rows = metrics.mesh_rows(pred, target, pred_wrists, wrists)
    return {
        "mpvpe_mm": torch.from_numpy(rows["mpvpe_mm"]),
        "pa_mpvpe_mm": torch.from_numpy(rows["pa_mpvpe_mm"]),
        MESH_USABLE: torch.ones(len(batch), dtype=torch.float64),
    }


def known_answers() -> bool:
    """Whether the metrics give what they must on inputs with a known answer."""
    hand = stream(0, "known-answers").normal(0.0, _HAND_M, (4, 21, 3))
    turned = 1.7 * hand[:, :, [1, 2, 0]] + 0.3  # a cyclic exchange of axes is a proper rotation
    mirrored = hand * np.array([-1.0, 1.0, 1.0])
    return bool(
        metrics.mpjpe_mm(hand, hand).max() == 0.0
        and metrics.pa_mpjpe_mm(turned, hand).max() < 1e-9
        and metrics.mpjpe_mm(turned, hand).min() > 1.0
        and metrics.pa_mpjpe_mm(mirrored, hand).min() > 1.0
        and math.isclose(metrics.mean(metrics.mpjpe_mm(hand + 1.0, hand)), 0.0, abs_tol=1e-9)
    )
