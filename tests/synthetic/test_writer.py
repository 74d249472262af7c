"""Whole or not at all: determinism, reuse, partial trees, links, the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from dataloader.synthetic.__main__ import main
from dataloader.synthetic.writer import Parameters, write_tree
from src.errors import ConfigError, DataError
from src.hand.mano_assets import HandAsset
from tests.synthetic.conftest import SMALL


def content(root: Path) -> dict[str, bytes]:
    """All files of a tree."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_files_for_any_number_of_workers(asset: HandAsset, tmp_path: Path) -> None:
    """A data set is named by its parameters: two machines with other numbers of cores get the same bytes."""
    parameters = Parameters(sequences=3, frames=2, evaluation_sequences=1, seed=3, cameras=1)
    write_tree(tmp_path / "one", parameters, asset, workers=1)
    write_tree(tmp_path / "two", parameters, asset, workers=2)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert len(one) == 4 * 2 * 3 + 5
    assert list(one) == list(two)
    assert [name for name in one if one[name] != two[name]] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"], "no temporary folder stays"


def test_other_seed_other_files(asset: HandAsset, tmp_path: Path) -> None:
    """The seed reaches the labels."""
    for seed in (1, 2):
        parameters = Parameters(
            sequences=1, frames=1, evaluation_sequences=0, seed=seed, annotations_only=True
        )
        write_tree(tmp_path / str(seed), parameters, asset)
    metas = [next((tmp_path / str(seed)).rglob("*.pkl")).read_bytes() for seed in (1, 2)]
    assert metas[0] != metas[1]


def test_v3_has_gaps_between_its_frames_and_v2_has_none(asset: HandAsset, tmp_path: Path) -> None:
    """What counts neighbours in time, or guesses a frame's name, must meet HO3D_v3's gaps here."""
    steps = {}
    for version in ("v2", "v3"):
        parameters = Parameters(
            sequences=1, frames=100, evaluation_sequences=0, cameras=1, version=version, annotations_only=True
        )
        write_tree(tmp_path / version, parameters, asset)
        ids = [int(line.split("/")[1]) for line in (tmp_path / version / "train.txt").read_text().split()]
        steps[version] = {b - a for a, b in pairwise(sorted(ids))}
    assert steps["v2"] == {1}
    assert 1 in steps["v3"]
    assert max(steps["v3"]) > 1, "no gap among 100 frames"


def test_equal_tree_is_reused(tree: Path, asset: HandAsset) -> None:
    """A second call writes nothing."""
    before = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
    assert write_tree(tree, SMALL, asset) is False
    assert {p: p.stat().st_mtime_ns for p in tree.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 8}, "seed"), ({"frames": 4}, "frames"), ({"orientations": "so3"}, "orientations")],
)
def test_different_tree_is_an_error(tree: Path, asset: HandAsset, change: dict[str, int], name: str) -> None:
    """Training on a tree made with other parameters than asked for would go unnoticed."""
    with pytest.raises(DataError, match=rf"made otherwise: {name} is"):
        write_tree(tree, dataclasses.replace(SMALL, **change), asset)


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
    (copy / "synthetic.json").unlink()
    with pytest.raises(DataError, match=r"holds no synthetic\.json"):
        write_tree(copy, SMALL, asset)


def test_failure_leaves_nothing(asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle: neither the tree nor a temporary folder is there."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataloader.synthetic.writer._write_lists", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path / "tree", Parameters(1, 1, 0, annotations_only=True), asset)
    assert list(tmp_path.iterdir()) == []


def test_annotations_only(asset: HandAsset, tmp_path: Path) -> None:
    """All frames are annotated, a folder's pictures are one file, and v2 numbers have no gaps."""
    root = tmp_path / "tree"
    write_tree(root, Parameters(4, 40, 1, version="v2", cameras=2, annotations_only=True), asset)
    assert len((root / "train.txt").read_text().split()) == 160
    for folder in (root / "train").iterdir():
        assert [p.stem for p in sorted((folder / "meta").iterdir())] == [f"{i:04d}" for i in range(40)]
        for kind in ("rgb", "depth"):
            files = list((folder / kind).glob("*.png"))
            assert len(files) == 40
            assert len({p.stat().st_ino for p in files}) == 1
    assert len(json.loads((root / "evaluation_xyz.json").read_text())) == 40


def test_links_impossible(asset: HandAsset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links the message says what to do."""

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(DataError, match="file system with hard links"):
        write_tree(tmp_path / "tree", Parameters(1, 2, 0, annotations_only=True), asset)


def test_the_room_of_a_tree_is_known_before_it_is_made(tree: Path, asset: HandAsset, tmp_path: Path) -> None:
    """A disk that is too small is said at once; one that is large enough must not be called too small."""
    counted = {p.stat().st_ino: p.stat().st_blocks * 512 for p in tree.rglob("*")}
    room_bytes, room_files = SMALL.room()
    assert 0.7 < room_bytes / sum(counted.values()) < 1.4  # few pictures, of which some are simpler
    assert 1.0 <= room_files / len(counted) < 1.2
    bare = dataclasses.replace(SMALL, frames=40, annotations_only=True)
    write_tree(tmp_path / "bare", bare, asset)
    counted = {p.stat().st_ino: p.stat().st_blocks * 512 for p in (tmp_path / "bare").rglob("*")}
    room_bytes, room_files = bare.room()
    assert 1.0 < room_bytes / sum(counted.values()) < 2.0  # the truth takes more until it is all written
    assert 1.0 <= room_files / len(counted) < 1.2


def test_a_link_to_an_empty_folder_is_followed(asset: HandAsset, tmp_path: Path) -> None:
    """`data` is often a link to a larger disk: the finished tree was thrown away at the last step."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    parameters = Parameters(1, 1, 0, annotations_only=True)
    assert write_tree(tmp_path / "data", parameters, asset)
    assert (tmp_path / "disk" / "train.txt").is_file()
    assert not write_tree(tmp_path / "data", parameters, asset)


def test_command_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments and a tree in the way end with status 2 and one line on stderr."""
    assert main(["--out", str(tmp_path / "x"), "--sequences", "0", "--cameras", "11"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--sequences: got 0, want 1.." in error
    assert "--cameras: got 11, want 1..10" in error
    assert main(["--out", str(tree), "--sequences", "4", "--frames", "3"]) == 2
    assert "made otherwise" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "x"), "--hand", str(tmp_path / "none.pkl")]) == 2
    with pytest.raises(SystemExit) as left:
        main(["--out", str(tmp_path / "x"), "--orientations", "all"])
    assert left.value.code == 2
    assert not (tmp_path / "x").exists()


def test_wrong_number_of_workers(asset: HandAsset, tmp_path: Path) -> None:
    """No worker would write nothing and say nothing."""
    with pytest.raises(ConfigError, match="--workers"):
        write_tree(tmp_path / "x", SMALL, asset, workers=0)


def test_held_out_motions_are_listed_and_leave_the_rest_as_it_was(tmp_path: Path, asset: HandAsset) -> None:
    """The learning benchmark's split is a file; the training frames must be those of a tree without it."""
    plain = Parameters(2, 1, 1, cameras=1, annotations_only=True)
    more = dataclasses.replace(plain, held_out_sequences=2, held_out_frames=3)
    write_tree(tmp_path / "plain", plain, asset)
    write_tree(tmp_path / "more", more, asset)
    names = (tmp_path / "more/held_out.txt").read_text().split()
    listed = (tmp_path / "more/train.txt").read_text().split()
    assert len(names) == 2
    assert [line for line in listed if line.split("/")[0] not in names] == (
        tmp_path / "plain/train.txt"
    ).read_text().split()
    assert sum(line.split("/")[0] in names for line in listed) == 6
    assert (tmp_path / "more/evaluation.txt").read_bytes() == (tmp_path / "plain/evaluation.txt").read_bytes()
    assert not write_tree(tmp_path / "more", more, asset)
    with pytest.raises(DataError, match="held_out_sequences is 2, want 0"):
        write_tree(tmp_path / "more", plain, asset)
