"""Crop cache: the same samples as without it, or an error or a line that says why not."""

from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zstandard

from dataloader.batches.samplers import SampleKey
from dataloader.cache import build as cache_build
from dataloader.cache.codec import pack_depth, pack_rgb, unpack_depth, unpack_rgb
from dataloader.crop.camera import Window
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures.decode import PictureFrame
from src.config import RunConfig
from src.errors import DataError
from tests.dataloader.tree import Tree, dataset_of, run_config, train_meta, write_meta, write_tree

FORK = multiprocessing.get_context("fork")
JOIN_S = 120
PROBES = 8
"""Frames that are encoded for the estimate."""


def config_of(root: Path, cache: Path | str, **sections: Any) -> RunConfig:
    """18 training and 6 validation frames, cached."""
    data = {"cache": str(cache), **sections.pop("dataset", {})}
    return run_config(root, dataset=data, **({"split": {"val_percent": 25}} | sections))


def cached(root: Path, cache: Path | str, split: str = "train", **sections: Any) -> Any:
    """The dataset of `config_of`."""
    return dataset_of(config_of(root, cache, **sections), split)  # type: ignore[arg-type]


def differing(a: HO3DDataset, b: HO3DDataset, epochs: int = 1) -> list[str]:
    """Fields of all samples that are not equal bit for bit."""
    keys = [SampleKey(i, epoch) for i in range(len(a)) for epoch in range(epochs)]
    mine, other = (dataset.batch(keys).fields() for dataset in (a, b))
    return [name for name in mine if mine[name].numpy().tobytes() != other[name].numpy().tobytes()]


def all_of(dataset: HO3DDataset) -> None:
    """Read every sample with its depth."""
    shown = dataset.view(modality="rgbd", augmented=dataset.augmenter is not None)
    shown.batch([SampleKey(i) for i in range(len(dataset))])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pictures encoded by this process from now on."""
    names: list[str] = []
    original = cache_build.encode_frame
    monkeypatch.setattr(
        cache_build, "encode_frame", lambda paths, *a: (names.append(paths[0].name), original(paths, *a))[1]
    )
    return names


@pytest.fixture(autouse=True)
def one_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process writes, unless a test says otherwise."""
    monkeypatch.setattr(cache_build, "worker_count", lambda: 1)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the cache has logged."""
    monkeypatch.setattr(logging.getLogger("utnet"), "propagate", True)
    caplog.set_level(logging.INFO, "utnet")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("size", "workers"), [((128, 96), 1), ((64, 64), 2)])
def test_raw_gives_the_bytes_of_no_cache(
    tree: Tree, tmp_path: Path, monkeypatch: Any, size: tuple[int, int], workers: int
) -> None:
    """A cache that changes a sample changes what is trained and scored: speed must not."""
    monkeypatch.setattr(cache_build, "worker_count", lambda: workers)
    for split in ("train", "val", "evaluation"):
        plain = cached(tree[0], "off", split, image_size=size)
        other = cached(tree[0], tmp_path, split, image_size=size)
        assert (plain.cache, other.cache is not None) == (None, True)
        assert not differing(plain, other, epochs=4), split
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2  # train and val share one


def test_a_loader_process_reads_the_same_cache(tree: Tree, tmp_path: Path) -> None:
    """Pickled, 50 GiB of pixels would be copied; another run's cache must not be read as this one (25)."""
    dataset = cached(tree[0], tmp_path)
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    late = pickle.loads(packed)
    wider = config_of(tree[0], tmp_path, dataset={"box_scale": 2.0})
    other = FORK.Process(target=dataset_of, args=(wider,))
    other.start()
    other.join(JOIN_S)
    assert other.exitcode == 0
    assert not differing(late, dataset)
    late = pickle.loads(packed)
    part = dataset.cache.derived.path("part-00000.bin")
    part.write_bytes(part.read_bytes())
    with pytest.raises(DataError, match=r"part-00000\.bin is not the file that this run opened"):
        all_of(late)


def test_compact_is_small_faithful_and_lossless_in_depth(tree: Tree, tmp_path: Path) -> None:
    """RGB at 42 dB or better; a lossy depth would be a wrong label of the surface."""
    raw, compact = (cached(tree[0], tmp_path, dataset={"cache_format": kind}) for kind in ("raw", "compact"))
    for i in range(len(raw)):
        row = int(compact.frames.split.rows[i])
        held = compact.cache.frame(row, "")
        window = Window(*compact.cache.table["window"][row].tolist())
        file = PictureFrame(raw.frames.path(i, "rgb"), raw.frames.path(i, "depth"))
        rgb = (np.ascontiguousarray(frame.rgb(window)) for frame in (file, held))
        assert cv2.PSNR(*rgb) >= 42
        assert np.array_equal(file.depth(window), held.depth(window))
        x0, y0, x1, y1 = window
        assert x0 % 16 == y0 % 16 == 0, "cut across JPEG's blocks, the same quality takes half as much again"
        assert x1 % 16 == 0 or x1 == file.size[1]
        assert y1 % 16 == 0 or y1 == file.size[0]
    sizes = [sum(p.stat().st_size for p in d.cache.derived.folder.iterdir()) for d in (compact, raw)]
    assert sizes[0] < sizes[1] / 4
    with_depth = [d.view(modality="rgbd", augmented=True) for d in (raw, compact)]
    assert differing(with_depth[0], with_depth[1], epochs=3) == ["rgb_u8"]


@pytest.mark.parametrize("blur", [0, 9])
def test_the_codec_keeps_its_promise_on_hard_pictures(blur: int) -> None:
    """A quality that suits most pictures would fail on the noisiest without a word."""
    rgb = np.random.default_rng(0).integers(0, 256, (67, 91, 3), np.uint8)
    rgb = cv2.GaussianBlur(rgb, (0, 0), blur) if blur else rgb
    data, whole = pack_rgb(rgb, "compact"), (slice(0, 67), slice(0, 91))
    assert cv2.PSNR(np.ascontiguousarray(unpack_rgb(data, "compact", (67, 91), whole)), rgb) >= 42


def test_every_step_of_depth_comes_back() -> None:
    """A step at the edge of what one byte holds, read with the wrong sign, lifts all pixels below it."""
    every = np.stack([np.zeros(1 << 16, np.uint16), np.arange(1 << 16, dtype=np.uint16)])
    noise = np.random.default_rng(0).integers(0, 1 << 16, (67, 91)).astype(np.uint16)
    for depth in (every, every[::-1], np.cumsum(every, axis=1, dtype=np.uint16), noise):
        packed, (height, width) = pack_depth(depth, "compact"), depth.shape
        for top, left in ((0, 0), (height // 2, width // 3)):
            cut = slice(top, height), slice(left, width)
            assert np.array_equal(unpack_depth(packed, "compact", depth.shape, cut), depth[cut])


def test_a_new_layout_needs_a_new_format_number() -> None:
    """A cache written before the change would pass its checksums and be read as other depths."""
    y, x = np.mgrid[:40, :30].astype(np.uint16)
    packed = pack_depth((y * 37 + x * x * 11) % 3000, "compact").tobytes()
    assert cache_build.FORMATS == {"raw": 3, "compact": 5}
    stored = zstandard.ZstdDecompressor().decompress(packed)
    assert hashlib.sha256(stored).hexdigest()[:16] == "2a621f2c54cc973b"


REASONS = {
    "picture": "cannot be used (the data set has changed",
    "hands": "cannot be used (the data set has changed",
    "format": "cannot be used (it was written by another version",
    "augmentation": "cannot be used (its crops reach less far",
    "truncated": "damaged or incomplete",
}


@pytest.mark.parametrize("change", REASONS)
def test_a_cache_that_does_not_fit_is_written_anew_with_a_line(
    tmp_path: Path, change: str, lines: Any, monkeypatch: Any
) -> None:
    """Silently read, it would train on other pictures than the data set's; silently rebuilt, it wonders."""
    root, place, ranges = tmp_path / "HO3D", tmp_path / "cache", {"roll_deg": 30.0}
    frames = write_tree(root, {"MC1": 4})
    folder = cached(root, place, augmentation=ranges).cache.derived.folder
    if change == "picture":
        cv2.imwrite(str(root / "train/MC1/rgb/0005.jpg"), np.full((480, 640, 3), 7, np.uint8))
    elif change == "hands":  # another annotation of the same pictures: 60 mm to the side
        for name, frame in frames.items():
            meta = train_meta(frame)
            moved = {key: meta[key] + np.array([0.06, 0, 0]) for key in ("handJoints3D", "handTrans")}
            write_meta(root / f"train/MC1/meta/{name[-4:]}.pkl", meta | moved)
    elif change == "format":
        monkeypatch.setitem(cache_build.FORMATS, "raw", cache_build.FORMATS["raw"] + 1)
    elif change == "augmentation":
        ranges = {}
    else:
        part = folder / "part-00000.bin"
        os.truncate(part, part.stat().st_size - 1)
    assert "cannot be used" not in lines()
    dataset = cached(root, place, augmentation=ranges)
    assert REASONS[change] in lines()
    assert not differing(cached(root, "off", augmentation=ranges), dataset)


def test_a_cache_with_more_margin_is_used_again(tree: Tree, tmp_path: Path, encoded: list[str]) -> None:
    """Neither a second start nor another augmentation may cost an hour of decoding."""
    cached(tree[0], tmp_path)
    assert len(encoded) == 24 + PROBES
    encoded.clear()
    cached(tree[0], tmp_path, "val")
    cached(tree[0], tmp_path, augmentation={"roll_deg": 30.0}, image_size=(64, 48))
    without = cached(tree[0], tmp_path, augmentation={"enabled": False})
    assert not encoded
    assert not differing(cached(tree[0], "off", augmentation={"enabled": False}), without)
    cached(tree[0], tmp_path, dataset={"box_scale": 1.7})
    assert encoded


@pytest.mark.parametrize("roll_deg", [0.0, 20.0])
def test_upright_crops_are_in_a_cache_of_little_roll(tree: Tree, tmp_path: Path, roll_deg: float) -> None:
    """Cut from the picture upright, a hand that points aside reached beyond the cache and ended the run."""
    sections = {"augmentation": {"roll_deg": roll_deg}, "model": {"second_look": True}}
    assert not differing(cached(tree[0], "off", **sections), cached(tree[0], tmp_path, **sections), 20)


def test_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    """A bad disk: sizes fit, pixels do not (lesson 27)."""
    root = tmp_path / "HO3D"
    write_tree(root, {"MC1": 4})
    folder = cached(root, "auto").cache.derived.folder
    assert folder.parent == root / ".utnet"
    with (folder / "part-00000.bin").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x99\x12\x34\x56\x78")
    with pytest.raises(DataError, match=r"damaged.*checksum.*Delete"):
        all_of(cached(root, "auto"))


@pytest.mark.parametrize("kind", ["rgb/0003.jpg", "depth/0003.png"])
def test_an_unreadable_picture_says_the_same_as_without(tmp_path: Path, kind: str) -> None:
    """The frame to mend must be named, before hours of training and not after; a hole is not frozen in."""
    root = tmp_path / "HO3D"
    write_tree(root, {"MC1": 4})
    sides = [cached(root, "off", split) for split in ("train", "val")]
    path = root / "train/MC1" / kind
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError) as without:
        [all_of(side) for side in sides]
    with pytest.raises(DataError, match="0003") as caught:
        cached(root, tmp_path / "cache")
    assert str(caught.value) == str(without.value)
    assert not list((tmp_path / "cache").rglob("part-*"))


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tree: Tree, tmp_path: Path, monkeypatch: Any, lines: Any
) -> None:
    """After an hour of writing it is too late, and a full disk also stops the run's checkpoints."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_build.shutil, "disk_usage", lambda _: usage._replace(free=70 << 20))
    with pytest.raises(DataError, match=r"needs about .* GiB.*cache_format=compact"):
        cached(tree[0], tmp_path)
    assert "24 frames to decode once" in lines()
    assert "0.1 GiB free" in lines()
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("torn", [False, True])
def test_a_disk_that_fills_up_keeps_what_is_finished(
    tree: Tree, tmp_path: Path, monkeypatch: Any, encoded: list[str], torn: bool
) -> None:
    """Someone else's files: one line, nothing half stays. What a lost power cut is no crash in hour three."""
    counted = cache_build.encode_frame

    def encode(*job: Any) -> Any:
        if len(encoded) > PROBES + 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return counted(*job)

    monkeypatch.setattr(cache_build, "encode_frame", encode)
    with pytest.raises(DataError, match=r"No space left.*Finished parts are kept"):
        cached(tree[0], tmp_path)
    (folder,) = tmp_path.glob("*-crops-raw-*.part")
    (part,) = folder.iterdir()
    if torn:
        os.truncate(part, part.stat().st_size - 1000)
    monkeypatch.setattr(cache_build, "encode_frame", counted)
    encoded.clear()
    again = cached(tree[0], tmp_path)
    assert len(encoded) == PROBES + (24 if torn else 8)
    all_of(again)


def test_a_place_that_cannot_be_written_names_the_key(tree: Tree, tmp_path: Path) -> None:
    """Data sets often lie on a read-only share."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"crop cache: cannot write.*dataset.cache=PATH"):
        cached(tree[0], tmp_path / "file")


def test_a_killed_writer_leaves_what_it_finished(
    tree: Tree, tmp_path: Path, monkeypatch: Any, encoded: list[str]
) -> None:
    """kill -9 of the writing run: its helpers go with it, the lock is free, finished parts stay."""
    original = cache_build._write_part

    def kill_parent(kind: str, part: Any) -> Any:
        if part.number == 1:
            while not list(tmp_path.glob("*/part-00000.bin")):
                time.sleep(0.01)
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(JOIN_S)
        return original(kind, part)

    # By its name, as the pool's processes look it up: they are forks of the one that has replaced it.
    kill_parent.__module__, kill_parent.__qualname__ = original.__module__, original.__qualname__
    monkeypatch.setattr(cache_build, "_write_part", kill_parent)
    monkeypatch.setattr(cache_build, "worker_count", lambda: 2)
    process = FORK.Process(target=dataset_of, args=(config_of(tree[0], tmp_path),))
    process.start()
    process.join(JOIN_S)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(cache_build, "_write_part", original)
    (folder,) = tmp_path.glob("*-crops-raw-*.part")
    (folder / ".part-00001.bin.1.2.part").touch()  # as a writer killed inside a part leaves it
    cached(tree[0], tmp_path)
    assert len(encoded) == PROBES + 8
    assert not list(tmp_path.rglob("*.part"))
