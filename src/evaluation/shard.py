"""One rank's part of a validation: rows in preallocated CPU arrays, and what went wrong in its loop.

Legend: n rows of this rank, B rows of a batch, J joints, K columns. Joints are `OPENPOSE21`, metres,
absolute, in the **image camera** (OpenCV): whoever fills a shard turns predictions back from the crop camera
first. Rows may come in any order. A *column* is a number per sample that the rank computed itself, because
what it is computed from (a mesh) is too large to travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from src.errors import CollectError, ShapeError
from src.runtime.memory import mapped

ROW_DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
"""What joints may be stored as; half precision is widened, never stored."""

MESH_USABLE = "mesh_usable"
"""Column that is 1 where the sample's mesh is labelled and 0 where it is not."""

ROW_FIELDS: tuple[str, ...] = (
    "sample_index",
    "frame",
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "loss",
    "label_usable",
    "pred_joints_cam_m",
)
"""What the per-sample file holds of every validation, in order."""

FILE_FACTS: tuple[str, ...] = ("columns", "units", "joint_names", "split", "split_hash")
"""What the per-sample file says about itself."""


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

    def __init__(
        self,
        capacity: int,
        num_joints: int = 21,
        *,
        dtype: torch.dtype = torch.float32,
        columns: Sequence[str] = (),
    ) -> None:
        """Reserve `capacity` rows on the CPU.

        Args:
            capacity: rows that this rank will hold, >= 0; a rank that ends with fewer is named when samples
                are missing.
            num_joints: J.
            dtype: float32 or float64, of joints and weights; every rank's must be the same.
            columns: names of the per-sample numbers that `add` gets; the same, in the same order, on every
                rank.

        Raises:
            ShapeError: capacity below 0, no joints, another dtype, or a column's name that is empty, taken by
                the per-sample file, or there twice.
        """
        if capacity < 0 or num_joints < 1 or dtype not in ROW_DTYPES:
            raise ShapeError(
                f"EvaluationShard needs capacity >= 0, num_joints >= 1 and float32 or float64, "
                f"got {capacity}, {num_joints}, {dtype}"
            )
        self.columns = tuple(columns)
        taken = {"", *ROW_FIELDS, *FILE_FACTS}
        for place, name in enumerate(self.columns):
            if name in taken or name in self.columns[:place]:
                raise ShapeError(
                    f"EvaluationShard: a column cannot be called {name!r}: empty, taken or twice"
                )
        self.num_joints = num_joints
        self.dtype = dtype
        self.capacity = capacity
        self.count = 0
        self._guard = Guard()
        self._sample_index = mapped((capacity,), torch.int64)
        self._fields = {
            "pred": mapped((capacity, num_joints, 3), dtype),
            "target": mapped((capacity, num_joints, 3), dtype),
            "conf": mapped((capacity, num_joints), dtype),
            "loss": mapped((capacity,), torch.float64),
            "columns": mapped((capacity, len(self.columns)), torch.float64),
        }

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
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy the rows of a batch; the tensors given are left as they are.

        Args:
            sample_index: (B,) integers, rows of the split.
            pred_joints_m: (B, J, 3) any float dtype and device, image camera, metres.
            target_joints_m: (B, J, 3) as the prediction.
            conf: (B, J) weight of each label; 0 = the label does not exist.
            loss: (B,) per-sample loss.
            columns: name -> (B,) per-sample number, for each name given at construction; nan where there is
                no label, `mesh_usable` 0 where there is no labelled mesh.

        Raises:
            ShapeError: shapes are not these, or columns are missing or unknown.
            CollectError: more rows than reserved, or the rows were handed over already.
        """
        if not self._fields:
            raise CollectError(
                "EvaluationShard: its rows were handed over; use a new one for each validation"
            )
        size = int(sample_index.shape[0]) if sample_index.ndim == 1 else -1
        given = dict(columns or {})
        if set(given) != set(self.columns):
            raise ShapeError(f"EvaluationShard.add: got columns {sorted(given)}, want {sorted(self.columns)}")
        wanted = {
            "sample_index": (sample_index, (size,)),
            "pred_joints_m": (pred_joints_m, (size, self.num_joints, 3)),
            "target_joints_m": (target_joints_m, (size, self.num_joints, 3)),
            "conf": (conf, (size, self.num_joints)),
            "loss": (loss, (size,)),
        } | {f"column {name}": (tensor, (size,)) for name, tensor in given.items()}
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"EvaluationShard.add: {name} has shape {tuple(tensor.shape)}, want {shape}")
        if sample_index.is_floating_point():
            raise ShapeError(f"EvaluationShard.add: sample_index is {sample_index.dtype}, want integers")
        rows = slice(self.count, self.count + size)
        if rows.stop > self.capacity:
            raise CollectError(
                f"EvaluationShard: {rows.stop} rows added, {self.capacity} reserved for this rank"
            )
        self._sample_index[rows].copy_(sample_index.detach())
        batch = {"pred": pred_joints_m, "target": target_joints_m, "conf": conf, "loss": loss}
        for name, tensor in batch.items():
            self._fields[name][rows].copy_(tensor.detach())
        for place, name in enumerate(self.columns):
            self._fields["columns"][rows, place].copy_(given[name].detach())
        self.count = rows.stop

    def sample_index(self) -> Tensor:
        """(n,) int64, rows of the split in the order they were added."""
        return self._sample_index[: self.count]

    def hand_over(self) -> dict[str, Tensor]:
        """What travels after the indices, in order: pred, target (n, J, 3), conf (n, J), loss (n,), columns
        (n, K); without any column there is no such field.

        The shard lets go of the arrays: whoever gets them frees each one as soon as it has travelled.

        Raises:
            CollectError: they were handed over before.
        """
        if not self._fields:
            raise CollectError(
                "EvaluationShard: its rows were handed over; use a new one for each validation"
            )
        fields = {name: field[: self.count] for name, field in self._fields.items()}
        self._fields = {}
        if not self.columns:
            del fields["columns"]
        return fields
