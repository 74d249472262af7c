"""Start of a run on 83,325 frames: packing the annotations once, opening them ever after.

The tree has HO3D_v3's number of frames in 55 folders; its annotation files are hard links to 2,200 different
ones, all of which are opened and read one by one as real ones would be.

    python -m benchmarks startup
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row, report
from dataloader.build import build_dataset
from dataloader.ho3d.index import open_index
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.synthetic.hand.standin import build_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import DatasetConfig, RunConfig
from src.hand.mano import ManoLayer

FRAMES, FOLDERS, MADE_FOLDERS, MADE_FRAMES = 83_325, 55, 11, 200
BUILD_LIMIT_S, START_LIMIT_S = 90.0, 0.5
REPEATS = 5


def _tree(root: Path) -> None:
    """A tree of FRAMES frames whose files are links."""
    made = root.parent / "made"
    shape = {"sequences": MADE_FOLDERS, "frames": MADE_FRAMES, "evaluation_sequences": 0, "cameras": 1}
    write_tree(made, Parameters(**shape, annotations_only=True), build_standin(), workers=2)
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
                target = root / "train" / sequence / kind / f"{frame:04d}{suffix}"
                target.hardlink_to(made / "train" / source / kind / f"{number}{suffix}")
            names.append(f"{sequence}/{frame:04d}\n")
    (root / "train.txt").write_text("".join(names), encoding="utf-8")


def _open(config: RunConfig, hand: ManoLayer) -> tuple[HO3DDataset, HO3DDataset]:
    """Both splits, as a rank opens them."""
    train_set = build_dataset(config, "train", hand, show_progress=False)
    return train_set, build_dataset(config, "val", hand, index=train_set.frames.index, show_progress=False)


def main() -> None:
    """Build once, open several times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "HO3D"
        _tree(root)
        data = DatasetConfig(root_dir=root, num_workers=0)
        config = RunConfig(dataset=data)
        hand = ManoLayer.from_asset(build_standin())
        began, cpu = time.perf_counter(), _cpu_s()
        open_index(data, "train", hand, show_progress=False)
        build_s, wall_s = _cpu_s() - cpu, time.perf_counter() - began
        starts = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            train_set, val_set = _open(config, hand)
            starts.append(time.perf_counter() - began)
        assert (len(train_set), len(val_set)) == (74_993, 8_332)
    start_s = sorted(starts)[REPEATS // 2]
    built = f"{FRAMES} frames, index built once (wall {wall_s:.1f} s): {build_s:.1f}"
    opened = f"{FRAMES} frames, both splits opened: {start_s:.2f}"
    rows = [
        Row(built, f"limit: {BUILD_LIMIT_S:g}", BUILD_LIMIT_S / build_s, "CPU s"),
        Row(opened, f"limit: {START_LIMIT_S}", START_LIMIT_S / start_s, "s"),
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
