"""A checkpoint -> files that run without it: torch.export (.pt2) and ONNX, compared, timed and described.

    python -m src.tools.export --checkpoint PATH --out DIR [--hand-model FILE] [--compiled]

Writes utnet.pt2 and utnet.onnx (from raw crops), utnet_normalised.pt2 and .onnx (from normalised ones),
card.md and card.json. Files that differ from the network by more than 0.01 mm are refused and nothing is
kept. All runs on the CPU, in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from src.errors import DataError, UTNetError
from src.evaluation.evaluator import read_per_sample
from src.evaluation.scored import motions_of, sequences_of
from src.evaluation.statistics import bootstrap_mean
from src.hand.mano_assets import banner, load_hand_asset
from src.predict import card
from src.predict.export import (
    NAMES,
    TOLERANCE_MM,
    TRIALS,
    Latency,
    deviation_mm,
    latencies,
    latency_lines,
    require_onnx,
    require_parity,
    trial_crops,
    write_files,
)
from src.predict.graph import RawNetwork
from src.predict.predictor import eager_engine, hand_file
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.runtime.files.disk import atomic_directory, read_plain, require_place
from src.runtime.log import get_logger
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import FOLDER, open_checkpoint
from src.training.checkpoints.settings import command_settings
from src.training.recorder import read_scalars
from src.training.run_folder import META

_MOST_BYTES = 1 << 20
_log = get_logger("export")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace; argparse leaves with status 2 by itself."""
    parser = make_parser("python -m src.tools.export", "A checkpoint as torch.export and ONNX files.")
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="PATH", help="best.pt or another checkpoint")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    add("--hand-model", type=Path, metavar="FILE", help="MANO_RIGHT.pkl; default: where the checkpoint says")
    add("--compiled", action="store_true", help="time torch.compile too, which compiles for minutes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = parse_arguments(argv)
    log.configure(rank=0)
    return exit_status(lambda: export(arguments), alone=True)


def export(arguments: argparse.Namespace) -> None:
    """Write, compare, time and describe.

    Raises:
        AssetError: the checkpoint or its hand cannot be used, or a file differs from the network.
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        DataError: the folder is not empty, or cannot be written.
    """
    require_onnx()
    checkpoint: Path = arguments.checkpoint
    out = require_place(arguments.out, folder=True)
    engine = eager_engine(checkpoint, device="cpu", hand_model=arguments.hand_model, precision="fp32")
    config = command_settings(None, ["training.precision=fp32"], evaluate=checkpoint).config
    asset = load_hand_asset(hand_file(config, arguments.hand_model))
    if (notice := banner(asset)) is not None:
        print(notice)
    state = open_checkpoint(checkpoint, mapped=True)
    source = card.Source(checkpoint, state, config, asset, run_facts(checkpoint, state))
    parameters = sum(weight.numel() for weight in engine.graph.parameters())
    told = card.first_part(source, engine.facts, parameters)
    told["exported_by"] |= {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    print(f"Network: {engine.facts.named}", flush=True)
    facts = dataclasses.replace(engine.facts, named=ckpt.named(state, Path(checkpoint.name)))
    with atomic_directory(out) as folder:
        files = [path for kind in NAMES for path in write_files(kind, engine.graph, facts, told, folder)]
        frames = f"{TRIALS} frames that the generator renders with this hand, each with and without depth"
        print(f"Comparing with the network on {frames}:", flush=True)
        raw = trial_crops(asset, facts)
        gaps = {}
        for path in files:
            gaps[path.name] = deviation_mm(engine.graph, path, raw)
            print(f"  {path.name}: {gaps[path.name]:.6f} mm at most, {TOLERANCE_MM:g} allowed", flush=True)
        require_parity(gaps)
        told["machine"] = machine()
        times = measured(engine.graph, folder, raw, arguments.compiled)
        told["parity"] = {"frames": frames, "allowed_mm": TOLERANCE_MM, "largest_mm": gaps}
        told["latency"] = [dataclasses.asdict(row) for row in times]
        table = latency_lines(times)
        text = json.dumps(told, indent=1, allow_nan=False)
        (folder / "card.json").write_text(text + "\n", encoding="utf-8")
        (folder / "card.md").write_text(card.markdown(told, table, TOLERANCE_MM), encoding="utf-8")
    for line in table:
        print(line)
    sizes = [(out / name).stat().st_size / 1e6 for name in gaps]
    print(f"Written to {out}: " + ", ".join(f"{n} {s:.1f} MB" for n, s in zip(gaps, sizes, strict=True)))
    print(f"Model card: {out / 'card.md'}, {out / 'card.json'}")
    for line in told["licences"]:
        print(f"LICENCE: {line}")


def measured(graph: RawNetwork, folder: Path, raw: dict[str, torch.Tensor], compiled: bool) -> list[Latency]:
    """Latencies, each said as it comes."""
    print("Timing:" if compiled else "Timing (compiled: not asked for, --compiled does it):", flush=True)
    rows = []
    for row in latencies(graph, folder, raw, compiled=compiled):
        said = f"{row.ms_a_hand:.2f} ms a hand" if row.ms_a_hand else row.note
        print(f"  {row.runtime}, threads {row.threads}, batch {row.batch}: {said}", flush=True)
        rows.append(row)
    return rows


def machine() -> str:
    """The processor and how busy it is, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    load = f"load average {os.getloadavg()[0]:.1f}"  # others at work make all of it slower
    return f"{' / '.join(sorted(names)) or 'a CPU'}, {torch.get_num_threads()} threads, {load}"


def run_facts(checkpoint: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the run folder around a checkpoint says of its data and of its scores; empty without one.

    A run folder that is damaged is not known, with a warning: the checkpoint is whole all the same.
    """
    run = checkpoint.absolute().parent.parent
    if checkpoint.absolute().parent.name != FOLDER or not (run / META).is_file():
        return {}
    try:
        meta = json.loads(read_plain(run / META, _MOST_BYTES))
        found = {name: meta[name] for name in ("train", "val") if isinstance(meta.get(name), str)}
        return {**found, "scores": scores_of(run, state)}
    except (OSError, ValueError, AttributeError, UTNetError) as error:
        _log.warning(f"WARNING: {run}: {error}. The card goes without what this run folder says")
        return {}


def scores_of(run: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of the validation at the checkpoint's step, with intervals, and the baselines beside them.

    Raises:
        DataError: per-sample files are damaged, or of another validation.
    """
    path, step = run / "scalars.jsonl", state["step"]
    values: dict[str, Any] = {}
    for _, row in read_scalars(path) if path.is_file() else ():
        values |= row if row["step"] == step else {}
    if "Val/MPJPE" not in values or "Train/epoch" not in values:
        return {}
    found = {}
    for shown, suffix, tag in (("RGB-D", "", "Val/MPJPE"), ("RGB-only", "_rgb", "Val/RGB-only/MPJPE")):
        file = run / "val" / f"epoch_{int(values['Train/epoch']):04d}{suffix}.npz"
        if file.is_file():
            found[shown] = _with_intervals(file, values.get(tag))
    prefix = "Val/baseline/"
    baselines = {
        n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix) and v is not None
    }
    return {"of_this_checkpoint": found, "baselines": baselines}


def _with_intervals(file: Path, said: float | None) -> dict[str, Any]:
    """Means of a per-sample file with intervals over motions; DataError: they are not those of the log."""
    rows = read_per_sample(file)
    usable = rows["label_usable"]
    motions = motions_of(sequences_of(rows["frame"][usable].tolist()))
    told: dict[str, Any] = {"frames": int(usable.sum()), "motions": len(set(motions.tolist()))}
    for name in ("mpjpe_mm", "pa_mpjpe_mm"):
        found = bootstrap_mean(rows[name][usable], motions, seed=0)
        ends = (found.low, found.high) if found.exists else (None, None)
        told[name] = {"mean": found.mean, "low": ends[0], "high": ends[1]}
    if said is None or not math.isclose(told["mpjpe_mm"]["mean"], said, rel_tol=1e-9):
        raise DataError(f"{file} has a mean of {told['mpjpe_mm']['mean']:.3f} mm, scalars.jsonl says {said}")
    return told


if __name__ == "__main__":
    sys.exit(main())
