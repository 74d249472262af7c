"""Start of a run on 83,325 frames: packing the annotations once, opening them ever after, and their memory.

The tree has HO3D_v3's number of frames in 55 folders; its annotation files are hard links to 2,200 different
ones, all of which are opened and read one by one as real ones would be. Memory is what 4 ranks with 8 loader
processes each hold for the annotations together: their shares of the mapped index, and what their own memory
grows by when each of them reads labels from all over it.

    python -m benchmarks startup
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, report
from dataloader.build import build_dataset
from dataloader.ho3d.index import open_index
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.hand.standin import build_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import DatasetConfig, RunConfig
from src.hand.mano import ManoLayer
from src.runtime.ranks.distributed import DistContext, spawn_ranks

FRAMES, FOLDERS, MADE_FOLDERS, MADE_FRAMES = 83_325, 55, 11, 200
RANKS, WORKERS, READS = 4, 8, 2_000
BUILD_LIMIT_S, START_LIMIT_S, MEMORY_LIMIT_GIB = 90.0, 0.5, 0.3
REPEATS = 5


def _tree(root: Path) -> None:
    """A tree of FRAMES frames whose files are links."""
    made = root.parent / "made"
    write_tree(
        made,
        Parameters(
            sequences=MADE_FOLDERS,
            frames=MADE_FRAMES,
            evaluation_sequences=0,
            cameras=1,
            annotations_only=True,
        ),
        build_standin(),
        workers=2,
    )
    sources = [line.split("/") for line in (made / "train.txt").read_text(encoding="utf-8").split()]
    per_folder = FRAMES // FOLDERS
    names = []
    for folder in range(FOLDERS):
        sequence = f"S{folder:02d}A0"
        for kind in ("rgb", "depth", "meta"):
            (root / "train" / sequence / kind).mkdir(parents=True)
        for frame in range(per_folder):
            source, number = sources[(folder * per_folder + frame) % len(sources)]
            for kind, suffix in (("rgb", ".jpg"), ("depth", ".png"), ("meta", ".pkl")):
                _link(
                    made / "train" / source / kind / f"{number}{suffix}",
                    root / "train" / sequence / kind / f"{frame:04d}{suffix}",
                )
            names.append(f"{sequence}/{frame:04d}\n")
    (root / "train.txt").write_text("".join(names), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the source has as many names as the file system allows."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
        target.replace(source)
        os.link(source, target)


def _open(config: RunConfig, hand: ManoLayer) -> tuple[HO3DDataset, HO3DDataset]:
    """Both splits, as a rank opens them."""
    train_set = build_dataset(config, "train", hand, show_progress=False)
    return train_set, build_dataset(config, "val", hand, index=train_set.index, show_progress=False)


def _annotations_kib(index: Path, private_before: float) -> float:
    """This process's share of the mapped index and the growth of its own memory, KiB."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)
    shared = sum(_field(b, "Pss") for b in blocks if str(index) in b.partition("\n")[0])
    own = sum(
        _field(b, "Private_Clean") + _field(b, "Private_Dirty")
        for b in blocks
        if str(index) not in b.partition("\n")[0]
    )
    return shared + max(0.0, own - private_before)


def _private_kib() -> float:
    """Memory that this process alone holds, KiB."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return _field(text, "Private_Clean") + _field(text, "Private_Dirty")


def _field(block: str, name: str) -> float:
    """Sum of a field in KiB."""
    return sum(float(value) for value in re.findall(rf"(?m)^{name}:\s+(\d+) kB", block))


def _worker(dataset: HO3DDataset, number: int, begin: Any, pipe: Any) -> None:
    """A loader process: labels from all over the split, then its memory while all others hold theirs."""
    before = _private_kib()
    for k in range(READS):
        dataset.frames.labels(np.array([(number + 41 * k) % len(dataset)]))
    begin.wait(120)
    pipe.send(_annotations_kib(_array_of(dataset), before))
    begin.wait(120)


def _array_of(dataset: HO3DDataset) -> Path:
    """The mapped file of an index."""
    return dataset.frames.index.derived.path("rows.npy")


def _rank(context: DistContext, config: RunConfig) -> float:
    """KiB that a rank and its loader processes hold for the annotations."""
    hand = ManoLayer.from_asset(build_standin())
    before = _private_kib()
    train_set, _ = _open(config, hand)
    fork = get_context("fork")
    begin = fork.Barrier(WORKERS + 1)
    pipes, processes = [], []
    for number in range(WORKERS):
        reader, writer = fork.Pipe(duplex=False)
        process = fork.Process(target=_worker, args=(train_set, number, begin, writer), daemon=True)
        process.start()
        pipes.append(reader)
        processes.append(process)
    begin.wait(120)
    context.barrier()
    total = _annotations_kib(_array_of(train_set), before)
    total += sum(pipe.recv() for pipe in pipes)
    context.barrier()
    begin.wait(120)
    for process in processes:
        process.join(30)
    return total


def main() -> None:
    """Build once, open several times, measure memory."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "HO3D"
        _tree(root)
        data = DatasetConfig(root_dir=root, index_workers=2, num_workers=WORKERS)
        config = RunConfig(dataset=data)
        hand = ManoLayer.from_asset(build_standin())
        began = time.perf_counter()
        cpu = _cpu_s()
        open_index(data, "train", hand, show_progress=False)
        build_s, wall_s = _cpu_s() - cpu, time.perf_counter() - began
        starts = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            train_set, val_set = _open(config, hand)
            starts.append(time.perf_counter() - began)
        assert (len(train_set), len(val_set)) == (74_993, 8_332)
        start_s = sorted(starts)[REPEATS // 2]
        gib = sum(spawn_ranks(_rank, RANKS, (config,), timeout_s=240)) / 1024**2
    what = f"{FRAMES} frames"
    rows = [
        Row(
            f"{what}, index built once (wall {wall_s:.1f} s): {build_s:.1f}",
            f"limit: {BUILD_LIMIT_S:g}",
            BUILD_LIMIT_S / build_s,
            "CPU s",
        ),
        Row(
            f"{what}, both splits opened: {start_s:.2f}",
            f"limit: {START_LIMIT_S}",
            START_LIMIT_S / start_s,
            "s",
        ),
        Row(
            f"annotations in {RANKS} ranks x {WORKERS} loader processes: {gib:.3f}",
            f"limit: {MEMORY_LIMIT_GIB}",
            MEMORY_LIMIT_GIB / gib,
            "GiB",
        ),
    ]
    report("startup", rows)


def _cpu_s() -> float:
    """CPU seconds of this process and its children that have ended."""
    return sum(
        use.ru_utime + use.ru_stime
        for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
