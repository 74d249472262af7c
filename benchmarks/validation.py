"""A validation by part: predicting, mesh errors, collection, metrics; tiny and small networks, one rank.

python -m benchmarks validation
"""

from __future__ import annotations

import time

import torch

import train
from benchmarks.common import Row, report
from benchmarks.scene import Scene, alone, device, scene, sync
from dataloader.build import build_dataset

PRESETS = {"tiny": (128, 128), "small": (256, 192)}
FULL = 8332
"""Samples of HO3D_v3's val."""
REPEATS = 3


def _rows(made: Scene, preset: str) -> list[Row]:
    """Time test() as train.py calls it, and the forward pass alone on the same batches."""
    where = device()
    config, context = made.config, alone(where)
    step = made.trainer(context)
    model = step.model
    val_set = build_dataset(config, "val", made.hand, show_progress=False)
    scoring = train.build_scoring(config, context, made.train, val_set, step.loss.mano)
    loader = scoring.loaders["rgbd"]
    batches = list(loader)
    seconds: dict[str, list[float]] = {"whole": [], "forward": [], "data": []}
    parts: dict[str, float] = {}
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        result = train.test(model, step.loss, loader, scoring, None)
        seconds["whole"].append(time.perf_counter() - began)
        parts = dict(result.receipt.seconds)
        model.eval()
        began = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model(batch)
        sync(where)
        seconds["forward"].append(time.perf_counter() - began)
        began = time.perf_counter()
        list(loader)
        seconds["data"].append(time.perf_counter() - began)
    # The first round pays for pages and caches.
    median = {name: sorted(values[1:])[REPEATS // 2] for name, values in seconds.items()}
    collected = sum(parts.values())
    rest = max(0.0, median["whole"] - median["forward"] - median["data"] - collected)
    named = {
        "predicting": median["forward"],
        "loading": median["data"],
        "collection and metrics": collected,
        "loss, mesh errors, copies": rest,
    }
    count, whole = len(val_set), median["whole"]
    what = f"{preset}, {count} samples"
    rows = [
        Row(
            f"{what}, {name}: {value:.3f} ({value / whole:.0%})",
            f"all: {whole:.3f}",
            whole / max(value, 1e-9),
            "s",
        )
        for name, value in named.items()
    ]
    each = whole / count
    rows.append(
        Row(
            f"{preset}, a sample: {1e3 * each:.1f}; {FULL} samples on one rank: {each * FULL:.0f} s",
            f"predicting alone: {1e3 * median['forward'] / count:.1f}",
            median["forward"] / whole,
            "ms",
        )
    )
    return rows


def main() -> None:
    """Both networks."""
    torch.set_num_threads(1)
    rows = []
    for preset, size in PRESETS.items():
        settings = (
            f"model.preset={preset}",
            f"model.image_size=[{size[0]}, {size[1]}]",
            "validation.batch_size=16",
            "dataset.num_workers=0",
        )
        with scene(*settings, sequences=1, frames=32) as made:
            rows += _rows(made, preset)
    report("validation", rows)


if __name__ == "__main__":
    main()
