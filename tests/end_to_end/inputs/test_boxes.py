"""validation.boxes: the same weights scored a second time, at boxes that no label gave."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import src.build
from src.evaluation.evaluator import read_per_sample
from src.predict import Predictor
from src.predict.frame import Frame, HandBox
from src.predict.frames import open_source
from tests.end_to_end.conftest import Embedded

LINE = re.compile(
    r"^  With boxes of depth: MPJPE: ([0-9.]+) mm, PA-MPJPE: ([0-9.]+) mm; with label boxes on the same "
    r"(\d+) samples: MPJPE: ([0-9.]+) mm, PA-MPJPE: ([0-9.]+) mm; (\d+) samples without a box$",
    re.M,
)


class EvenFrames:
    """Sees a right hand in every second frame, and a left one in all, of which it is surer."""

    def find(self, frame: Frame) -> list[HandBox]:
        """Boxes of `BoxFinder`."""
        found = [HandBox((10.0, 10.0, 90.0, 90.0), left=True, score=0.9)]
        if int(frame.name[-1]) % 2 == 0:
            found += [
                HandBox((200.0, 130.0, 420.0, 350.0), score=0.8),
                HandBox((0.0, 0.0, 50.0, 50.0), score=0.1),
            ]
        return found


def every_second() -> None:
    """Put `EvenFrames` in the place of the finder."""
    src.build.open_finder = lambda how, names: EvenFrames()  # type: ignore[assignment]


@pytest.fixture(scope="module")
def checkpoint(embedded: Embedded) -> Path:
    """Weights of two steps."""
    done = embedded.main("name=boxes", "training.num_epochs=1", "training.max_steps_per_epoch=2")
    assert done.returncode == 0, done.stderr
    return embedded.newest("boxes") / "checkpoints" / "last.pt"


def test_both_scores_are_of_the_same_samples_for_any_number_of_ranks(
    embedded: Embedded, checkpoint: Path
) -> None:
    """Beside the score of all samples, that of those with a box looks better or worse for no reason."""
    said, rows = {}, {}
    for ranks, boxes in ((1, "depth"), (3, "depth"), (1, "labels")):
        name = f"{boxes}{ranks}"
        done = embedded.main(
            f"name={name}",
            "--evaluate",
            str(checkpoint),
            f"validation.boxes={boxes}",
            ranks=ranks,
            plant=every_second,
        )
        assert done.returncode == 0, done.stderr
        said[name], rows[name] = done.stdout, embedded.newest(name) / "val"
    for file in ("per_sample.npz", "per_sample_boxes.npz"):
        assert (rows["depth1"] / file).read_bytes() == (rows["depth3"] / file).read_bytes()
    assert (rows["depth1"] / "per_sample.npz").read_bytes() == (
        rows["labels1"] / "per_sample.npz"
    ).read_bytes()
    assert not (rows["labels1"] / "per_sample_boxes.npz").exists()
    assert "With boxes" not in said["labels1"]
    numbers = LINE.findall(said["depth1"])
    assert numbers == LINE.findall(said["depth3"])
    labels, other = (read_per_sample(rows["depth1"] / f"per_sample{kind}.npz") for kind in ("", "_boxes"))
    even = np.array([int(frame[-1]) % 2 == 0 for frame in labels["frame"]])
    assert (other["label_usable"] == even).all()
    assert (other["frame"] == labels["frame"]).all()
    expected = [
        f"{own[key][even].mean():.3f}" for own in (other, labels) for key in ("mpjpe_mm", "pa_mpjpe_mm")
    ]
    assert numbers == [(*expected[:2], str(even.sum()), *expected[2:], str((~even).sum()))]
    assert f"Boxes of depth: {even.sum()} of {len(even)} samples have one" in said["depth1"]
    assert numbers[0][0] != numbers[0][3], "boxes in the middle are other boxes"
    assert said["depth1"].count("With boxes of") == 1, "boxes from depth, without depth: nobody has them"
    require_as_predicted(embedded, checkpoint, other["frame"][even], other["pred_joints_cam_m"][even])


def require_as_predicted(
    embedded: Embedded, checkpoint: Path, names: NDArray[np.str_], joints_m: NDArray[np.float32]
) -> None:
    """Boxes are sized by depth in a validation as in a prediction: else the score is that of other hands."""
    frames = list(open_source(str(embedded.root), split="train").frames())
    seen = [(f, EvenFrames().find(f)[1]) for f in frames if f.name in set(names)]
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", hand_model=embedded.hand)
    ours = dict(zip([frame.name for frame, _ in seen], predictor.predict(seen).joints_m, strict=True))
    gap_m = max(np.abs(ours[n] - theirs).max() for n, theirs in zip(names, joints_m, strict=True))
    assert gap_m < 0.005  # batches differ, and bf16 shows it


def test_each_validation_of_a_run_says_both(embedded: Embedded) -> None:
    """Training goes on as without: the labels' boxes judge, and the step is the same."""
    settings = ("training.num_epochs=1", "training.max_steps_per_epoch=2")
    for boxes in ("labels", "depth"):
        done = embedded.main(
            f"name=train-{boxes}", f"validation.boxes={boxes}", *settings, plant=every_second
        )
        assert done.returncode == 0, done.stderr
    both, plain = (embedded.newest(f"train-{boxes}") for boxes in ("depth", "labels"))
    assert len(LINE.findall(done.stdout)) == 1
    assert (both / "val/epoch_0000_boxes.npz").is_file()
    assert "<p>With boxes of depth: " in (both / "val/report.html").read_text()
    assert (both / "val/epoch_0000.npz").read_bytes() == (plain / "val/epoch_0000.npz").read_bytes()
    assert '"Val/boxes/labels/MPJPE": ' in (both / "scalars.jsonl").read_text()


def nowhere() -> None:
    """A finder that finds nothing."""
    EvenFrames.find = lambda self, frame: []  # type: ignore[method-assign]
    every_second()


def test_boxes_that_are_nowhere_end_a_run_before_it_trains(embedded: Embedded) -> None:
    """After an epoch it would be too late to find a word misspelt."""
    for setting, plant, said in (
        (
            "detct",
            None,
            "ConfigError: boxes detct: no such file; want labels, detect, depth, or a CSV or JSON file",
        ),
        ("depth", nowhere, "DataError: validation.boxes=depth: no right hand was found in any of 16 samples"),
    ):
        done = embedded.main("name=nowhere", f"validation.boxes={setting}", ranks=2, plant=plant)
        assert (done.returncode, done.stderr.strip().splitlines()) == (2, [said]), done.stderr
        assert "Epoch 0" not in done.stdout
