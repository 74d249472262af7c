"""The export of a submission: the very predictions of a validation, in the official order, or nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader.build import build_dataset, build_eval_loader
from src.config import ManoConfig, ModelConfig, RunConfig, ValidationConfig
from src.evaluation.metrics import official_ho3d
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext
from src.tools import export_submission
from src.training.checkpoints import checkpoint as ckpt
from src.training.setup import backbone_dtype
from src.training.step import TrainStep
from tests.dataloader.ho3d.test_truth import meshes
from tests.dataloader.tree import run_config, write_tree
from tests.hand_file import hand_file

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)


@dataclass(frozen=True)
class Trained:
    """A data set of 5 evaluation frames with both ground truth files, and a checkpoint."""

    root: Path
    path: Path
    config: RunConfig
    model: UTNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("export")
    frames = write_tree(folder / "HO3D", {"MC1": 2}, {"SM1": 2, "AP10": 3})
    (folder / "HO3D" / "evaluation_verts.json").write_text(json.dumps(meshes(frames).tolist()))
    hand = ManoLayer.from_file(hand_file())
    config = RunConfig(
        dataset=run_config(folder / "HO3D").dataset,
        model=ModelConfig(preset="tiny", image_size=(64, 64), drop_path=0.5),
        mano=ManoConfig(model_path=hand_file()),
        validation=ValidationConfig(batch_size=2),
    )
    torch.manual_seed(0)
    model = UTNet(config.model, hand)
    model.backbone_dtype = backbone_dtype(config, torch.device("cpu"))
    trainer = TrainStep(model, HandLoss(config.loss, hand), config, ALONE, 10)
    with torch.no_grad():  # the present weights are not the averaged ones
        for weight in model.parameters():
            weight.add_(0.01)
    path = folder / "run" / "checkpoints" / "best.pt"
    ckpt.save_checkpoint(path, trainer, ckpt.Progress(), config, hand, "abc", ALONE)
    ckpt.load_weights(model, ckpt.load_checkpoint(path), path)
    return Trained(folder / "HO3D", path, config, model)


@pytest.fixture(autouse=True)
def _leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log outlets and torch's settings belong to whole processes, and this one runs other tests."""
    monkeypatch.setattr(export_submission.log, "configure", lambda **_: None)
    monkeypatch.setattr(logging.getLogger("utnet"), "handlers", [logging.NullHandler()])
    monkeypatch.setattr(export_submission, "configure_torch", lambda _: None)


def export(trained: Trained, out: Path, *more: str) -> int:
    return export_submission.main(["--checkpoint", str(trained.path), "--out", str(out), *more])


def read_submission(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Joints in our order and vertices, image camera in OpenCV's axes, float32, of a pred.zip."""
    with zipfile.ZipFile(path) as archive:
        xyz, verts = (np.array(part, np.float32) for part in json.loads(archive.read("pred.json")))
    axes = np.float32([1, -1, -1])
    return xyz[:, list(permutation(HO3D21, OPENPOSE21))] * axes, verts * axes


def printed_scores(text: str) -> dict[str, float]:
    lines = text[text.index("Official scores") :].splitlines()[1:]
    return {name.strip(): float(value) for name, value in (line.split(":") for line in lines)}


def test_the_file_holds_the_predictions_of_a_validation(trained: Trained, tmp_path, capsys) -> None:
    """What the server scores must be what --evaluate scores: same frames, batches, weights and camera; and
    the table that is printed is that of the file.
    """
    assert export(trained, tmp_path) == 0
    out = capsys.readouterr().out
    joints, vertices = read_submission(tmp_path / "pred.zip")
    dataset = build_dataset(trained.config, "evaluation", show_progress=False)
    trained.model.eval()
    for batch in build_eval_loader(trained.config, dataset, 0, 1, torch.device("cpu")):
        with torch.no_grad():
            hand = trained.model(batch).hand
        rows = batch.sample_index.numpy()
        assert np.array_equal(joints[rows], batch.to_image_camera(hand.joints_cam_m).numpy())
        assert np.array_equal(vertices[rows], batch.to_image_camera(hand.vertices_cam_m).numpy())
    passed = [line.split(":")[0] for line in out.splitlines() if line.startswith("PASS")]
    assert sorted(set(passed)) == sorted(
        f"PASS {name}" for name in ("frames", "count", "finite", "axes", "unit", "order", "read back")
    )
    assert "5 frames, RGB-D" in out
    assert "HO3D_v3's evaluation split has 20137 frames" in out
    assert "CodaLab" in out
    assert (tmp_path / "pred_frames.txt").read_text() == (trained.root / "evaluation.txt").read_text()
    scores = printed_scores(out)
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        xyz, verts = (np.array(part) for part in json.loads(archive.read("pred.json")))
    truth = [
        np.array(json.loads((trained.root / f"evaluation_{k}.json").read_text())) for k in ("xyz", "verts")
    ]
    exact = official_ho3d(xyz.astype(np.float32), truth[0], verts.astype(np.float32), truth[1])
    assert scores == {name: float(f"{value:.6f}") for name, value in exact.items()}


def test_without_ground_truth_it_is_exported_all_the_same(trained: Trained, tmp_path, capsys) -> None:
    """Whoever takes part in the challenge has no labels; only the table is left out."""
    root = tmp_path / "HO3D"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("*.json", ".utnet"))
    assert export(trained, tmp_path / "blind", f"dataset.root_dir={root}") == 0
    out = capsys.readouterr().out
    assert "No official scores: " in out
    assert "evaluation_xyz.json and evaluation_verts.json" in out
    assert "xyz_mean3d" not in out
    shutil.copy(trained.root / "evaluation_xyz.json", root)
    capsys.readouterr()
    assert export(trained, tmp_path / "joints", f"dataset.root_dir={root}") == 0
    out = capsys.readouterr().out
    assert "No official mesh scores" in out
    assert "xyz_mean3d" in out
    assert "mesh_mean3d" not in out


def test_without_depth_is_another_submission(trained: Trained, tmp_path, capsys) -> None:
    """An RGB-only entry that was computed with depth is not one."""
    loader = []
    real = export_submission.build_eval_loader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_submission, "build_eval_loader", lambda *a: loader.append(a[5]) or real(*a))
        assert export(trained, tmp_path, "--without-depth") == 0
    assert loader == ["rgb"]
    assert "RGB only" in capsys.readouterr().out


def changed(trained: Trained, path: Path, **entries: object) -> int:
    """Export a checkpoint with other entries."""
    torch.save(torch.load(trained.path, weights_only=True) | entries, path)
    return export_submission.main(["--checkpoint", str(path), "--out", str(path.parent / "out")])


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_a_checkpoint_that_learnt_nothing_is_exported(trained: Trained, tmp_path, scale: float) -> None:
    """Whoever rehearses the upload has no good network yet: a strange pose is no wrong order."""
    weights = {
        name: weight * scale if weight.is_floating_point() else weight
        for name, weight in trained.model.state_dict().items()
    }
    assert changed(trained, tmp_path / "untrained.pt", model=weights, ema=None) == 0
    assert np.isfinite(read_submission(tmp_path / "out" / "pred.zip")[1]).all()


def test_rows_in_another_order_than_the_list_are_refused(trained: Trained, tmp_path, capsys) -> None:
    """pred.json holds no names: rows of another list would be scored against other frames."""
    real = export_submission.read_list

    def reordered(*arguments: object) -> object:
        listed = real(*arguments)
        return dataclasses.replace(listed, lines=listed.lines[::-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_submission, "read_list", reordered)
        assert export(trained, tmp_path) == 2
    assert "the rows are not the lines of evaluation.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_hand_than_the_checkpoints_is_refused(trained: Trained, tmp_path, capsys) -> None:
    """Weights that were trained with one hand give wrong joints with another, and nothing else would show."""
    other = {"hand_fingerprint": "another", "hand_is_standin": False}
    assert changed(trained, tmp_path / "other.pt", **other) == 2
    assert "was trained with a MANO file (fingerprint another)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def spoil_nan(batch: object, prediction: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(prediction))[:, None, None] == 1, torch.nan, prediction)


def test_a_prediction_that_is_not_finite_is_not_written(
    trained: Trained, tmp_path, capsys, monkeypatch
) -> None:
    """NaN is no JSON: the server refuses the file after the upload."""
    monkeypatch.setattr("src.schema.HandBatch.to_image_camera", spoil_nan)
    assert export(trained, tmp_path) == 2
    assert "joints of 2 frames are not finite (first: row 1)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["validation.split=val"], "a submission is of the official split"),
        (["model.image_size=[96, 96]", "model.preset=small"], "another network"),
        (["dataset.root_dir=/none"], "dataset.root_dir"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(trained: Trained, tmp_path, capsys, more, message) -> None:
    """Status 2 and what to mend, no traceback."""
    assert export(trained, tmp_path, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_submission_that_is_there_and_several_processes_are_refused(
    trained: Trained, tmp_path, capsys, monkeypatch
) -> None:
    """A submission that is there, and torchrun: each says so before it predicts."""
    (tmp_path / "pred.zip").write_bytes(b"mine")
    assert export(trained, tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "pred.zip").read_bytes() == b"mine"
    assert export(trained, tmp_path, "--overwrite") == 0
    assert (tmp_path / "pred.zip").read_bytes() != b"mine"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert export(trained, tmp_path, "--overwrite") == 2
    assert "one process" in capsys.readouterr().err


def test_the_default_folder_is_in_the_run(trained: Trained) -> None:
    """Files land beside the run that they are from, RGB-only ones apart."""
    run = trained.path.parent.parent
    for flags, name in (([], "submission"), (["--without-depth"], "submission_rgb")):
        arguments = export_submission.parse_arguments(["--checkpoint", str(trained.path), *flags])
        assert export_submission.output_folder(arguments) == run / name


def test_a_sample_that_is_not_predicted_is_not_written(
    trained: Trained, tmp_path, capsys, monkeypatch
) -> None:
    """A loader that skips a frame would leave a row empty."""
    real = export_submission.build_eval_loader
    monkeypatch.setattr(export_submission, "build_eval_loader", lambda *given: list(real(*given))[:-1])
    assert export(trained, tmp_path) == 2
    assert "joints of 1 frames are not finite (first: row 4)" in capsys.readouterr().err
