"""One rank's part of a validation: rows in preallocated CPU arrays, and what went wrong in its loop.

Legend: n rows of this rank, B rows of a batch, J joints. Joints are `OPENPOSE21`, metres, absolute, in the
**image camera** (OpenCV): whoever fills a shard turns predictions back from the crop camera first. Rows may
come in any order.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor

from src.errors import CollectError, ShapeError

ROW_DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
"""What joints may be stored as; half precision is widened, never stored."""


class Guard:
    """Context manager that keeps an exception instead of letting it leave: `error` holds it afterwards.

    A rank that raised inside its loop must still reach the collection, or the others wait for it in vain.
    KeyboardInterrupt and SystemExit pass through.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


class EvaluationShard:
    """Rows of the samples that this rank evaluated; `evaluate` collects the shards of all ranks."""

    def __init__(self, capacity: int, num_joints: int = 21, *, dtype: torch.dtype = torch.float32) -> None:
        """Reserve `capacity` rows on the CPU.

        Args:
            capacity: rows that this rank will hold, >= 0.
            num_joints: J.
            dtype: float32 or float64, of joints and weights; every rank's must be the same.

        Raises:
            ShapeError: capacity below 0, no joints, or another dtype.
        """
        if capacity < 0 or num_joints < 1 or dtype not in ROW_DTYPES:
            raise ShapeError(
                f"EvaluationShard needs capacity >= 0, num_joints >= 1 and float32 or float64, "
                f"got {capacity}, {num_joints}, {dtype}"
            )
        self.num_joints = num_joints
        self.dtype = dtype
        self.capacity = capacity
        self.count = 0
        self._guard = Guard()
        self._sample_index = torch.empty(capacity, dtype=torch.int64)
        self._pred = torch.empty(capacity, num_joints, 3, dtype=dtype)
        self._target = torch.empty(capacity, num_joints, 3, dtype=dtype)
        self._conf = torch.empty(capacity, num_joints, dtype=dtype)
        self._loss = torch.empty(capacity, dtype=torch.float64)

    def guard(self) -> Guard:
        """Put the rank's loop inside: an exception becomes this rank's status, which stops every rank."""
        return self._guard

    @property
    def error(self) -> Exception | None:
        """What the guarded loop raised, or None."""
        return self._guard.error

    @torch.no_grad()
    def add(
        self,
        *,
        sample_index: Tensor,
        pred_joints_m: Tensor,
        target_joints_m: Tensor,
        conf: Tensor,
        loss: Tensor,
    ) -> None:
        """Copy the rows of a batch; the tensors given are left as they are.

        Args:
            sample_index: (B,) integers, rows of the split.
            pred_joints_m: (B, J, 3) any float dtype and device, image camera, metres.
            target_joints_m: (B, J, 3) as the prediction.
            conf: (B, J) weight of each label; 0 = the label does not exist.
            loss: (B,) per-sample loss.

        Raises:
            ShapeError: shapes are not these.
            CollectError: more rows than reserved.
        """
        size = int(sample_index.shape[0]) if sample_index.ndim == 1 else -1
        wanted = {
            "sample_index": (sample_index, (size,)),
            "pred_joints_m": (pred_joints_m, (size, self.num_joints, 3)),
            "target_joints_m": (target_joints_m, (size, self.num_joints, 3)),
            "conf": (conf, (size, self.num_joints)),
            "loss": (loss, (size,)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"EvaluationShard.add: {name} has shape {tuple(tensor.shape)}, want {shape}")
        if sample_index.is_floating_point():
            raise ShapeError(f"EvaluationShard.add: sample_index is {sample_index.dtype}, want integers")
        end = self.count + size
        if end > self.capacity:
            raise CollectError(f"EvaluationShard: {end} rows added, {self.capacity} reserved for this rank")
        for store, tensor in (
            (self._sample_index, sample_index),
            (self._pred, pred_joints_m),
            (self._target, target_joints_m),
            (self._conf, conf),
            (self._loss, loss),
        ):
            store[self.count : end].copy_(tensor.detach())
        self.count = end

    def sample_index(self) -> Tensor:
        """(n,) int64, rows of the split in the order they were added."""
        return self._sample_index[: self.count]

    def payload(self) -> dict[str, Tensor]:
        """What travels after the indices, in order: pred, target (n, J, 3), conf (n, J), loss (n,)."""
        return {
            "pred": self._pred[: self.count],
            "target": self._target[: self.count],
            "conf": self._conf[: self.count],
            "loss": self._loss[: self.count],
        }
