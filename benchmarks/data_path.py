"""One epoch's samples, labels, augmentation and batches, by data path, against decoding alone.

The raw limit is cv2.imread of the JPEG and, for the samples that keep depth, of the PNG. Frames are the
generator's, with noise until the files weigh about what HO3D_v3's do (63 KiB and 426 KiB). They are in the
page cache: a disk that is slower than the decoder is not measured.

    python -m benchmarks data_path
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.augment import show_depth
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.hand.standin import build_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import DatasetConfig, ModelConfig, RunConfig
from src.hand.mano import ManoLayer

SEQUENCES, FRAMES, BATCH, REPEATS = 8, 10, 24, 5
RGB_NOISE, DEPTH_NOISE = 9.0, 16.0
"""Standard deviations in grey levels and in units of DEPTH_UNIT_M."""
JPEG_QUALITY = 90
SIZES = ((128, 128), (256, 192))


def _weigh_down(root: Path) -> tuple[float, float]:
    """Add noise to all training pictures; mean KiB of a picture and of a depth afterwards."""
    rng = np.random.default_rng(0)
    pictures, depths = sorted(root.glob("train/*/rgb/*.jpg")), sorted(root.glob("train/*/depth/*.png"))
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture is not None
        noisy = picture + cv2.GaussianBlur(rng.normal(0, RGB_NOISE, picture.shape), (0, 0), 0.7)
        cv2.imwrite(
            str(path), np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
    for path in depths:
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        depth = stored[..., 2] + 256.0 * stored[..., 1]
        noisy = np.where(depth > 0, np.rint(depth + rng.normal(0, DEPTH_NOISE, depth.shape)), 0).astype(
            np.uint16
        )
        stored[..., 2], stored[..., 1] = noisy % 256, noisy // 256
        cv2.imwrite(str(path), stored)
    rgb_kib, depth_kib = (
        sum(path.stat().st_size for path in paths) / len(paths) / 1024 for paths in (pictures, depths)
    )
    return rgb_kib, depth_kib


def _candidates(datasets: dict[str, HO3DDataset]) -> dict[str, Callable[[], object]]:
    """One epoch of each path."""
    plain = datasets["no cache"]
    keys = [SampleKey(i, 1) for i in range(len(plain))]
    batches = [keys[k : k + BATCH] for k in range(0, len(keys), BATCH)]

    def raw_limit() -> None:
        for key in keys:
            cv2.imread(str(plain.frames.path(key.index, "rgb")))
            if show_depth(plain.modality, plain.p_drop_depth, plain.seed, key.epoch, key.index):
                cv2.imread(str(plain.frames.path(key.index, "depth")), cv2.IMREAD_UNCHANGED)

    def ours(dataset: HO3DDataset) -> None:
        for batch in batches:
            dataset.batch(batch)

    paths = {name: (lambda d=dataset: ours(d)) for name, dataset in datasets.items()}
    return {"raw limit": raw_limit, **paths}


def main() -> None:
    """Write frames, make the caches, time all paths in turn."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "HO3D"
        asset = build_standin()
        write_tree(
            root, Parameters(sequences=SEQUENCES, frames=FRAMES, evaluation_sequences=1), asset, workers=2
        )
        rgb_kib, depth_kib = _weigh_down(root)
        print(f"data_path: {rgb_kib:.0f} KiB a JPEG, {depth_kib:.0f} KiB a depth PNG")
        hand = ManoLayer.from_asset(asset)
        for size in SIZES:
            data = DatasetConfig(root_dir=root, num_workers=0)
            config = RunConfig(dataset=data, model=ModelConfig(image_size=size))
            settings = {
                "no cache": data,
                "cache raw": dataclasses.replace(data, cache="auto"),
                "cache compact": dataclasses.replace(data, cache="auto", cache_format="compact"),
            }
            datasets = {
                name: build_dataset(dataclasses.replace(config, dataset=d), "train", hand)
                for name, d in settings.items()
            }
            rows += _table(size, datasets)
    report("data_path", rows)


def _table(size: tuple[int, int], datasets: dict[str, HO3DDataset]) -> list[Row]:
    """Rows of one crop size."""
    seconds = interleaved(_candidates(datasets), REPEATS)
    ms = {name: value / len(datasets["no cache"]) * 1e3 for name, value in seconds.items()}
    pairs = [("no cache", "raw limit"), ("cache raw", "no cache"), ("cache compact", "no cache")]
    return [
        Row(f"{size[0]}x{size[1]} {a}: {ms[a]:.2f}", f"{b}: {ms[b]:.2f}", ms[b] / ms[a], "ms a sample")
        for a, b in pairs
    ]


if __name__ == "__main__":
    main()
