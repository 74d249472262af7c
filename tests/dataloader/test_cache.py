"""Crop cache: the same samples as without it, or an error or a line that says why not."""

from __future__ import annotations

import dataclasses
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
from dataloader.cache import codec as cache_codec
from dataloader.cache import part as cache_part
from dataloader.cache.codec import decode_depth, decode_rgb, encode_depth, encode_rgb
from dataloader.cache.crop_cache import TABLE, CropCache
from dataloader.cache.window import geometry_of, within_reach
from dataloader.ho3d.labels import hands_of
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures import decode
from dataloader.pictures.decode import PictureFrame
from dataloader.pictures.jpeg_file import jpeg_quality
from src.config import RunConfig
from src.config_file import load_config
from src.errors import DataError
from src.schema import RawSample
from tests.dataloader.tree import FanHand, Frame, run_config, train_meta, write_meta, write_tree

Tree = tuple[Path, dict[str, Frame]]
FORK = multiprocessing.get_context("fork")
JOIN_S = 120


def config_of(root: Path, cache: Path | str, workers: int = 1, **sections: Any) -> RunConfig:
    """18 training and 6 validation frames, cached."""
    data = {"cache": str(cache), "index_workers": workers, **sections.pop("dataset", {})}
    return run_config(root, dataset=data, **({"split": {"val_percent": 25}} | sections))


def dataset_of(config: RunConfig, split: str = "train") -> HO3DDataset:
    """The dataset with the fan hand."""
    return HO3DDataset(config, split, FanHand(), show_progress=False)  # type: ignore[arg-type]


def differing(a: RawSample, b: RawSample) -> list[str]:
    """Fields that are not equal bit for bit."""
    return [
        f.name
        for f in dataclasses.fields(a)
        if np.asarray(getattr(a, f.name)).tobytes() != np.asarray(getattr(b, f.name)).tobytes()
    ]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows encoded by this process from now on, without those of the estimate."""
    rows: list[int] = []
    original = cache_part.encode_frame
    monkeypatch.setattr(
        cache_part, "encode_frame", lambda plan, row: (rows.append(row), original(plan, row))[1]
    )
    return rows


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the cache has logged."""
    monkeypatch.setattr(logging.getLogger("utnet"), "propagate", True)
    caplog.set_level(logging.INFO, "utnet")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("size", [(128, 96), (64, 64)])
def test_raw_gives_the_bytes_of_no_cache(tree: Tree, tmp_path: Path, size: tuple[int, int]) -> None:
    """A cache that changes a sample changes what is trained and scored: speed must not."""
    for split in ("train", "val", "evaluation"):
        plain = dataset_of(config_of(tree[0], "off", image_size=size), split)
        cached = dataset_of(config_of(tree[0], tmp_path, image_size=size), split)
        assert (plain._cache, cached._cache is not None) == (None, True)
        for i in range(len(plain)):
            for epoch in range(4):
                key = SampleKey(i, epoch)
                assert not differing(plain.raw(key), cached.raw(key)), (split, key)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2  # train and val share one


def test_a_loader_process_reads_the_same_cache(tree: Tree, tmp_path: Path) -> None:
    """Pickled, 50 GiB of pixels would be copied; and another run's cache must not be read as this one."""
    dataset = dataset_of(config_of(tree[0], tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    assert not differing(copy.raw(SampleKey(3, 1)), dataset.raw(SampleKey(3, 1)))
    assert len(pickle.dumps(dataset)) < 20_000
    late = pickle.loads(pickle.dumps(dataset))
    other = FORK.Process(target=_ensure, args=(config_of(tree[0], tmp_path, dataset={"box_scale": 2.0}),))
    other.start()
    other.join(JOIN_S)
    assert other.exitcode == 0
    assert not differing(late.raw(SampleKey(3, 1)), dataset.raw(SampleKey(3, 1)))
    late = pickle.loads(pickle.dumps(dataset))
    part = dataset._cache.derived.path("part-00000.bin")
    part.write_bytes(part.read_bytes())
    with pytest.raises(DataError, match=r"part-00000\.bin is not the file that this run opened"):
        [late.raw(SampleKey(i, 1)) for i in range(len(late))]
    assert pickle.loads(pickle.dumps(dataset_of(config_of(tree[0], "off"))))._cache is None


def test_dropped_depth_is_not_read_from_the_cache(tree: Tree, tmp_path: Path, monkeypatch: Any) -> None:
    """40 % of the training samples: their depth pages would be the larger part of what the disk reads."""
    dataset = dataset_of(config_of(tree[0], tmp_path))
    original, kinds = CropCache.data, []
    monkeypatch.setattr(
        CropCache, "data", lambda s, row, kind, *a: (kinds.append(kind), original(s, row, kind, *a))[1]
    )
    shown = [bool(dataset.raw(SampleKey(i, e)).depth_present) for i in range(18) for e in range(3)]
    assert 0 < sum(shown) < len(shown)
    assert (kinds.count(0), kinds.count(1)) == (len(shown), sum(shown))


def test_nothing_is_decoded_once_the_cache_is_made(tree: Tree, tmp_path: Path, monkeypatch: Any) -> None:
    """Also not by the second start, which must take no time."""
    dataset_of(config_of(tree[0], tmp_path))
    monkeypatch.setattr(decode, "_decode", lambda *_: pytest.fail("a picture was decoded"))
    monkeypatch.setattr(cache_build, "reach", lambda *_: pytest.fail("windows were computed"))
    for split in ("train", "val"):
        dataset = dataset_of(config_of(tree[0], tmp_path), split)
        dataset.raw(SampleKey(0))


def test_compact_is_small_faithful_and_lossless_in_depth(tree: Tree, tmp_path: Path) -> None:
    """RGB at 42 dB or better, whatever the picture; a lossy depth would be a wrong label of the surface."""
    raw = dataset_of(config_of(tree[0], tmp_path))
    compact = dataset_of(config_of(tree[0], tmp_path, dataset={"cache_format": "compact"}))
    geometry = geometry_of(raw.config, "train")
    records = raw.index.rows[raw.split.rows]
    for i in range(len(raw)):
        b = compact._cache.frame(int(compact.split.rows[i]), "")
        seen = within_reach(*(part[i] for part in hands_of(records)), geometry, b._window)
        file, shown = frame_of(raw, i).rgb(b._window)[seen], b.rgb(b._window)[seen]
        assert seen.mean() < 0.95  # corners that no crop sees
        assert cv2.PSNR(np.ascontiguousarray(file), np.ascontiguousarray(shown)) >= 42
        assert np.array_equal(frame_of(raw, i).depth(b._window)[seen], b.depth(b._window)[seen])
    with_depth = [d.view(modality="rgbd", augmented=True) for d in (raw, compact)]
    for key in [SampleKey(i, epoch) for i in range(len(raw)) for epoch in range(12)]:
        assert set(differing(*(d.raw(key) for d in with_depth))) <= {"rgb_u8"}, key


def test_what_nobody_sees_costs_next_to_nothing() -> None:
    """A fifth of every compact window is out of reach: kept, it would be a fifth of the disk."""
    rng = np.random.default_rng(0)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 1.5)
    depth = rng.normal(5000, 16, (256, 256)).astype(np.uint16)
    depth[100:140, 60:200] = 0
    y, x = np.mgrid[:256, :256]
    seen = np.hypot(x - 128, y - 128) < 80  # 31 %; 39 % of the blocks
    for whole, part in (
        (encode_rgb(rgb, "compact", 90), encode_rgb(rgb, "compact", 90, seen)),
        (encode_depth(depth, "compact"), encode_depth(depth, "compact", seen)),
    ):
        assert len(part) < 0.48 * len(whole)
    shown = decode_rgb(encode_rgb(rgb, "compact", 90, seen), seen.shape, "compact")
    assert cv2.PSNR(np.ascontiguousarray(shown[seen]), np.ascontiguousarray(rgb[seen])) >= 42
    assert np.array_equal(decode_depth(part, seen.shape, "compact")[seen], depth[seen])
    for mask in (np.ones_like(seen), np.zeros_like(seen)):
        again = decode_depth(encode_depth(depth, "compact", mask), seen.shape, "compact")
        assert np.array_equal(again, depth)
        assert encode_rgb(rgb, "compact", 90, mask).size > 0


def test_compact_windows_keep_what_the_jpeg_held(tree: Tree, tmp_path: Path) -> None:
    """Cut across JPEG's blocks, the same quality costs twenty decibels, or twice the disk."""
    compact = dataset_of(config_of(tree[0], tmp_path, dataset={"cache_format": "compact"}))
    raw = dataset_of(config_of(tree[0], tmp_path))
    for i in range(len(raw)):
        frame, whole = compact._cache.frame(int(compact.split.rows[i]), ""), frame_of(raw, i)
        window = frame._window
        assert window.x0 % 16 == window.y0 % 16 == 0
        assert window.x1 % 16 == 0 or window.x1 == whole.size[1]
        assert window.y1 % 16 == 0 or window.y1 == whole.size[0]


def test_a_window_along_the_blocks_takes_fewer_bytes() -> None:
    """The ladder must begin with the file's own quality: any other spends bytes on the first one's losses."""
    drawn = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    grey = np.repeat(cv2.GaussianBlur(drawn, (0, 0), 0.7)[..., :1], 3, axis=-1)
    file = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    shown = cv2.imdecode(file, cv2.IMREAD_COLOR_RGB)
    quality = jpeg_quality(file.tobytes())
    along, across = (encode_rgb(shown[s : s + 192, s : s + 192], "compact", quality) for s in (16, 21))
    assert len(along) < 0.8 * len(across)
    window = np.ascontiguousarray(shown[16:208, 16:208, ::-1])
    usual = cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    assert len(along) < 0.99 * len(usual)  # its own Huffman tables
    assert cv2.PSNR(decode_rgb(along, (192, 192), "compact"), shown[16:208, 16:208].copy()) > 50


def frame_of(dataset: Any, i: int) -> PictureFrame:
    """A sample's files, decoded."""
    return PictureFrame(dataset._path(i, "rgb"), dataset._path(i, "depth"))


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_the_codec_keeps_its_promise_on_hard_pictures(kind: str) -> None:
    """A quality that suits most pictures would fail on the noisiest without a word."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (67, 91, 3), np.uint8)
    depth = rng.integers(0, 2**16, (67, 91)).astype(np.uint16)
    if kind == "smooth":
        rgb = cv2.GaussianBlur(rgb, (0, 0), 9)
    data = encode_rgb(rgb, "compact")
    assert cv2.PSNR(decode_rgb(data, (67, 91), "compact"), rgb) >= 42
    sloped = np.arange(67 * 91).reshape(67, 91) // 7 * 8 + 3  # few values, small steps
    for picture in (
        depth,
        sloped.astype(np.uint16),
        np.full((67, 91), 65535, np.uint16),
        depth[:1],
        depth[:0],
    ):
        packed = encode_depth(picture, "compact")
        assert np.array_equal(decode_depth(packed, picture.shape, "compact"), picture)
        cut = (slice(5, 60), slice(80, 91))
        assert np.array_equal(decode_depth(packed, picture.shape, "compact", cut), picture[cut])
    with pytest.raises(DataError, match="stored"):
        decode_rgb(data, (66, 91), "compact")
    for function, name in ((decode_rgb, "RGB"), (decode_depth, "depth")):
        with pytest.raises(DataError, match=name):
            function(np.zeros(50, np.uint8), (67, 91), "compact")
    assert decode_rgb(encode_rgb(rgb[:0], kind), (0, 91), "compact").shape == (0, 91, 3)


def test_every_step_of_depth_comes_back() -> None:
    """A step at the edge of what one byte holds, read with the wrong sign, lifts all pixels below it."""
    every = np.stack([np.zeros(1 << 16, np.uint16), np.arange(1 << 16, dtype=np.uint16)])
    for picture in (every, every[::-1], np.cumsum(every, axis=1, dtype=np.uint16)):
        packed = encode_depth(picture, "compact")
        assert np.array_equal(decode_depth(packed, picture.shape, "compact"), picture)
        cut = (slice(1, 2), slice(32_000, 33_000))
        assert np.array_equal(decode_depth(packed, picture.shape, "compact", cut), picture[cut])


def test_a_new_layout_needs_a_new_format_number() -> None:
    """A cache written before the change would pass its checksums and be read as other depths."""
    y, x = np.mgrid[:40, :30].astype(np.uint16)
    packed = encode_depth((y * 37 + x * x * 11) % 3000, "compact").tobytes()
    stored = packed[:8] + zstandard.ZstdDecompressor().decompress(packed[8:])
    assert cache_build.FORMATS == {"raw": 3, "compact": 4}
    assert hashlib.sha256(stored).hexdigest()[:16] == "40edd5546314c41d"


def test_damaged_counts_of_depth_are_an_error() -> None:
    """A loader process that ends in an IndexError names neither the file nor what to do."""
    few = np.random.default_rng(0).choice(np.array([0, 9000, 60000], np.uint16), (40, 30))
    packed = encode_depth(few, "compact")
    assert np.array_equal(decode_depth(packed, few.shape, "compact"), few)
    swapped = packed.copy()
    swapped[:4], swapped[4:8] = packed[4:8], packed[:4]
    plain = bytearray(zstandard.ZstdDecompressor().decompress(packed[8:].tobytes()))
    plain[-1] ^= 0x40
    stepped = np.frombuffer(
        packed[:8].tobytes() + zstandard.ZstdCompressor().compress(bytes(plain)), np.uint8
    )
    for bad in (swapped, stepped):
        with pytest.raises(DataError, match="stored depth"):
            decode_depth(bad, few.shape, "compact")


@pytest.mark.parametrize("kind", ["raw", "compact"])
def test_a_kind_is_written_anew_for_its_own_format_alone(
    tree: Tree, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    """Decoded by other code, a kept cache is wrong; written anew for another kind's sake, it costs hours."""
    config = config_of(tree[0], tmp_path, dataset={"cache_format": kind})
    written = dataset_of(config)._cache.derived.folder
    other = "raw" if kind == "compact" else "compact"
    monkeypatch.setitem(cache_build.FORMATS, other, 99)
    assert dataset_of(config)._cache.derived.folder == written
    monkeypatch.setitem(cache_build.FORMATS, kind, 99)
    again = dataset_of(config)._cache.derived
    assert again.folder != written
    assert again.fingerprint["format"] == 99


@pytest.mark.parametrize(
    "change", ["data", "picture", "hands", "format", "augmentation", "truncated", "missing", "marker"]
)
def test_a_cache_that_does_not_fit_is_written_anew_with_a_line(
    tmp_path: Path, change: str, lines: Any, monkeypatch: Any
) -> None:
    """Silently read, it would train on other pictures than the data set's; silently rebuilt, it wonders."""
    root, place = tmp_path / "HO3D", tmp_path / "cache"
    frames = write_tree(root, {"MC1": 20})
    config = config_of(root, place, augmentation={"shift": 0.05})
    folder = dataset_of(config)._cache.derived.folder
    part = folder / "part-00000.bin"
    if change == "data":
        (root / "train/MC1/rgb/x").touch()
    elif change == "picture":
        cv2.imwrite(str(root / "train/MC1/rgb/0005.jpg"), np.full((480, 640, 3), 7, np.uint8))
    elif change == "hands":  # another annotation of the same pictures: 60 mm to the side
        for name, frame in frames.items():
            meta = train_meta(frame)
            moved = {key: meta[key] + np.array([0.06, 0, 0]) for key in ("handJoints3D", "handTrans")}
            write_meta(root / f"train/MC1/meta/{name[-4:]}.pkl", meta | moved)
    elif change == "format":
        monkeypatch.setitem(cache_build.FORMATS, "raw", cache_build.FORMATS["raw"] + 1)
    elif change == "augmentation":
        config = config_of(root, place)
    elif change == "truncated":
        os.truncate(part, part.stat().st_size - 1)
    elif change == "missing":
        part.unlink()
    else:
        (folder / "derived.json").write_text("{")
    assert "cannot be used" not in lines()
    dataset = dataset_of(config)
    reason = {
        "data": "cannot be used (the data set has changed",
        "picture": "cannot be used (the data set has changed",
        "hands": "cannot be used (the data set has changed",
        "format": "cannot be used (it was written by another version",
        "augmentation": "cannot be used (its crops reach less far",
    }.get(change, "damaged or incomplete")
    assert reason in lines()
    plain = dataset_of(dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, cache="off")))
    assert not any(differing(plain.raw(SampleKey(i, 2)), dataset.raw(SampleKey(i, 2))) for i in range(15))


def test_a_cache_with_more_margin_is_used_again(tree: Tree, tmp_path: Path, encoded: list[int]) -> None:
    """Trying other augmentations must not cost an hour of decoding each."""
    dataset_of(config_of(tree[0], tmp_path))
    assert sorted(set(encoded)) == list(range(24))
    encoded.clear()
    dataset_of(
        config_of(tree[0], tmp_path, augmentation={"scale": 0.1, "roll_deg": 30.0}, image_size=(64, 48))
    )
    without = dataset_of(config_of(tree[0], tmp_path, augmentation={"enabled": False}))
    assert not encoded
    plain = dataset_of(config_of(tree[0], "off", augmentation={"enabled": False}))
    assert not differing(plain.raw(SampleKey(1)), without.raw(SampleKey(1)))
    dataset_of(config_of(tree[0], tmp_path, dataset={"box_scale": 1.7}))
    assert encoded


def test_a_crop_beyond_the_window_is_an_error(tree: Tree, tmp_path: Path) -> None:
    """Reading zeros there would paint black borders that no picture has."""
    small = dataset_of(config_of(tree[0], tmp_path, augmentation={"enabled": False}))
    small.config = config_of(tree[0], tmp_path)
    with pytest.raises(DataError, match=r"train/\w+/rgb/\d+.jpg: a crop looks.*cache holds"):
        [small.view(modality="rgb", augmented=True).raw(SampleKey(i)) for i in range(18)]


def test_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    """A bad disk: sizes fit, pixels do not."""
    root = tmp_path / "HO3D"
    write_tree(root, {"MC1": 4})
    config = config_of(root, "auto")
    folder = dataset_of(config)._cache.derived.folder
    assert folder.parent == root / ".utnet"
    part = folder / "part-00000.bin"
    size = part.stat().st_size
    with part.open("r+b") as file:
        file.seek(size - 5)
        file.write(b"\x99\x12\x34\x56\x78")
    damaged = dataset_of(config)
    with pytest.raises(DataError, match=r"damaged.*checksum.*Delete"):
        [damaged.view(modality="rgbd", augmented=True).raw(SampleKey(i)) for i in range(len(damaged))]


def test_a_window_off_by_a_pixel_is_never_used(tmp_path: Path) -> None:
    """Pixels that fit their checksum, one to the right of where they belong: a wrong picture, silently."""
    root = tmp_path / "HO3D"
    write_tree(root, {"MC1": 4})
    config = config_of(root, "auto")
    path = dataset_of(config)._cache.derived.path(TABLE)
    table = np.load(path, mmap_mode="r+")
    whole = np.array(table)
    table["window"][1, [0, 2]] -= 1
    table.flush()
    assert np.array_equal(dataset_of(config)._cache._table, whole), "it is not written anew"


def test_the_probe_of_the_disk_follows_no_link(tmp_path: Path) -> None:
    """In a folder that others write to, a link under the probe's name emptied any file of the trainer's."""
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    for name in ("probe.part", "probe"):
        (tmp_path / name).symlink_to(theirs)
    assert cache_build._seconds_per_byte(tmp_path, np.zeros(1 << 20, np.uint8)) > 0
    assert theirs.read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["probe", "probe.part", "theirs"]


@pytest.mark.parametrize("kind", ["rgb", "hole", "depth", "size"])
def test_an_unreadable_picture_says_the_same_as_without(tmp_path: Path, kind: str) -> None:
    """The frame to mend must be named, before hours of training and not after; a hole is not frozen in."""
    root = tmp_path / "HO3D"
    write_tree(root, {"MC1": 4})
    sides = [dataset_of(config_of(root, "off"), split) for split in ("train", "val")]
    path = root / f"train/MC1/{'rgb/0003.jpg' if kind == 'rgb' else 'depth/0003.png'}"
    if kind == "size":
        cv2.imwrite(str(path), np.zeros((100, 100, 3), np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:-200])
    samples = [(side.view(modality="rgbd", augmented=False), i) for side in sides for i in range(len(side))]
    with pytest.raises(DataError) as without:
        [side.raw(SampleKey(i)) for side, i in samples]
    with pytest.raises(DataError) as caught:
        dataset_of(config_of(root, tmp_path / "cache"))
    assert str(caught.value) == str(without.value)
    assert "0003" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("part-*"))


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tree: Tree, tmp_path: Path, monkeypatch: Any, lines: Any
) -> None:
    """After an hour of writing it is too late, and a full disk also stops the run's checkpoints."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_build.shutil, "disk_usage", lambda _: usage._replace(free=70 << 20))
    with pytest.raises(DataError, match=r"needs about .* GiB.*cache_format=compact"):
        dataset_of(config_of(tree[0], tmp_path))
    assert "24 frames to decode once" in lines()
    assert "0.1 GiB free" in lines()
    assert not list(tmp_path.glob("*/*"))


def test_a_disk_that_fills_up_is_one_line(
    tree: Tree, tmp_path: Path, monkeypatch: Any, encoded: list[int]
) -> None:
    """Someone else's files: what is finished is kept, nothing half stays."""
    original = cache_part._append
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def append(file: Any, block: Any) -> tuple[int, int]:
        if len(encoded) > 20:
            raise full
        return original(file, block)

    monkeypatch.setattr(cache_part, "_append", append)
    with pytest.raises(DataError, match=r"No space left.*Finished parts are kept"):
        dataset_of(config_of(tree[0], tmp_path))
    (folder,) = tmp_path.glob("*-crops-raw-*.part")
    assert [path.name for path in folder.iterdir()] == ["part-00000.bin"]
    monkeypatch.setattr(cache_part, "_append", original)
    encoded.clear()
    dataset_of(config_of(tree[0], tmp_path))
    assert set(encoded) == set(range(16, 24))


def test_a_finished_part_that_was_cut_is_written_anew(
    tree: Tree, tmp_path: Path, monkeypatch: Any, encoded: list[int]
) -> None:
    """A machine that lost its power keeps the name and half of the bytes: no crash in the third hour."""
    original = cache_part.write_part

    def write_part(plan: Any, part: int) -> None:
        if part == 1:
            raise DataError("the power goes")
        original(plan, part)

    monkeypatch.setattr(cache_build, "write_part", write_part)
    with pytest.raises(DataError, match="the power goes"):
        dataset_of(config_of(tree[0], tmp_path))
    (part,) = tmp_path.glob("*-crops-raw-*.part/part-00000.bin")
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 1000)
    monkeypatch.setattr(cache_build, "write_part", original)
    encoded.clear()
    dataset = dataset_of(config_of(tree[0], tmp_path))
    assert set(encoded) == set(range(24)), "the part that was cut is kept"
    for i in range(len(dataset)):
        dataset.raw(SampleKey(i))


def test_a_place_that_cannot_be_written_names_the_key(tree: Tree, tmp_path: Path) -> None:
    """Data sets often lie on a read-only share."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"crop cache: cannot write.*dataset.cache=PATH"):
        dataset_of(config_of(tree[0], tmp_path / "file"))


def _ensure(config: RunConfig) -> None:
    """What a forked process does: leave with status 0 when the cache is there."""
    dataset_of(config)


def test_a_killed_writer_leaves_what_it_finished(
    tree: Tree, tmp_path: Path, monkeypatch: Any, encoded: list[int]
) -> None:
    """kill -9 of the writing run: its helpers go with it, the lock is free, finished parts stay."""
    original = cache_part.write_part

    def kill_parent(plan: Any, part: int) -> None:
        if part == 1:
            while not list(tmp_path.glob("*/part-00000.bin")):
                time.sleep(0.01)
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(JOIN_S)
        original(plan, part)

    monkeypatch.setattr(cache_part, "write_part", kill_parent)
    monkeypatch.setattr(cache_build, "_workers", lambda plan: 2)
    process = FORK.Process(target=_ensure, args=(config_of(tree[0], tmp_path),))
    process.start()
    process.join(JOIN_S)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(cache_part, "write_part", original)
    monkeypatch.setattr(cache_build, "_workers", lambda plan: 1)
    (folder,) = tmp_path.glob("*-crops-raw-*.part")
    (folder / ".part-00001.bin.1.2.part").touch()  # as a writer killed inside a part leaves it
    dataset_of(config_of(tree[0], tmp_path))
    assert set(encoded) == set(range(16, 24))
    assert not list(tmp_path.rglob("*.part"))


def test_two_runs_at_once_write_one_cache(tree: Tree, tmp_path: Path, monkeypatch: Any) -> None:
    """Two trainings started together: the second waits and reads, neither overwrites the other."""
    inside, go = FORK.Event(), FORK.Event()
    original = cache_build.write_part

    def slow(plan: Any, part: int) -> None:
        inside.set()
        assert go.wait(JOIN_S)
        original(plan, part)

    monkeypatch.setattr(cache_build, "write_part", slow)
    config = config_of(tree[0], tmp_path)
    first = FORK.Process(target=_ensure, args=(config,))
    first.start()
    assert inside.wait(JOIN_S)
    monkeypatch.setattr(cache_build, "write_part", lambda *_: os._exit(9))
    second = FORK.Process(target=_ensure, args=(config,))
    second.start()
    second.join(0.3)  # time to reach the lock; later is as good
    go.set()
    for process in (first, second):
        process.join(JOIN_S)
    assert (first.exitcode, second.exitcode) == (0, 0)


def test_off_is_a_word(tmp_path: Path) -> None:
    """YAML 1.1 reads a bare off as false, which is no path."""
    (tmp_path / "c.yaml").write_text("dataset:\n  cache: off\n")
    assert load_config(tmp_path / "c.yaml", []).dataset.cache == "off"
    assert load_config(tmp_path / "c.yaml", ["dataset.cache=auto"]).dataset.cache == "auto"
    assert load_config(tmp_path / "c.yaml", ["dataset.cache=off"]).dataset.cache == "off"
    assert cache_codec.MIN_PSNR_DB >= 42
