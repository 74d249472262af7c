"""The whole tree: parameters, work of one motion, workers, record and reuse.

Layout: `train/<SEQ>/{rgb,depth,meta}/<FFFF>.*`, `evaluation/<SEQ>/...`, `train.txt`, `evaluation.txt`,
`evaluation_xyz.json`, `evaluation_verts.json` (metres, OpenGL, HO3D21, rows in evaluation.txt's order) and
`synthetic.json`, which says with what the tree was made. Held-out sequences stand under train/ and in
train.txt like the others; `held_out.txt` names them, for `split.held_out_list`.
A sequence is one camera's view of one motion: `SYB70`, `SYB71`, `SYB72` are three cameras of motion `SYB7`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch

from dataloader.synthetic.common import Array
from dataloader.synthetic.domains import DOMAINS
from dataloader.synthetic.found import HELD_OUT_NAME, RECORD_NAME, is_there
from dataloader.synthetic.frames import (
    GL_FROM_CV,
    Split,
    annotate,
    place_in_camera,
    write_depth,
    write_rgb,
)
from dataloader.synthetic.motion.objects import KINDS
from dataloader.synthetic.motion.rig import Rig
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH
from src.errors import ConfigError, DataError
from src.hand.mano_assets import HandAsset
from src.runtime.files import safe_pickle
from src.runtime.files.disk import atomic_directory, require_place
from src.runtime.log import get_logger
from src.runtime.progress import progress
from src.runtime.seed import stream

GENERATOR_VERSION = 1
"""Raised whenever the same parameters give other files."""

PACED_VERSION = 3
"""The same, of trees that skip moments of time: in 1, fingers stopped where those of other moments had to; in
2, grips changed before the camera."""

WIDE_VERSION = 4
"""The same, of `wide`: in 3, hands had no web between thumb and index finger."""

_PICTURE_BYTES = 124_000
_SMALL_BYTES = 4_096
_TRUTH_BYTES = 48_000
"""Mean sizes on the disk of a picture, of an annotation or folder, and of a frame's truth."""

_log = get_logger(__name__)


class _Part(NamedTuple):
    """Folders of one kind."""

    split: Split
    sequences: int
    frames: int
    cameras: int
    held_out: bool


class _View(NamedTuple):
    """What one written folder holds."""

    part: _Part
    name: str
    frame_ids: list[int]
    truth: tuple[Array, Array]
    """Joints (N, 21, 3) and vertices (N, 778, 3), OpenGL, metres; empty of a training folder."""


@dataclass(frozen=True)
class Parameters:
    """What a tree is made from; two trees with equal parameters are equal byte for byte."""

    sequences: int
    """Folders under train/, >= 1."""
    frames: int
    """Frames of each folder, >= 1."""
    evaluation_sequences: int
    """Folders under evaluation/, >= 0."""
    seed: int = 0
    """>= 0."""
    cameras: int = 3
    """Folders that show the same motion, 1-10."""
    annotations_only: bool | Literal["train"] = False
    """All pictures of a folder are one grey picture; `train`: in training sequences alone, for a tree
    on which networks are only scored."""
    held_out_sequences: int = 0
    """More folders under train/, >= 0, of motions of their own, for a fixed validation split."""
    held_out_frames: int = 1
    """Frames of each of those, >= 1."""
    held_out_cameras: int | None = None
    """Of each motion held out, 1-10; None: `cameras`."""
    domain: str = "table"
    """A name of `DOMAINS`."""
    pace: int | None = None
    """Every how many frames of a training motion one is written, 1-1000; None: as the domain has it, which
    motions held out and evaluated keep."""

    def __post_init__(self) -> None:
        """Check the ranges, all at once."""
        bounds = {"sequences": (1, 10**6), "frames": (1, 10**6), "evaluation_sequences": (0, 10**6),
                  "seed": (0, 2**63 - 1), "cameras": (1, 10), "held_out_sequences": (0, 10**6),
                  "held_out_frames": (1, 10**6), "held_out_cameras": (1, 10), "pace": (1, 1000)}  # fmt: skip
        wrong = [
            f"--{name.replace('_', '-')}: got {got}, want {low}..{high}"
            for name, (low, high) in bounds.items()
            if (got := getattr(self, name)) is not None and not low <= got <= high
        ]
        if self.annotations_only not in (False, True, "train"):
            wrong.append(f"--annotations-only: got {self.annotations_only}, want it alone, or train")
        if self.domain not in DOMAINS:
            wrong.append(f"--domain: got {self.domain}, want one of {', '.join(DOMAINS)}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    def parts(self) -> tuple[_Part, ...]:
        """All folders; motions are numbered through in this order."""
        cameras, later = self.cameras, self.held_out_cameras or self.cameras
        return (
            _Part("train", self.sequences, self.frames, cameras, held_out=False),
            _Part("evaluation", self.evaluation_sequences, self.frames, cameras, held_out=False),
            _Part("train", self.held_out_sequences, self.held_out_frames, later, held_out=True),
        )

    def room(self) -> tuple[int, int]:
        """(bytes, files and folders) that a tree takes on the disk, about."""
        folders = sum(part.sequences for part in self.parts())
        frames = sum(part.sequences * part.frames for part in self.parts())
        small = frames + 4 * folders + 8  # annotations, folders, and what stands at the top
        pictures = room = 0
        for part in self.parts():
            count = 2 * part.sequences * (1 if self.is_grey(part) else part.frames)
            pictures += count
            room += count * (_SMALL_BYTES if self.is_grey(part) else _PICTURE_BYTES)
        truth = self.evaluation_sequences * self.frames * _TRUTH_BYTES
        return small * _SMALL_BYTES + room + truth, small + pictures

    def is_grey(self, part: _Part) -> bool:
        """Whether the pictures of this part are not drawn."""
        return self.annotations_only is True or (
            self.annotations_only == "train" and part.split == "train" and not part.held_out
        )


def look_first(out: Path, parameters: Parameters, asset: HandAsset | None = None) -> Path | None:
    """Where the tree can be made, its links followed; None if it is there already. Nothing is made.

    Args:
        out: as asked for.
        parameters: what is to be made.
        asset: the hand; None: whatever hand a tree was made with.

    Raises:
        DataError: `out` holds something else, or a part of this; it cannot be written to, or the disk is too
            small.
    """
    if is_there(out, _wanted(parameters, asset)):
        return None
    room_bytes, room_files = parameters.room()
    return require_place(out, folder=True, room_bytes=room_bytes, room_files=room_files)


def _wanted(parameters: Parameters, asset: HandAsset | None) -> dict[str, Any]:
    """What the record of a tree says of how it was made."""
    given = {name: value for name, value in dataclasses.asdict(parameters).items() if value is not None}
    skips = max(parameters.pace or 1, DOMAINS[parameters.domain].habits.pace) > 1
    version = PACED_VERSION if skips else GENERATOR_VERSION
    return {
        "generator": "dataloader.synthetic",
        "generator_version": WIDE_VERSION if parameters.domain == "wide" else version,
        "parameters": given,
    } | ({} if asset is None else {"hand": asset.fingerprint})


def write_tree(out: Path, parameters: Parameters, asset: HandAsset, *, workers: int = 1) -> bool:
    """Write a data set, or find that it is there.

    Args:
        out: the tree's root; made whole or not at all.
        parameters: what to make.
        asset: the hand, MANO's or the stand-in.
        workers: processes, >= 1; they do not change the result.

    Returns:
        True where it was written, False where an equal, complete one is there already.

    Raises:
        ConfigError: fewer than one worker.
        DataError: as of `look_first`; or pictures cannot be linked.
    """
    if workers < 1:
        raise ConfigError(f"--workers: got {workers}, want >= 1")
    wanted = _wanted(parameters, asset)
    if (place := look_first(out, parameters, asset)) is None:
        _log.info("Synthetic data set %s: complete already, nothing to do", out)
        return False
    total = sum(part.sequences for part in parameters.parts())
    try:
        with atomic_directory(place) as root:
            for split in ("train", "evaluation"):
                (root / split).mkdir()
            views = list(progress(_work(root, parameters, asset, workers), total=total, desc="sequences"))
            written = _write_lists(root, views, parameters.seed)
            record = json.dumps({**wanted, **written}, indent=1)
            (root / RECORD_NAME).write_text(record + "\n", encoding="utf-8")
    except OSError as reason:
        if reason.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not is_there(out, wanted):
            raise
        _log.info("Synthetic data set %s: another program has completed it meanwhile", out)
        return False
    frames = written["counts"]["train"], written["counts"]["evaluation"]
    _log.info("Synthetic data set %s: %d train frames, %d evaluation frames", out, *frames)
    return True


def _work(root: Path, parameters: Parameters, asset: HandAsset, workers: int) -> Iterator[_View]:
    """Do all motions, in this process or in several, and hand over their views in order."""
    shown = [
        (part, min(part.cameras, part.sequences - first))
        for part in parameters.parts()
        for first in range(0, part.sequences, part.cameras)
    ]
    jobs = list(enumerate(shown))
    do = functools.partial(_do_motion, root, parameters, asset)
    if workers == 1:
        for job in jobs:
            yield from do(job)
        return
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is the parent's business, which ends the workers.
    with context.Pool(min(workers, len(jobs)), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for views in pool.imap(do, jobs):
            yield from views


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums do not depend on the number of cores, and workers do not fight for them."""
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)


@_one_thread()
def _do_motion(
    root: Path, parameters: Parameters, asset: HandAsset, job: tuple[int, tuple[_Part, int]]
) -> list[_View]:
    """Write the folders that show one motion: its number, its part, and how many of its cameras."""
    number, (part, shown) = job
    seed, rig, domain = parameters.seed, Rig(asset), DOMAINS[parameters.domain]
    taught = part.split == "train" and not part.held_out
    motion = domain.motion(rig, seed, number, part.frames, parameters.pace if taught else None)
    cameras = domain.cameras(seed, motion, part.cameras)
    serials = [camera.serial for camera in cameras]
    frame_ids = motion.frame_ids.tolist()
    stages = domain.stages(rig, motion, cameras[:shown], seed)
    views = []
    for digit, camera in enumerate(cameras[:shown]):
        # Subject, object, number of the motion, camera.
        name = f"SY{KINDS[motion.held.kind]}{number + 1}{digit}"
        folder = root / part.split / name
        for kind in ("rgb", "depth", "meta"):
            (folder / kind).mkdir(parents=True)
        joints_cam = place_in_camera(motion.joints_m, motion, camera)
        vertices_cam = place_in_camera(motion.vertices_m, motion, camera)
        metas = annotate(motion, camera, serials, joints_cam, part.split)
        for frame, meta in zip(frame_ids, metas, strict=True):
            (folder / "meta" / f"{frame:04d}.pkl").write_bytes(safe_pickle.dumps(meta))
        if parameters.is_grey(part):
            _link_pictures(folder, frame_ids)
        else:
            stage = next(stages)
            for row, frame in enumerate(frame_ids):
                rgb, depth_m = stage.draw(row, vertices_cam[row])
                write_rgb(folder / "rgb" / f"{frame:04d}.jpg", rgb, stage.jpeg_quality)
                write_depth(folder / "depth" / f"{frame:04d}.png", depth_m)
        scored = len(frame_ids) if part.split == "evaluation" else 0
        truth = joints_cam[:scored] @ GL_FROM_CV, vertices_cam[:scored] @ GL_FROM_CV
        views.append(_View(part, name, frame_ids, truth))
    return views


def _link_pictures(folder: Path, frame_ids: list[int]) -> None:
    """One grey picture and one flat depth for all frames of a folder, by hard links."""
    rgb, depth = (
        [folder / name.format(i) for i in frame_ids] for name in ("rgb/{:04d}.jpg", "depth/{:04d}.png")
    )
    write_rgb(rgb[0], np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    write_depth(depth[0], np.full((HEIGHT, WIDTH), 0.6, np.float32))
    try:
        for first, *others in (rgb, depth):
            for other in others:
                os.link(first, other)
    except OSError as reason:
        raise DataError(
            f"--annotations-only: pictures in {folder.parent.parent} cannot be hard-linked "
            f"({reason.strerror}). Choose --out on a file system with hard links (ext4, xfs, btrfs)."
        ) from reason


def _write_lists(root: Path, views: list[_View], seed: int) -> dict[str, dict[str, int]]:
    """train.txt, evaluation.txt and the ground truth, rounded to 0.1 um; frames of splits and folders."""
    train = [view for view in views if view.part.split == "train"]
    evaluation = [view for view in views if view.part.split == "evaluation"]
    folders = {view.name: len(view.frame_ids) for view in (*train, *evaluation)}
    # HO3D lists its evaluation sequences in no alphabetical order; whoever sorts them mixes up the rows.
    order = stream(seed, "evaluation order").permutation(len(evaluation))
    evaluation = [evaluation[i] for i in order]
    counts = {}
    for split, listed in (("train", train), ("evaluation", evaluation)):
        lines = [f"{view.name}/{frame:04d}\n" for view in listed for frame in view.frame_ids]
        (root / f"{split}.txt").write_text("".join(lines), encoding="ascii")
        counts[split] = len(lines)
    held_out = [f"{view.name}\n" for view in train if view.part.held_out]
    if held_out:
        (root / HELD_OUT_NAME).write_text("".join(held_out), encoding="ascii")
    for i, key in enumerate(("xyz", "verts")):
        rows = [row for view in evaluation for row in np.round(view.truth[i], 7)]
        with (root / f"evaluation_{key}.json").open("w", encoding="ascii") as file:
            file.write("[" + ", ".join(json.dumps(row.tolist()) for row in rows) + "]")
    return {"counts": counts, "folders": folders}
