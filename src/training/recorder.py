"""What a run writes: scalars as JSON lines and as TensorBoard's events, pictures, histograms, its settings.

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
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from src.config import RunConfig
from src.config_file import config_to_dict, config_to_yaml
from src.evaluation.evaluator import CheckedResult
from src.hand.mano import ManoLayer
from src.render.pictures import encoded
from src.runtime.files.disk import atomic_write
from src.runtime.log import get_logger
from src.runtime.outlet import Outlet, optional
from src.runtime.progress import Pace
from src.runtime.ranks.distributed import DistContext
from src.schema import Shown
from src.training.checkpoints.checkpoint import commit
from src.training.step import StepReport

LONGEST = 1 << 16
"""Bytes of a line of scalars.jsonl; those of a validation, the longest, have 2,000."""
_MOST_STEPS, _MOST_MINUTES = 1 << 53, 1 << 30
_COLUMNS = {
    "mpvpe_mm": "MPVPE",
    "pa_mpvpe_mm": "PA-MPVPE",
    "coarse_mpjpe_mm": "coarse/MPJPE",
    "coarse_pa_mpjpe_mm": "coarse/PA-MPJPE",
}
"""Columns of a validation that have a curve, and its name."""
_COMPARED = ("Val/MPJPE", "Val/PA-MPJPE", "Val/RGB-only/MPJPE", "Val/RGB-only/PA-MPJPE")
"""What TensorBoard's HPARAMS shows beside the settings of each run: the newest value of each scalar."""
_SHOWN = ("model.preset", "name", "optimizer.lr", "training.batch_size", "training.num_epochs")
"""Settings that HPARAMS shows unasked: those that are said to differ, and no more than five."""
_KINDS = {str: "DATA_TYPE_STRING", bool: "DATA_TYPE_BOOL"}
"""How HPARAMS calls the kinds of settings that are no numbers."""
_BINS = 64
"""Of a histogram, evenly from its least value to its greatest."""
_log = get_logger("scalars")


class Recorder:
    """Writes into a run folder; on ranks other than 0 every method does nothing."""

    def __init__(self, run_dir: Path, context: DistContext, *, resume_step: int = 0) -> None:
        """Args: `resume_step` optimiser steps that are done; scalars of later steps are dropped."""
        self.run_dir = run_dir
        self._context = context
        self._writer: SummaryWriter | None = None
        self._work: threading.Thread | None = None
        self._first_step: int | None = resume_step + 1
        self._resume_step = resume_step
        self._grad_norms: list[float] = []
        if context.is_main:
            path = run_dir / "scalars.jsonl"
            self._scalars = Outlet(str(path), path=path)
            self._began = time.monotonic() - 60.0 * _drop_after(path, resume_step)
            threading.excepthook = _without_event_writers

    def write_setup(self, config: RunConfig, hand: ManoLayer, facts: Mapping[str, object]) -> None:
        """Write config.yaml and meta.json, and the settings for TensorBoard's TEXT and HPARAMS.

        Args:
            config: resolved.
            hand: whose fingerprint is recorded.
            facts: more for meta.json, e.g. frames of each split, parameters of the model.
        """
        if not self._context.is_main:
            return
        device = self._context.device
        meta = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": sys.argv,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "ranks": self._context.world,
            "hand_fingerprint": hand.fingerprint,
            "hand_is_standin": hand.is_standin,
            **facts,
        }
        texts = {"config.yaml": config_to_yaml(config), "meta.json": json.dumps(meta, indent=2, default=str)}
        for name, text in texts.items():
            path = self.run_dir / name
            with optional(str(path)), atomic_write(path) as file:
                file.write(text.encode())
        step, run = self._resume_step, self.run_dir.absolute().name

        def add(to: Any) -> None:  # torch has `file_writer` as None
            to.add_text("Settings", f"```\n{texts['config.yaml']}```", step)
            to.file_writer.add_summary(_hparams(config, run), step)

        self._show(add)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at an optimiser step, e.g. {"Train/loss": 1.2}; nan is kept as null in the JSON.

        Each line also says after how many minutes of the run, earlier parts of a resumed one included.
        """
        if not self._context.is_main:
            return
        plain = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        minutes = round((time.monotonic() - self._began) / 60.0, 3)
        self._scalars.write(json.dumps({"step": step, "minutes": minutes, **plain}) + "\n")
        if not self._scalars.stopped:  # room is looked for there

            def add(to: SummaryWriter) -> None:
                for name, value in values.items():
                    to.add_scalar(name, value, step)

            self._show(add)

    def step(self, step: int, report: StepReport, clipped_share: float, pace: Pace) -> None:
        """Record an optimiser step under Train/.

        Args:
            step: optimiser steps done.
            report: of that step.
            clipped_share: share of the epoch's steps whose gradient was clipped.
            pace: of this rank's steps since the last call.
        """
        self._grad_norms.append(report.grad_norm)
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

    def validation(self, step: int, shown: Shown, result: CheckedResult) -> None:
        """Record a validation under Val/, or Val/RGB-only/ for the score without depth.

        Histograms: errors of the samples that are labelled, and gradient norms recorded since the last time.
        """
        prefix = "Val" if shown == "rgbd" else "Val/RGB-only"
        values = {"loss": result.loss, "MPJPE": result.mpjpe_mm, "PA-MPJPE": result.pa_mpjpe_mm}
        values |= {label: result.columns[name] for name, label in _COLUMNS.items() if name in result.columns}
        if shown == "rgbd":
            values |= {f"baseline/{name}": value for name, value in result.baselines.items()}
        self.scalars(step, {f"{prefix}/{name}": value for name, value in values.items()})
        if result.rows is not None:
            errors = result.rows.mpjpe_mm[result.rows.usable]
            self._histogram(step, f"{prefix}/MPJPE per sample", errors)
        self._histogram(step, "Train/grad_norm of recorded steps", self._grad_norms)
        self._grad_norms.clear()

    def picture(self, step: int, name: str, rgb: NDArray[np.uint8]) -> None:
        """Record a picture (H, W, 3) uint8 RGB."""
        if not self._context.is_main:
            return
        height, width = rgb.shape[:2]
        jpeg = encoded(rgb, ".jpg", 90)  # the PNG that add_image makes takes a hundred times as long
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)

        def add(to: Any) -> None:  # torch has `file_writer` as None
            to.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

        self._show(add)

    def _histogram(self, step: int, name: str, values: Sequence[float] | NDArray[np.float64]) -> None:
        """Show how values are spread, those that are finite; nothing if there are none."""
        finite = np.asarray(values, np.float64)
        finite = finite[np.isfinite(finite)]
        if self._context.is_main and finite.size:
            self._show(lambda to: to.add_histogram(name, finite, step, bins=_BINS))

    def later(self, work: Callable[[], object]) -> None:
        """Do what only decorates the run beside it, in a thread, after the work that was given before."""
        self._finish()
        self._work = threading.Thread(target=work, name="decorations", daemon=True)
        self._work.start()

    def _finish(self) -> None:
        """Wait for the work of `later`."""
        if self._work is not None:
            self._work.join()

    def close(self) -> None:
        """Finish what is done beside the run, and flush what is still held back."""
        self._finish()
        if self._context.is_main:
            self._scalars.close()
            self._close_events()

    def _show(self, add: Callable[[SummaryWriter], None]) -> None:
        """Add to TensorBoard's files; after a failure, to new ones: the curves have a gap."""
        with optional("TensorBoard") as attempt:
            if self._writer is None:
                # Of this step and later ones TensorBoard hides what older files say.
                self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self._first_step)
                self._first_step = None
            add(self._writer)
        if attempt.error is not None:
            self._close_events()

    def _close_events(self) -> None:
        """Write what TensorBoard holds back."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with optional("TensorBoard"):
                writer.close()


def _hparams(config: RunConfig, run: str) -> Summary:
    """What HPARAMS compares runs by: settings as `section.key`, and which scalars are the scores.

    It stands among the run's own events: `SummaryWriter.add_hparams` would make a run named by the clock. The
    newest value of a scalar is shown, also of a run that goes on or was killed. TensorBoard takes the columns
    from the first run in its folder, and a run's settings from its first start.
    """
    settings = _flat(config_to_dict(config))
    columns = [
        {"name": name, "type": _KINDS.get(type(value), "DATA_TYPE_FLOAT64"), "differs": name in _SHOWN}
        for name, value in settings.items()
    ]
    metrics = [{"name": {"tag": name}} for name in _COMPARED]
    start = {"hparams": settings, "group_name": _text(run)}
    contents = {
        metadata.EXPERIMENT_TAG: {"experiment": {"hparam_infos": columns, "metric_infos": metrics}},
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
    }
    summary = Summary()
    for tag, content in contents.items():
        about = metadata.create_summary_metadata(ParseDict(content, HParamsPluginData()))
        summary.value.add(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
    return summary


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a tree of settings by their dotted names; null and lists as text."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float)
            leaves[prefix + name] = value if number else _text("null" if value is None else value)
    return leaves


def _text(value: object) -> str:
    """Text that protobuf takes: names of files need not be UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _without_event_writers(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands on what failed in it, and prints it too; everything else is printed."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failed)


def _drop_after(path: Path, step: int) -> float:
    """Keep the lines of scalars.jsonl up to `step`, not those that are none. Minutes that are kept."""
    if not path.is_file():
        return 0.0
    kept = [row for row in read_scalars(path) if row[1]["step"] <= step]
    with optional(str(path)), atomic_write(path) as file:
        file.writelines(line for line, _ in kept)
    return float(next((values["minutes"] for _, values in reversed(kept) if "minutes" in values), 0.0))


def read_scalars(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Lines of scalars.jsonl and what they say, in the file's order.

    A run that was killed leaves a torn last line. Other lines that are none, of another program, another
    encoding, without a step, are passed over with a warning that counts them.

    Args:
        path: the file.

    Returns:
        (line with its end, values by name): `step` a whole number, the others numbers or None.

    Raises:
        OSError: it cannot be read.
    """
    rows, bad, number, first = [], 0, 0, 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            number += 1
            if (values := _values(line)) is not None:
                rows.append((line if line.endswith(b"\n") else line + b"\n", values))
            elif line.endswith(b"\n") or len(line) == LONGEST:
                bad, first = bad + 1, first or number
    if bad:
        _log.warning(f"WARNING: {path}: {bad:,} lines are no scalars (first: line {first:,}), passed over")
    return rows


def _values(line: bytes) -> dict[str, Any] | None:
    """Values of one line, null for one that was not finite; None: it is none of ours."""
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    numbers = {n: v for n, v in values.items() if type(v) in (int, float) and abs(v) < sys.float_info.max}
    if any(value is not None for name, value in values.items() if name not in numbers):
        return None
    step, minutes = numbers.get("step"), numbers.get("minutes", 0 if "minutes" not in values else -1)
    return values if type(step) is int and 0 <= step < _MOST_STEPS and 0 <= minutes < _MOST_MINUTES else None
