"""The command for own frames: what it leaves, what it goes on from, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from src.predict.boxes.track import TrackedBoxes
from src.predict.frame import Frame, HandBox
from src.predict.outputs.store import UNFINISHED, Store
from src.predict.run import _Loop
from src.tools import predict
from tests.dataloader.tree import run_config, write_tree
from tests.predict.network import write_network
from tests.predict.outputs.test_pictures import read_ply

CAMERA = "fx: 600\nfy: 600\ncx: 80\ncy: 60\nwidth: 160\nheight: 120\ndepth_unit_m: 0.001\n"
BOX = (40.0, 30.0, 110.0, 100.0)
BOXES = """frame,x0,y0,x1,y1,hand
0,40,30,110,100,right
1,42,30,112,100,left
1,20,20,90,90,right
3,40,30,110,100,
"""


@dataclass(frozen=True)
class Trial:
    """A checkpoint, an HO3D tree, and four own pictures with depth, a camera and boxes."""

    root: Path

    def arguments(self, **changes: str | None) -> list[str]:
        """A command line that is right, but for what is changed; None leaves an option out."""
        given: dict[str, str | None] = {
            "checkpoint": str(self.root / "best.pt"), "rgb": str(self.root / "rgb"),
            "depth": str(self.root / "depth"), "camera": str(self.root / "cam.yaml"),
            "boxes": str(self.root / "boxes.csv"), "device": "cpu", "out": str(self.root / "out"), **changes,
        }  # fmt: skip
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]


def write_film(path: Path) -> None:
    """Six frames of noise, 20 a second."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20, (160, 120))
    for _ in range(6):
        writer.write(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    writer.release()


@pytest.fixture(autouse=True)
def _leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log outlets and signals belong to whole processes, and this one runs other tests."""
    monkeypatch.setattr(predict.log, "configure", lambda **_: None)
    monkeypatch.setattr(predict.StopRequest, "install", lambda _: None)
    monkeypatch.setattr(logging.getLogger("utnet"), "handlers", [logging.NullHandler()])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    write_tree(root / "HO3D", {"MC1": 2}, {"SM1": 2, "AP10": 3})
    write_network(root / "best.pt", run_config(root / "HO3D").dataset)
    rng = np.random.default_rng(0)
    for folder in ("rgb", "depth"):
        (root / folder).mkdir()
    near = cv2.resize(rng.random((6, 8)), (160, 120), interpolation=cv2.INTER_CUBIC)
    for k in range(4):
        shade = np.clip(near[..., None] * 255, 0, 255) * np.array([0.5, 0.8, 1])
        cv2.imwrite(str(root / "rgb" / f"{k}.png"), shade.astype(np.uint8))
        cv2.imwrite(str(root / "depth" / f"{k}.png"), (500 + 200 * near + k).astype(np.uint16))
    (root / "cam.yaml").write_text(CAMERA)
    (root / "boxes.csv").write_text(BOXES)
    return root


@pytest.fixture
def trial(made: Path, tmp_path: Path) -> Trial:
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return Trial(tmp_path)


def test_own_frames_become_numbers_meshes_and_pictures(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, and all that it promises is there; a frame without a hand is named, not invented."""
    assert predict.main([*trial.arguments(), "--meshes", "ply"]) == 0
    out = trial.root / "out"
    npz = np.load(out / "predictions.npz")
    assert npz["frame"].tolist() == ["0", "1", "1", "3"]
    assert npz["left"].tolist() == [False, True, False, False]
    assert npz["frames_without_hand"].tolist() == ["2"]
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert sorted(p.name for p in (out / "meshes").iterdir()) == ["0_0.ply", "1_0.ply", "1_1.ply", "3_0.ply"]
    vertices, faces = read_ply(out / "meshes" / "1_0.ply")  # of the left hand
    a, b, c = (vertices - vertices.mean(0))[faces].transpose(1, 0, 2)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0, "its faces are turned inwards"
    said = capsys.readouterr().out
    assert "Predicted 4 hands in 4 frames" in said
    assert "Frames without a hand: 1: 2" in said
    assert predict.main(trial.arguments()) == 2
    assert "holds predictions already" in capsys.readouterr().err


def test_a_tree_is_predicted_from_its_root(trial: Trial) -> None:
    """Labels' boxes, cameras and depth of HO3D need no other argument; with depth hidden hands differ."""
    tree = {"rgb": str(trial.root / "HO3D"), "depth": None, "camera": None, "boxes": "labels"}
    assert predict.main(trial.arguments(**tree)) == 0
    assert predict.main([*trial.arguments(**tree, out=str(trial.root / "rgb_only")), "--without-depth"]) == 0
    with_depth, without = (np.load(trial.root / out / "predictions.npz") for out in ("out", "rgb_only"))
    assert len(with_depth["frame"]) == 5
    assert np.abs(with_depth["joints_m"] - without["joints_m"]).max() > 1e-4


def test_a_stopped_run_goes_on_to_the_same_bytes(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a long run must lose nothing, and leave no trace in the result."""
    assert predict.main(trial.arguments()) == 0
    second = trial.arguments(out=str(trial.root / "second"))
    seen: list[str] = []
    taken = _Loop.take

    def take(loop: _Loop, frame: Frame) -> None:
        seen.append(frame.name)
        taken(loop, frame)

    monkeypatch.setattr(_Loop, "take", take)
    with monkeypatch.context() as stopped:  # after three frames, of which two are a batch
        signal = property(lambda _: "SIGINT" if len(seen) >= 3 else None, lambda *_: None)
        stopped.setattr(predict.StopRequest, "received", signal, raising=False)
        assert predict.main(second) == 3
    assert predict.main(second) == 0
    assert seen == ["0", "1", "2", "2", "3"]
    whole, parts = (trial.root / out for out in ("out", "second"))
    assert not (parts / UNFINISHED).exists()
    a, b = (np.load(folder / "predictions.npz") for folder in (whole, parts))
    assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_so_many_frames_as_asked_for_and_no_more(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all of them were there already when the run was ended."""
    two = [*trial.arguments(), "--frames", "2"]
    with monkeypatch.context() as broken:
        broken.setattr(Store, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict.main(two)
    assert predict.main(two) == 0
    assert np.load(trial.root / "out" / "predictions.npz")["frame"].tolist() == ["0", "1", "1"]


def test_a_video_is_tracked_smoothed_and_given_back_as_a_video(trial: Trial) -> None:
    """A film in, a film out, with as many frames."""
    path = trial.root / "film.mp4"
    write_film(path)
    rows = "".join(f"film/{k:06d},40,30,110,100\n" for k in range(6))
    (trial.root / "film.csv").write_text("frame,x0,y0,x1,y1\n" + rows)
    film = trial.arguments(rgb=str(path), depth=None, boxes=str(trial.root / "film.csv"))
    assert predict.main([*film, "--smooth"]) == 0
    assert predict.main([*film[:-1], str(trial.root / "raw")]) == 0
    video = cv2.VideoCapture(str(trial.root / "out" / "overlays.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 6
    smooth, raw = (np.load(trial.root / out / "predictions.npz")["joints_m"] for out in ("out", "raw"))
    assert np.array_equal(smooth[0], raw[0])
    drawn = [(trial.root / out / "overlays/film/000005.jpg").read_bytes() for out in ("out", "raw")]
    assert drawn[0] != drawn[1], "the pictures show what the numbers say"
    jitter = [np.abs(np.diff(joints, axis=0)).mean() for joints in (smooth, raw)]
    assert jitter[0] < jitter[1]


def test_in_a_video_the_detector_is_asked_only_where_the_last_prediction_does_not_do(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a film takes ten times as long, and a hand that is hidden for a moment is lost."""
    told: list[str] = []
    monkeypatch.setattr(predict, "open_finder", lambda *_: SimpleNamespace(find=lambda _: [HandBox(BOX)]))
    monkeypatch.setattr(TrackedBoxes, "tell", lambda _, frame, boxes, hands: told.append(frame.name))
    path = trial.root / "film.mp4"
    write_film(path)
    assert predict.main(trial.arguments(rgb=str(path), depth=None, boxes="detect")) == 0
    assert told == [f"film/{k:06d}" for k in range(6)]


def test_the_user_s_word_on_which_hand_it_is_counts(trial: Trial) -> None:
    """A detector errs, and depth cannot know: who films a left hand says so once."""
    assert predict.main([*trial.arguments(), "--hand", "left"]) == 0
    assert np.load(trial.root / "out" / "predictions.npz")["left"].tolist() == [True] * 4


HOW = ("labels", "depth")
WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "no camera": ({"camera": None}, "Give --camera FILE"),
    "camera of another size": ({"camera": "other.yaml"}, "160 x 120"),
    "no such checkpoint": ({"checkpoint": "none.pt"}, r"none\.pt"),
    "another hand": ({"hand-model": "none.pkl"}, "no such file"),
    "empty folder": ({"rgb": "empty", "depth": None}, "empty"),
    "no such folder": ({"rgb": "nowhere"}, "nowhere"),
    "millimetres called metres": ({"depth-unit-m": "1"}, "0.001"),
    "labels of own frames": ({"boxes": "labels"}, "no labels"),
    "no such boxes": ({"boxes": "none.csv"}, r"none\.csv"),
    "a box outside": ({"boxes": "outside.csv"}, "outside the picture"),
    "a box of no size": ({"boxes": "flat.csv"}, "flat.csv"),
    "boxes of another folder": ({"boxes": "foreign.csv"}, "foreign.csv"),
    "depth of another size": ({"depth": "small"}, "80 x 60"),
    "boxes from depth without depth": ({"boxes": "depth", "depth": None}, "depth"),
    "no such device": ({"device": "cuda:99"}, "device"),
    "out is a file": ({"out": "cam.yaml"}, r"cam\.yaml"),
    "a batch of nothing": ({"batch-size": "0"}, "at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_line_and_leaves_nothing(
    trial: Trial, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a folder of hands, or hands of a wrong unit, would be taken for results."""
    root = trial.root
    (root / "other.yaml").write_text(CAMERA.replace("width: 160", "width: 640").replace("120", "480"))
    (root / "empty").mkdir()
    (root / "small").mkdir()
    for k in range(4):
        cv2.imwrite(str(root / "small" / f"{k}.png"), np.full((60, 80), 600, np.uint16))
    for file, row in {
        "outside": "0,400,30,460,90",
        "flat": "0,40,30,40,30",
        "foreign": "x9,40,30,90,90",
    }.items():
        (root / f"{file}.csv").write_text(f"frame,x0,y0,x1,y1\n{row}\n")
    changes, said = WRONG[name]
    plain = {"device", "batch-size", "depth-unit-m", *(["boxes"] if changes.get("boxes") in HOW else [])}
    here = {k: v if v is None or k in plain else str(root / v) for k, v in changes.items()}
    before = sorted(p.name for p in root.iterdir())
    assert predict.main(trial.arguments(**here)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(said, error), error
    assert sorted(p.name for p in root.iterdir()) == before


def test_settings_of_a_result_are_in_it(trial: Trial) -> None:
    """A year later the file must say which network saw which frames."""
    assert predict.main(trial.arguments()) == 0
    settings = json.loads(str(np.load(trial.root / "out" / "predictions.npz")["settings"]))
    assert settings["rgb"] == str(trial.root / "rgb")
    assert len(settings["checkpoint_sha256"]) == 64
