"""One epoch's samples, labels, augmentation and batches, by data path, against the first version's design.

The first version decoded every picture and every depth, turned both to float32 on the host, whole, and warped
and normalised those. It is written here from that description; reading its annotation pickles, 0.2 ms a
frame, is left out. The raw limit is cv2.imread of the JPEG and, for the samples that keep depth, of the PNG.

Frames are the generator's, with noise until the files weigh about what HO3D_v3's do (63 KiB and 426 KiB).
They are in the page cache: a disk that is slower than the decoder is not measured.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from dataloader.batches.collate import collate
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.augment import draw, show_depth
from dataloader.crop.camera import z_ref_from_box
from dataloader.crop.prepare import IMAGENET_MEAN, IMAGENET_STD
from dataloader.ho3d.labels import assemble
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.hand.standin import build_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import DatasetConfig, ModelConfig, RunConfig
from src.hand.mano import ManoLayer
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, DEPTH_UNIT_M

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


def _first_version(dataset: HO3DDataset, key: SampleKey) -> dict[str, Tensor]:
    """One sample as the first version made it: everything decoded, everything float32 on the host."""
    config = dataset.config
    change = draw(config.augmentation, config.seed, key.epoch, key.index)
    labels = dataset.frames.labels(np.array([key.index]))
    camera = dataset._camera(key.index, labels, change)
    stored = cv2.imread(str(dataset._path(key.index, "rgb")))
    depth_bytes = cv2.imread(str(dataset._path(key.index, "depth")))
    assert stored is not None
    assert depth_bytes is not None
    picture = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    depth_m = (depth_bytes[..., 2] + depth_bytes[..., 1] * np.float32(256)) * np.float32(DEPTH_UNIT_M)
    size = (camera.size[1], camera.size[0])
    rgb = cv2.warpPerspective(picture, camera.crop_from_img, size, flags=cv2.INTER_LINEAR)
    depth = cv2.warpPerspective(depth_m, camera.crop_from_img, size, flags=cv2.INTER_NEAREST)
    colour = change.colour()
    rgb = np.clip(rgb @ colour[:, :3].T + colour[:, 3], 0, 1)
    rgb = (rgb - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    rng = np.random.default_rng(change.noise_seed)
    measured = depth > 0
    depth = depth + rng.standard_normal(depth.shape, np.float32) * np.float32(change.depth_noise_m)
    z_ref = z_ref_from_box(camera)
    depth = np.where(measured, np.clip((depth - z_ref) / DEPTH_RANGE_M, -DEPTH_CLIP, DEPTH_CLIP), 0)
    if not _shown(dataset, key):
        depth, measured = np.zeros_like(depth), np.zeros_like(measured)
    blank = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint16)
    sample = assemble(key.index, camera, change, True, *blank, z_ref, labels, dataset._rest_root_m[key.index])
    fields = {
        f.name: torch.from_numpy(np.asarray(getattr(sample, f.name))) for f in dataclasses.fields(sample)
    }
    return fields | {
        "rgb": torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1), np.float32)),
        "depth": torch.from_numpy(depth[None].astype(np.float32)),
        "valid": torch.from_numpy(measured[None].astype(np.float32)),
    }


def _shown(dataset: HO3DDataset, key: SampleKey) -> bool:
    """Whether the sample keeps its depth."""
    config = dataset.config
    return show_depth(dataset.modality, config.dataset.p_drop_depth, config.seed, key.epoch, key.index)


def _candidates(datasets: dict[str, HO3DDataset]) -> dict[str, Callable[[], object]]:
    """One epoch of each path."""
    plain = datasets["no cache"]
    keys = [SampleKey(i, 1) for i in range(len(plain))]
    batches = [keys[k : k + BATCH] for k in range(0, len(keys), BATCH)]

    def raw_limit() -> None:
        for key in keys:
            cv2.imread(str(plain._path(key.index, "rgb")))
            if _shown(plain, key):
                cv2.imread(str(plain._path(key.index, "depth")), cv2.IMREAD_UNCHANGED)

    def first_version() -> None:
        for batch in batches:
            samples = [_first_version(plain, key) for key in batch]
            {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def ours(dataset: HO3DDataset) -> None:
        for batch in batches:
            collate(dataset.raws(batch))

    return {
        "first version": first_version,
        "raw limit": raw_limit,
        **{name: (lambda d=dataset: ours(d)) for name, dataset in datasets.items()},
    }


def _disk_kib(dataset: HO3DDataset) -> NDArray[np.float64]:
    """(N,) KiB of the frames of a cached data set."""
    assert dataset.cache is not None
    table = dataset.cache.table
    return np.asarray((table["rgb"][:, 1] + table["depth"][:, 1]) / 1024)


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
            data = DatasetConfig(root_dir=root, index_workers=2, num_workers=0)
            config = RunConfig(dataset=data, model=ModelConfig(image_size=size))
            settings = {
                "no cache": data,
                "cache raw": dataclasses.replace(data, cache="auto"),
                "cache compact": dataclasses.replace(data, cache="auto", cache_format="compact"),
            }
            datasets = {
                name: build_dataset(
                    dataclasses.replace(config, dataset=d), "train", hand, show_progress=False
                )
                for name, d in settings.items()
            }
            rows += _table(size, datasets)
    report("data_path", rows)


def _table(size: tuple[int, int], datasets: dict[str, HO3DDataset]) -> list[Row]:
    """Rows of one crop size."""
    seconds = interleaved(_candidates(datasets), REPEATS)
    ms = {name: value / len(datasets["no cache"]) * 1e3 for name, value in seconds.items()}
    crop = f"{size[0]}x{size[1]}"
    pairs = [
        ("no cache", "raw limit"),
        *((name, "first version") for name in datasets),
        ("cache raw", "no cache"),
        ("cache compact", "no cache"),
    ]
    rows = [
        Row(f"{crop} {a}: {ms[a]:.2f}", f"{b}: {ms[b]:.2f}", ms[b] / ms[a], "ms a sample") for a, b in pairs
    ]
    raw, compact = _disk_kib(datasets["cache raw"]), _disk_kib(datasets["cache compact"])
    rows.append(
        Row(
            f"{crop} compact, disk: {compact.mean():.0f} (largest {compact.max():.0f})",
            f"raw: {raw.mean():.0f}",
            float(raw.mean() / compact.mean()),
            "KiB a frame",
        )
    )
    return rows


if __name__ == "__main__":
    main()
