"""Whole or not at all: determinism, reuse, partial trees, links, the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloader.synthetic import writer
from dataloader.synthetic.__main__ import main
from dataloader.synthetic.writer import Parameters, write_tree
from src.errors import ConfigError, DataError
from src.hand.mano_assets import HandAsset
from tests.synthetic.conftest import SMALL

BARE = Parameters(2, 1, 1, cameras=1, annotations_only=True)


def content(root: Path) -> dict[str, bytes]:
    """All files of a tree."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_files_for_any_number_of_workers(tree: Path, asset: HandAsset, tmp_path: Path) -> None:
    """A data set is named by its parameters: two machines with other numbers of cores get the same bytes."""
    write_tree(tmp_path / "two", SMALL, asset, workers=2)
    one, two = content(tree), content(tmp_path / "two")
    assert list(one) == list(two)
    assert [name for name in one if one[name] != two[name]] == []
    assert [p.name for p in tmp_path.iterdir()] == ["two"], "no temporary folder stays"


def test_equal_tree_is_reused_and_another_is_an_error(tree: Path, asset: HandAsset) -> None:
    """A second call writes nothing; training on a tree made otherwise than asked for would go unnoticed."""
    before = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
    assert write_tree(tree, SMALL, asset) is False
    for name, value in {"seed": 8, "frames": 4, "held_out_sequences": 1}.items():
        with pytest.raises(DataError, match=rf"made otherwise: {name} is"):
            write_tree(tree, dataclasses.replace(SMALL, **{name: value}), asset)  # type: ignore[arg-type]
    assert {p: p.stat().st_mtime_ns for p in tree.rglob("*")} == before
    check_room(tree, SMALL, 0.7, 1.4)  # few pictures, of which some are simpler


@pytest.mark.parametrize("seed", [0, 1])
def test_whoever_comes_second_finds_the_tree(
    seed: int, tmp_path: Path, asset: HandAsset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two `make learn` of one seed: the slower one threw its work away and ended with an error."""
    lists, out = writer._write_lists, tmp_path / "out"

    def overtaken(*given: Any) -> dict[str, Any]:
        monkeypatch.setattr(writer, "_write_lists", lists)
        assert write_tree(out, dataclasses.replace(BARE, seed=seed), asset)
        return lists(*given)

    monkeypatch.setattr(writer, "_write_lists", overtaken)
    if seed == BARE.seed:
        assert write_tree(out, BARE, asset) is False
    else:
        with pytest.raises(DataError, match="made otherwise: seed is 1"):
            write_tree(out, BARE, asset)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_partial_tree_is_an_error(tree: Path, asset: HandAsset, tmp_path: Path) -> None:
    """A lost frame, a lost list or a folder of something else is said, and nothing is overwritten."""
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    frame = next((copy / "train").rglob("*.png"))
    kept = frame.read_bytes()
    frame.unlink()
    with pytest.raises(DataError, match=r"partial.*depth holds 2 files, want 3"):
        write_tree(copy, SMALL, asset)
    frame.write_bytes(kept)
    (copy / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt is missing"):
        write_tree(copy, SMALL, asset)
    record = json.loads((copy / "synthetic.json").read_text(encoding="utf-8"))
    del record["folders"]
    (copy / "synthetic.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match="its record is not ours"):
        write_tree(copy, SMALL, asset)
    (copy / "synthetic.json").unlink()
    with pytest.raises(DataError, match=r"holds no synthetic\.json"):
        write_tree(copy, SMALL, asset)


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), OSError(1, "Operation not permitted")])
def test_failure_leaves_nothing(
    asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: BaseException
) -> None:
    """Ctrl-C in the middle, or a file system without hard links: no tree and no temporary folder."""

    def fails(*_: object) -> None:
        raise reason

    monkeypatch.setattr("os.link", fails)
    with pytest.raises((KeyboardInterrupt, DataError)) as caught:
        write_tree(tmp_path / "tree", dataclasses.replace(BARE, frames=2), asset)
    assert isinstance(reason, KeyboardInterrupt) or "file system with hard links" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_annotations_only(asset: HandAsset, tmp_path: Path) -> None:
    """All frames are annotated, with HO3D_v3's gaps between them, and a folder's pictures are one file.

    `data` is often a link to a larger disk: the finished tree was thrown away at the last step.
    """
    root = tmp_path / "data"
    (tmp_path / "disk").mkdir()
    root.symlink_to("disk")
    parameters = dataclasses.replace(BARE, sequences=4, frames=40, cameras=2)
    assert write_tree(root, parameters, asset)
    lines = (root / "train.txt").read_text().split()
    steps: set[int] = set()
    for folder in (tmp_path / "disk" / "train").iterdir():
        frames = {line.split("/")[1] for line in lines if line.startswith(folder.name)}
        assert len(frames) == 40
        steps |= set(np.diff(sorted(map(int, frames))))
        for kind in ("meta", "rgb", "depth"):
            files = list((folder / kind).iterdir())
            assert {p.stem for p in files} == frames
            assert kind == "meta" or len({p.stat().st_ino for p in files}) == 1
    assert min(steps) == 1 < max(steps)
    assert len(json.loads((root / "evaluation_xyz.json").read_text())) == 40
    check_room(root, parameters, 1.0, 2.0)
    record = json.loads((root / "synthetic.json").read_text())
    for once, is_ours in (({}, True), ({"version": "v3"}, True), ({"version": "v2"}, False)):
        older = record | {"parameters": record["parameters"] | once}
        (root / "synthetic.json").write_text(json.dumps(older))
        with (
            contextlib.nullcontext() if is_ours else pytest.raises(DataError, match="version is v2, want v3")
        ):
            assert not write_tree(root, parameters, asset)


def check_room(root: Path, parameters: Parameters, least: float, most: float) -> None:
    """A disk that is too small is said at once; one that is large enough must not be called too small."""
    counted = {p.stat().st_ino: p.stat().st_blocks * 512 for p in root.rglob("*")}
    room_bytes, room_files = parameters.room()
    assert least < room_bytes / sum(counted.values()) < most
    assert 1.0 <= room_files / len(counted) < 1.2


def test_command_line(
    tree: Path, asset: HandAsset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments and a tree in the way end with status 2 and one line on stderr."""
    out, small = str(tmp_path / "x"), ("--sequences", "4", "--frames", "3")  # which any disk has room for
    for arguments, said in (
        (["--out", out, "--pace", "0"], "--pace: got 0, want 1..1000"),
        (["--out", out, "--held-out-cameras", "0"], "--held-out-cameras: got 0, want 1..10"),
        (["--out", str(tree), "--pace", "2"], "made otherwise.*pace is 1, want 2"),
        (["--out", out, "--sequences", "0", "--cameras", "11"], "--sequences: got 0, want 1..1000000; --cam"),
        (["--out", out, "--cameras", "11"], "--cameras: got 11, want 1..10"),
        (["--out", str(tree), *small], "made otherwise"),
        (["--out", out, *small, "--hand", str(tmp_path / "none.pkl")], "none.pkl"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(said, error)
    with pytest.raises(ConfigError, match="--workers"):
        write_tree(tmp_path / "x", SMALL, asset, workers=0)
    assert not (tmp_path / "x").exists()


def test_held_out_motions_are_listed_and_leave_the_rest_as_it_was(tmp_path: Path, asset: HandAsset) -> None:
    """The learning benchmark's split is a file; the training frames must be those of a tree without it.

    A held-out hand that was trained on, or a second seed that is the first, would flatter every score.
    """
    more = dataclasses.replace(BARE, held_out_sequences=2, held_out_frames=3)
    for name, parameters in {"plain": BARE, "more": more, "other": dataclasses.replace(BARE, seed=1)}.items():
        write_tree(tmp_path / name, parameters, asset)
    plain, got = content(tmp_path / "plain"), content(tmp_path / "more")
    names = got["held_out.txt"].decode().split()
    kept = [line for line in got["train.txt"].decode().split() if line.split("/")[0] not in names]
    assert (len(names), kept) == (2, plain["train.txt"].decode().split())
    assert {name for name in plain if plain[name] != got[name]} == {"synthetic.json", "train.txt"}
    hands = {**got, **{f"other {name}": made for name, made in content(tmp_path / "other").items()}}
    poses = [pickle.loads(made).get("handPose") for name, made in hands.items() if name.endswith(".pkl")]
    assert len({pose.tobytes() for pose in poses if pose is not None}) == 2 + 6 + 2
    with pytest.raises(DataError, match="held_out_sequences is 2, want 0"):
        write_tree(tmp_path / "more", BARE, asset)


def test_pace_spreads_the_frames_of_training_motions_alone(tmp_path: Path, asset: HandAsset) -> None:
    """Scores stay comparable only if the motions held out and evaluated stay what they are."""
    usual = dataclasses.replace(BARE, frames=3, held_out_sequences=1, held_out_frames=3)
    for name, pace in {"usual": None, "spread": 16}.items():
        write_tree(tmp_path / name, dataclasses.replace(usual, pace=pace), asset)
    usual_files, spread = content(tmp_path / "usual"), content(tmp_path / "spread")
    made = {"usual": usual_files, "spread": spread}
    records = {name: json.loads(files["synthetic.json"]) for name, files in made.items()}
    assert "pace" not in records["usual"]["parameters"], "old trees are found again"
    versions = {name: record["generator_version"] for name, record in records.items()}
    assert versions == {"usual": 1, "spread": 3}, "what changed is made again, and nothing else"
    assert spread["held_out.txt"] == usual_files["held_out.txt"]
    held_out = usual_files["held_out.txt"].decode().strip()
    kept = [name for name in usual_files if held_out in name or name.startswith("evaluation")]
    assert kept
    assert [name for name in kept if usual_files[name] != spread[name]] == []
    ids = {
        name: [line.split("/") for line in files["train.txt"].decode().split()]
        for name, files in {"usual": usual_files, "spread": spread}.items()
    }
    for (sequence, usual_id), (same, spread_id) in zip(ids["usual"], ids["spread"], strict=True):
        factor = 1 if sequence == held_out else 16
        assert (same, int(spread_id)) == (sequence, factor * int(usual_id))


def test_motions_held_out_keep_their_camera_when_training_has_more(tmp_path: Path, asset: HandAsset) -> None:
    """A second camera of each training motion: scores stay comparable only if the held-out views stay."""
    one = Parameters(2, 1, 0, cameras=1, held_out_sequences=2, held_out_frames=2)
    two = dataclasses.replace(one, sequences=4, cameras=2, held_out_cameras=1)
    for name, parameters in {"one": one, "two": two}.items():
        write_tree(tmp_path / name, parameters, asset)
    assert not write_tree(tmp_path / "one", dataclasses.replace(one, held_out_cameras=1), asset)
    before, after = content(tmp_path / "one"), content(tmp_path / "two")
    held_out = after["held_out.txt"].decode().split()
    kept = [name for name in before if any(sequence in name for sequence in held_out)]
    assert len(kept) == 2 * 2 * 3
    assert [name for name in ["held_out.txt", *kept] if before[name] != after[name]] == []
    trained = {line.split("/")[0] for line in after["train.txt"].decode().split()} - set(held_out)
    assert (len(trained), len({name[:-1] for name in trained})) == (4, 2)
    with pytest.raises(DataError, match="held_out_cameras is 1, want 2"):
        write_tree(tmp_path / "two", dataclasses.replace(two, held_out_cameras=None), asset)
