"""Frames of an HO3D tree: the very pictures, cameras and boxes of the loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.errors import DataError
from src.predict.frames import LabelBoxes, open_source
from src.schema import DEPTH_UNIT_M
from tests.dataloader.tree import dataset_of, run_config, write_tree
from tests.predict.frames.scenes import write_camera


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tree")
    write_tree(place, {"ABF10": 3, "ABF11": 2}, {"SM1": 2})
    return place


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_a_tree_gives_what_the_loader_gives(root: Path, split: str) -> None:
    """`predict --boxes labels` must be `--evaluate`: same names, order, K and boxes to the last bit."""
    source = open_source(str(root), split=split)
    ours = dataset_of(run_config(root), split)  # type: ignore[arg-type]
    labels, wanted = ours.frames.labels(), [ours.frames.frame_id(i) for i in range(len(ours))]
    assert isinstance(source.labels, LabelBoxes)
    assert source.names is not None
    assert [name for name in source.names if name in wanted] == wanted
    for row, frame in enumerate(source.frames(skip=set(source.names) - set(wanted))):
        assert frame.name == wanted[row]
        assert np.array_equal(frame.intrinsics_px, labels.intrinsics_img_px[row])
        (box,) = source.labels.find(frame)
        assert np.array_equal(box.box_px, labels.box_px[row])
        assert not box.left
        assert frame.depth_m is not None
        units = frame.depth_m / np.float32(DEPTH_UNIT_M)
        assert np.abs(units - np.rint(units)).max() < 0.01
        assert units.max() > 4000


def test_evaluation_is_the_list_unless_told(root: Path, tmp_path: Path) -> None:
    """The training frames have been seen by the network. A tree that is only trained on has an empty list."""
    assert open_source(str(root)).names == ["evaluation/SM1/0001", "evaluation/SM1/0003"]
    write_tree(tmp_path, {"ABF10": 1})
    (tmp_path / "evaluation.txt").write_text("")
    for _ in range(2):
        with pytest.raises(DataError, match=r"only in train\.txt: give --split train"):
            open_source(str(tmp_path))
        (tmp_path / "evaluation.txt").unlink(missing_ok=True)


def test_a_part_of_a_tree_knows_its_camera(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of pictures beside its meta/ needs no camera file; with one, the tree's depth is not taken."""
    monkeypatch.chdir(root / "train/ABF10/rgb")
    source = open_source(".")
    assert source.names == ["0001", "0003", "0005"]
    assert source.labels is not None
    (whole, *_) = open_source(str(root), split="train").frames()
    (part, *_) = source.frames()
    assert np.array_equal(part.intrinsics_px, whole.intrinsics_px)
    assert source.labels.find(part) == open_source(str(root), split="train").labels.find(whole)  # type: ignore[union-attr]
    assert part.depth_m is not None
    camera = write_camera(tmp_path / "cam.yaml", width=640, height=480)
    for other in (open_source(".", camera=camera), open_source(".", without_depth=True)):
        assert next(iter(other.frames())).depth_m is None


def test_a_tree_of_the_older_release_is_read(tmp_path: Path) -> None:
    """Its pictures are .png."""
    write_tree(tmp_path, {}, {"SM1": 1}, version="v2")
    assert len(list(open_source(str(tmp_path)).frames())) == 1


def test_an_annotation_that_is_gone_is_named(tmp_path: Path) -> None:
    """Some frames with a camera and others without are a broken copy."""
    write_tree(tmp_path, {"ABF10": 2})
    (tmp_path / "train/ABF10/meta/0003.pkl").unlink()
    with pytest.raises(DataError, match=r"meta/0003.pkl is missing"):
        open_source(str(tmp_path / "train/ABF10/rgb"))
