"""What a run writes: its folder, scalars as JSON lines and TensorBoard events, pictures, meta.json.

Only rank 0 has a recorder that writes. A resumed run goes on in its folder: scalars after the step that it
resumes from are dropped first, because the run is about to write them again.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from src.config import RunConfig
from src.config_file import config_to_yaml
from src.errors import plain_text
from src.hand.mano import ManoLayer
from src.runtime.files.disk import atomic_write
from src.runtime.outlet import Outlet, optional
from src.runtime.progress import Pace
from src.runtime.ranks.distributed import DistContext
from src.schema import EvalResult, Shown
from src.training.checkpoints.checkpoint import commit
from src.training.scalar_lines import read_scalars
from src.training.step import StepReport

_EVENTS = "TensorBoard"
"""What warnings call its files."""


def _without_event_writers(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands on what failed in it, and prints it too; everything else is printed."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failed)


class Events:
    """TensorBoard's files; where they cannot be written, the curves have a gap and scalars.jsonl has all."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Args: `first_step` to be recorded; TensorBoard hides what older files say of it and later ones."""
        self._folder = folder
        self._first_step: int | None = first_step
        self._writer: SummaryWriter | None = None
        threading.excepthook = _without_event_writers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values by name."""

        def add(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._with_writer(add)

    def picture(self, step: int, name: str, path: Path, rgb: NDArray[np.uint8]) -> None:
        """Add a picture (H, W, 3) and where its file is."""

        def add(writer: SummaryWriter) -> None:
            writer.add_image(name, rgb, step, dataformats="HWC")
            writer.add_text(f"{name}/file", plain_text(str(path)), step)

        self._with_writer(add)

    def close(self) -> None:
        """Write what is held back."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with optional(_EVENTS):
                writer.close()

    def _with_writer(self, add: Callable[[SummaryWriter], None]) -> None:
        """Add to the present file; after a failure, to a new one."""
        with optional(_EVENTS) as attempt:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder), purge_step=self._first_step)
                self._first_step = None
            add(self._writer)
        if attempt.error is not None:
            self.close()


class Recorder:
    """Writes into a run folder; on ranks other than 0 every method does nothing."""

    def __init__(
        self, run_dir: Path, config: RunConfig, context: DistContext, *, resume_step: int = 0
    ) -> None:
        """Args: `resume_step` optimiser steps that are done; scalars of later steps are dropped."""
        self.run_dir = run_dir
        self._active = context.is_main
        self._events: Events | None = None
        if not self._active:
            return
        path = run_dir / "scalars.jsonl"
        self._scalars = Outlet(str(path), path=path)
        self._began = time.monotonic() - 60.0 * _drop_after(path, resume_step)
        self._events = (
            Events(run_dir / "tensorboard", resume_step + 1) if config.logging.tensorboard else None
        )

    def write_setup(
        self, config: RunConfig, hand: ManoLayer, context: DistContext, facts: Mapping[str, object]
    ) -> None:
        """Write config.yaml and meta.json.

        Args:
            config: resolved.
            hand: whose fingerprint is recorded.
            context: ranks and device.
            facts: more for meta.json, e.g. frames of each split, parameters of the model.
        """
        if not self._active:
            return
        path = self.run_dir / "config.yaml"
        with optional(str(path)), atomic_write(path) as file:
            file.write(config_to_yaml(config).encode())
        device = (
            torch.cuda.get_device_name(context.device)
            if context.device.type == "cuda"
            else platform.machine()
        )
        meta = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": sys.argv,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "device": device,
            "ranks": context.world,
            "hand_fingerprint": hand.fingerprint,
            "hand_is_standin": hand.is_standin,
            **facts,
        }
        path = self.run_dir / "meta.json"
        with optional(str(path)), atomic_write(path) as file:
            file.write(json.dumps(meta, indent=2, default=str).encode())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at an optimiser step, e.g. {"Train/loss": 1.2}; nan is kept as null in the JSON.

        Each line also says after how many minutes of the run, earlier parts of a resumed one included.
        """
        if not self._active:
            return
        plain = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        minutes = round((time.monotonic() - self._began) / 60.0, 3)
        self._scalars.write(json.dumps({"step": step, "minutes": minutes, **plain}) + "\n")
        if self._events is not None and not self._scalars.stopped:  # room is looked for there
            self._events.scalars(step, values)

    def step(self, step: int, report: StepReport, clipped_share: float, pace: Pace) -> None:
        """Record an optimiser step under Train/.

        Args:
            step: optimiser steps done.
            report: of that step.
            clipped_share: share of the epoch's steps whose gradient was clipped.
            pace: of this rank's steps since the last call.
        """
        samples = sum(batch.size for batch, _, _ in report.batches)
        values = {
            "Train/loss": report.loss,
            "Train/lr": report.learning_rate,
            "Train/grad_norm": report.grad_norm,
            "Train/clipped_share": clipped_share,
            "Train/samples_per_s_and_rank": pace.rounds_per_s * samples,
            "Train/data_wait_share": pace.data_wait_share,
        }
        terms = {f"Train/loss/{name}": float(value.detach()) for name, value in report.terms.values.items()}
        self.scalars(step, values | terms)

    def validation(self, step: int, shown: Shown, result: EvalResult) -> None:
        """Record a validation under Val/, or Val/RGB-only/ for the score without depth."""
        prefix = "Val" if shown == "rgbd" else "Val/RGB-only"
        values = {
            f"{prefix}/loss": result.loss,
            f"{prefix}/MPJPE": result.mpjpe_mm,
            f"{prefix}/PA-MPJPE": result.pa_mpjpe_mm,
        }
        labels = {
            "mpvpe_mm": "MPVPE",
            "pa_mpvpe_mm": "PA-MPVPE",
            "coarse_mpjpe_mm": "coarse/MPJPE",
            "coarse_pa_mpjpe_mm": "coarse/PA-MPJPE",
        }
        for name, label in labels.items():
            if name in result.columns:
                values[f"{prefix}/{label}"] = result.columns[name]
        if shown == "rgbd":
            values |= {f"Val/baseline/{name}": value for name, value in result.baselines.items()}
        self.scalars(step, values)

    def picture(self, step: int, name: str, path: Path, rgb: NDArray[np.uint8]) -> None:
        """Record a picture (H, W, 3) uint8 RGB that was also written to `path`."""
        if self._active and self._events is not None:
            self._events.picture(step, name, path, rgb)

    def close(self) -> None:
        """Flush what is still held back."""
        if self._active:
            self._scalars.close()
        if self._events is not None:
            self._events.close()


def _drop_after(path: Path, step: int) -> float:
    """Keep the lines of scalars.jsonl up to `step`, not those that are none. Minutes that are kept."""
    if not path.is_file():
        return 0.0
    kept = [row for row in read_scalars(path) if row[1]["step"] <= step]
    with optional(str(path)), atomic_write(path) as file:
        file.writelines(line for line, _ in kept)
    return float(next((values["minutes"] for _, values in reversed(kept) if "minutes" in values), 0.0))
