"""The numbers that a run prints and records, each found again from something else that it left behind.

One run of three epochs on two ranks with accumulated batches, a short last batch of validation and a
validation every second epoch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataloader.build import build_dataset, build_train_loader
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.config_file import load_config
from src.evaluation.metrics import mpjpe_mm, pa_mpjpe_mm
from src.geometry.in_view import HIDDEN, IN_VIEW, UNKNOWN
from src.hand.mano import ManoLayer
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, LossTerms, Prediction
from src.training.setup import build_model
from tests.end_to_end.conftest import Embedded

CPU = torch.device("cpu")
EPOCHS, STEPS, WARMUP = 3, 4, 3
"""32 training frames in global batches of 2 samples x 2 batches x 2 ranks; a quarter of 12 steps."""
CLIP = 23.0
SETTINGS = (
    "training.num_epochs=3", "training.batch_size=2", "training.accumulation=2", "validation.batch_size=5",
    "validation.every_epochs=2", "scheduler.warmup_fraction=0.25", "optimizer.lr=1e-3",
    "optimizer.reference_batch=4", f"training.clip_grad_norm={CLIP}",
    "logging.every=1",
)  # fmt: skip
PEAK = 1e-3 * 8 / 4
NUMBER = r"(-?\d+\.\d+)"


@dataclass(frozen=True)
class Counted:
    """What the run said and left."""

    folder: Path
    said: list[str]
    config: RunConfig

    @cached_property
    def scalars(self) -> list[dict[str, float]]:
        """Lines of scalars.jsonl."""
        text = (self.folder / "scalars.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def curve(self, name: str) -> list[float]:
        """All values of a scalar, in order."""
        return [row[name] for row in self.scalars if name in row]

    def line(self, pattern: str) -> list[float]:
        """The numbers of the one line that matches, which must be in log.txt too."""
        found = [match for text in self.said if (match := re.fullmatch(pattern, text))]
        assert len(found) == 1, f"{len(found)} lines match {pattern!r}"
        assert found[0].group(0) in (self.folder / "log.txt").read_text(encoding="utf-8").splitlines()
        return [float(number) for number in found[0].groups()]

    def rows(self, stem: str) -> dict[str, np.ndarray]:
        """Arrays of a per-sample file."""
        with np.load(self.folder / "val" / f"{stem}.npz") as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def hand(self) -> ManoLayer:
        """The run's hand."""
        return ManoLayer.from_file(self.config.mano.model_path)

    @cached_property
    def sets(self) -> tuple[HO3DDataset, HO3DDataset]:
        """Training and validation split."""
        train, val = (build_dataset(self.config, s, self.hand, show_progress=False) for s in ("train", "val"))
        return train, val

    @cached_property
    def first_step(self) -> list[list[tuple[HandBatch, Prediction, LossTerms]]]:
        """Rank -> its two batches of the first step, with what the untrained network makes of them."""
        context = DistContext(0, 1, 0, CPU, None)
        _, model, loss = build_model(self.config, context)
        model.train()
        made = []
        for rank in range(2):
            loader = build_train_loader(self.config, self.sets[0], rank, 2, CPU)
            loader.set_epoch(0)
            batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
            with torch.no_grad():
                predictions = [model(batch) for batch in batches]
                terms = [loss(*pair) for pair in zip(predictions, batches, strict=True)]
            made.append(list(zip(batches, predictions, terms, strict=True)))
        return made


@pytest.fixture(scope="module")
def run(embedded: Embedded) -> Counted:
    """The run, its loss traced."""
    done = embedded.main("name=counted", *SETTINGS, ranks=2, env={"UTNET_DEBUG_LOSS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    settings = embedded.settings("name=counted", *SETTINGS)
    config = load_config(Path(settings[1]), settings[2:])
    return Counted(embedded.newest("counted"), done.stdout.splitlines(), config)


def printed(value: float) -> Any:
    """Equal to a number that was printed with three decimals."""
    return pytest.approx(value, abs=5.1e-4)


def test_the_rate_is_that_of_optimiser_steps(run: Counted) -> None:
    """A schedule that counts accumulated batches never ends: huge.yaml would train at its peak rate."""
    line = rf"UTNet tiny: {NUMBER} M parameters, 2 CPU ranks, global batch (\d+), (\d+) steps, .*"
    millions, batch, steps = run.line(line)
    assert (batch, steps) == (8, EPOCHS * STEPS)
    state = torch.load(run.folder / "checkpoints" / "last.pt", weights_only=True)
    count = sum(value.numel() for value in state["model"].values())
    assert millions == pytest.approx(count / 1e6, abs=5.1e-3)
    assert json.loads((run.folder / "meta.json").read_text())["parameters"] == count
    assert [row["step"] for row in run.scalars if "Train/lr" in row] == list(range(1, 13))
    rates = [PEAK * (k + 1) / (WARMUP + 1) for k in range(WARMUP)]
    rates += [PEAK * (1 - 0.99 * k / (steps - 1 - WARMUP)) for k in range(12 - WARMUP)]
    assert run.curve("Train/lr") == pytest.approx(rates)
    peak = (
        f"Peak learning rate {PEAK:g} (muon) = 0.001 per 4 samples, global batch 8 = 2 x 2 x accumulation 2"
    )
    assert peak in run.said


def test_losses_of_an_epoch_are_its_own(run: Counted) -> None:
    """The line `Train Loss` is the mean over this epoch's steps alone, and so is its scalar."""
    losses = run.curve("Train/loss")
    assert len(losses) == EPOCHS * STEPS
    for epoch in range(EPOCHS):
        mean = sum(losses[epoch * STEPS : (epoch + 1) * STEPS]) / STEPS
        (said,) = run.line(rf"Epoch {epoch}: Train Loss: {NUMBER}")
        assert said == printed(mean), f"epoch {epoch}"
        assert run.curve("Train/epoch_loss")[epoch] == pytest.approx(mean, rel=1e-6)
    assert run.curve("Train/epoch") == [0, 1, 2]


def test_the_share_of_clipped_steps_is_of_this_epoch(run: Counted) -> None:
    """Above a few percent the rate is not the one that was asked for: users watch this number."""
    above = [norm > CLIP for norm in run.curve("Train/grad_norm")]
    assert 0 < sum(above) < len(above), f"the test wants some steps clipped: {run.curve('Train/grad_norm')}"
    shares = []
    for epoch in range(EPOCHS):
        part = above[epoch * STEPS : (epoch + 1) * STEPS]
        shares += [sum(part[: k + 1]) / (k + 1) for k in range(STEPS)]
    assert run.curve("Train/clipped_share") == pytest.approx(shares)


def test_the_first_steps_scalars_are_what_the_untrained_network_gives(run: Counted) -> None:
    """`Train/loss` is the mean over ranks and accumulated batches; the terms are of rank 0's last, plain."""
    total = np.mean([float(terms.total) for rank in run.first_step for _, _, terms in rank])
    assert run.curve("Train/loss")[0] == pytest.approx(float(total), rel=1e-4)
    values = run.first_step[0][-1][2].values
    first = next(row for row in run.scalars if "Train/loss" in row)
    recorded = {n.removeprefix("Train/loss/"): v for n, v in first.items() if n.startswith("Train/loss/")}
    assert recorded == {name: pytest.approx(float(v), rel=1e-3, abs=1e-6) for name, v in values.items()}


def numbers_after(lines: list[str], title: str) -> list[dict[str, list[float]]]:
    """Each block under a title: text in front of its numbers -> these."""
    blocks: list[dict[str, list[float]]] = []
    inside = False
    for line in lines:
        inside = line == title or (inside and line.startswith("  "))
        if line == title:
            blocks.append({})
        elif inside:
            what = re.split(r"[-\d\[]*\d", line)[0]
            name = line.partition(":")[0].strip()
            if " mean" in line:
                name = line.partition(" mean:")[0].strip()
            assert what
            blocks[-1][name] = [float(number) for number in re.findall(r"-?\d+\.\d+", line)]
    return blocks


def spread(values: torch.Tensor) -> Any:
    """Mean and population standard deviation in millimetres of metres, as printed."""
    millimetres = values.double().numpy() * 1000
    return pytest.approx([millimetres.mean(), millimetres.std()], abs=2e-3)


def test_debug_lines_of_a_batch_describe_that_batch(run: Counted) -> None:
    """The eight lines that tell a unit error from flipped axes; millimetres, but pictures as the network sees
    them.
    """
    for k, (batch, prediction, _) in enumerate(run.first_step[0]):
        (found,) = numbers_after(run.said, f"[Debug Batch {k}]")
        joints, hand = batch.joints_cam_m, prediction.hand
        for name, picture in (("RGB range", batch.rgb), ("Depth range", batch.depth)):
            assert found[name] == pytest.approx([float(picture.min()), float(picture.max())], abs=6e-4), name
        assert found["GT 3D joints"] == spread(joints)
        assert found["Pred 3D joints"] == spread(hand.joints_root_m)
        assert found["GT root joint"] == pytest.approx((1000 * joints[0, 0]).tolist(), abs=2e-3)
        assert found["Pred root joint"] == pytest.approx((1000 * hand.root_cam_m[0]).tolist(), abs=2e-3)
        assert found["GT centered by root"] == [0.0, 0.0]
        assert 200 < found["GT root joint"][2] < 1500, "the wrist stands in front of the camera, in mm"
    assert not numbers_after(run.said, "[Debug Batch 3]")


def test_debug_lines_of_the_loss_are_millimetres(run: Counted) -> None:
    """A thousandth of the true number looks like a network that has learned everything."""
    blocks = numbers_after(run.said, "[Debug 3D Loss]")
    assert len(blocks) == EPOCHS * STEPS * 2
    for found, (batch, prediction, _) in zip(blocks, run.first_step[0], strict=False):
        hand = prediction.hand
        gap = (hand.joints_root_m - batch.joints_root_m).double().abs().numpy()
        assert found["Before centering - Pred"] == spread(hand.joints_cam_m)
        assert found["Before centering - GT"] == spread(batch.joints_cam_m)
        assert found["After centering - Pred"] == spread(hand.joints_root_m)
        assert found["After centering - GT"] == spread(batch.joints_root_m)
        assert found["Per-element loss"] == pytest.approx([1000 * gap.mean(), 1000 * gap.max()], abs=2e-3)
        # Smooth L1 of decimetres, quadratic below 1 cm.
        loss = np.where(gap < 0.01, 0.5 * (gap / 0.1) ** 2 / 0.1, gap / 0.1 - 0.05).mean()
        assert found["Loss value"] == [pytest.approx(loss, abs=2e-5)]


def test_validations_are_where_they_were_asked_for(run: Counted) -> None:
    """Every second epoch and the last one, whatever its number."""
    written = {path.name for path in (run.folder / "val").iterdir()}
    for epoch, wanted in enumerate((False, True, True)):
        for end in (".npz", "_rgb.npz"):
            assert (f"epoch_{epoch:04d}{end}" in written) is wanted, f"epoch_{epoch:04d}{end}"
    assert {"report.html", "page.json"} < written
    assert [row["step"] for row in run.scalars if "Val/MPJPE" in row] == [2 * STEPS, 3 * STEPS]


def test_what_validation_says_is_what_the_samples_scored(run: Counted) -> None:
    """Each number of the lines and scalars of a validation is the mean of a column of its per-sample file."""
    lines = {
        "": (
            rf"  Val Loss: {NUMBER}, MPJPE: {NUMBER} mm, PA-MPJPE: {NUMBER} mm",
            rf"  Vertices: MPVPE {NUMBER} mm, PA-MPVPE {NUMBER} mm",
            rf"  Before refinement: MPJPE {NUMBER} mm, PA-MPJPE {NUMBER} mm",
        ),
        "_rgb": (
            rf"  Without depth: Loss: {NUMBER}, MPJPE: {NUMBER} mm, PA-MPJPE: {NUMBER} mm \(16 samples\)",
        ),
    }
    columns = ("loss", "mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm", "coarse_mpjpe_mm",
               "coarse_pa_mpjpe_mm")  # fmt: skip
    scalars = ("loss", "MPJPE", "PA-MPJPE", "MPVPE", "PA-MPVPE", "coarse/MPJPE", "coarse/PA-MPJPE")
    for k, epoch in enumerate((1, 2)):
        start = run.said.index(next(s for s in run.said if s.startswith(f"Epoch {epoch}: Train Loss")))
        here = run.said[start : start + 10]
        for end, patterns in lines.items():
            rows = run.rows(f"epoch_{epoch:04d}{end}")
            means = [float(rows[name].mean()) for name in columns]
            assert len({f"{mean:.3f}" for mean in means}) == len(means), "the test wants numbers apart"
            said = [
                float(n)
                for pattern in patterns
                for line in here
                if (match := re.fullmatch(pattern, line))
                for n in match.groups()
            ]
            assert said == [printed(mean) for mean in means[: len(said)]], f"epoch {epoch}, {end or 'rgbd'}"
            assert len(said) == (3 if end else 7)
            prefix = "Val/RGB-only/" if end else "Val/"
            for name, mean in zip(scalars, means, strict=True):
                assert run.curve(prefix + name)[k] == pytest.approx(mean, rel=1e-12), prefix + name


def test_the_per_sample_file_holds_predictions_in_the_pictures_camera(run: Counted) -> None:
    """Metres, OpenCV, in front of the camera, beside the labels of the same frames: the columns follow."""
    rows, (_, val) = run.rows("epoch_0002"), run.sets
    labels = val.frames.labels().joints_cam_m
    assert rows["frame"].tolist() == [val.frames.frame_id(i) for i in range(len(val))]
    joints = rows["pred_joints_cam_m"]
    np.testing.assert_allclose(rows["mpjpe_mm"], mpjpe_mm(joints, labels), rtol=1e-4)
    np.testing.assert_allclose(rows["pa_mpjpe_mm"], pa_mpjpe_mm(joints, labels), rtol=1e-4)
    away = np.linalg.norm(joints[:, 0] - labels[:, 0], axis=-1)
    assert np.median(away) < 0.15, "an untrained wrist still stands near the hand, in the picture's camera"


def test_the_page_takes_errors_apart_by_what_the_frames_are(run: Counted) -> None:
    """Longer sides of boxes, joints hidden in the depth picture: of other frames or another side, a page
    explains an error by what did not cause it. Scored without depth, the same joints are hidden.
    """
    content = json.loads((run.folder / "val" / "page.json").read_text(encoding="utf-8"))
    blocks = {section["title"]: section["blocks"] for section in content["sections"]}
    rows, blind = run.rows("epoch_0002"), run.rows("epoch_0002_rgb")
    labels = run.sets[1].frames.labels()
    sides = np.ptp(labels.box_px.reshape(-1, 2, 2), axis=1).max(axis=1)
    order = np.argsort(sides).reshape(8, 2)
    curves = blocks["Distance and size"][1]["figure"]["data"]
    for curve, own in zip(curves, (rows, blind), strict=True):
        assert curve["x"] == pytest.approx(sides[order].mean(axis=1).tolist(), rel=1e-5)
        assert curve["y"] == pytest.approx(own["mpjpe_mm"][order].mean(axis=1).tolist(), rel=1e-6)
    codes = {"in view": IN_VIEW, "hidden": HIDDEN, "not known": UNKNOWN}
    (table,) = (block["table"] for block in blocks["In view or hidden"])
    found = {kind: numbers for part, kind, *numbers in table["rows"] if part == "all but the wrist"}
    assert found.keys() == codes.keys()
    for kind, (count, *errors) in found.items():
        mask = rows["joints_in_view"][:, 1:] == codes[kind]
        assert count == mask.sum() > 0, kind
        for error, own in zip(errors, (rows, blind), strict=True):
            joints = own["pred_joints_cam_m"] - labels.joints_cam_m
            gaps = 1000 * np.linalg.norm(joints[:, 1:] - joints[:, :1], axis=-1)
            assert error == pytest.approx(gaps[mask].mean(), rel=1e-4), kind


def test_baselines_are_those_of_this_very_split(run: Counted) -> None:
    """Zero, mean and nearest pose from the labels themselves, one pair at a time."""
    train, val = (dataset.frames.labels() for dataset in run.sets)
    truth = val.joints_cam_m.astype(np.float64)
    turns = np.concatenate([train.global_orient[:, None], train.hand_pose], axis=1)
    mean = torch.from_numpy(
        np.stack([Rotation.from_matrix(turns[:, k]).mean().as_matrix() for k in range(16)])
    )
    betas = torch.from_numpy(train.betas.astype(np.float64).mean(0))[None]
    posed = run.hand(mean[None, 0], mean[None, 1:], betas, torch.zeros(1, 3)).joints_m.numpy()
    average = np.repeat(posed, len(truth), axis=0)
    nearest = [pa_mpjpe_mm(train.joints_cam_m, np.repeat(t[None], len(train.betas), 0)).min() for t in truth]
    expected = [
        np.linalg.norm(truth - truth[:, :1], axis=-1).mean() * 1000,
        np.linalg.norm(truth - truth.mean(1, keepdims=True), axis=-1).mean() * 1000,
        mpjpe_mm(average, truth).mean(),
        pa_mpjpe_mm(average, truth).mean(),
        float(np.mean(nearest)),
    ]
    pair = rf"MPJPE {NUMBER} mm, PA-MPJPE {NUMBER} mm"
    pattern = (
        rf"  Baselines of this split: zero pose {pair}; mean pose {pair}; "
        rf"nearest training pose PA-MPJPE {NUMBER} mm"
    )
    said = [[float(n) for n in match.groups()] for s in run.said if (match := re.fullmatch(pattern, s))]
    assert said == [[pytest.approx(value, abs=2e-3) for value in expected]] * 2
    names = ("zero_mpjpe_mm", "zero_pa_mm", "mean_pose_mpjpe_mm", "mean_pose_pa_mm", "nearest_pose_pa_mm")
    for name, value in zip(names, expected, strict=True):
        assert run.curve(f"Val/baseline/{name}") == [pytest.approx(value, abs=2e-3)] * 2, name


def test_the_best_epoch_is_that_of_the_lowest_mpjpe_with_depth(run: Counted) -> None:
    """What the last line says, what best.pt is and what the epochs scored."""
    scores = {epoch: float(run.rows(f"epoch_{epoch:04d}")["mpjpe_mm"].mean()) for epoch in (1, 2)}
    best = min(scores, key=lambda epoch: scores[epoch])
    said, epoch = run.line(rf"Finished 3 epochs, best MPJPE {NUMBER} mm \(epoch (\d+)\)\. Run folder: .*")
    assert (said, epoch) == (printed(scores[best]), best)
    folder = run.folder / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.pt", "last.pt"}
    chosen = torch.load(folder / "best.pt", weights_only=True)
    assert chosen["step"] == (best + 1) * STEPS
    assert chosen["progress"]["best_mpjpe_mm"] == pytest.approx(scores[best], rel=1e-12)


def test_the_average_is_validated_and_evaluated(run: Counted, embedded: Embedded) -> None:
    """`--evaluate` of the last checkpoint scores what the last validation scored: the averaged weights."""
    last = run.folder / "checkpoints" / "last.pt"
    done = embedded.main("name=again", *SETTINGS, "--evaluate", str(last))
    assert done.returncode == 0, done.stderr
    state = torch.load(last, weights_only=True)
    plain, average = state["model"], state["ema"]["average"]
    apart = max(float((plain[name] - value).abs().max()) for name, value in average.items())
    assert apart > 1e-4, "the test wants an average that is not the plain weights"
    for end in ("", "_rgb"):
        then = run.rows(f"epoch_0002{end}")
        with np.load(embedded.newest("again") / "val" / f"per_sample{end}.npz") as now:
            for name in ("pred_joints_cam_m", "mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "loss"):
                np.testing.assert_array_equal(now[name], then[name], err_msg=f"{name}{end}")


def test_tensorboard_shows_the_same_curves(run: Counted) -> None:
    """People look at these curves, and compare runs by their steps."""
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    for name in ("Train/loss", "Train/lr", "Val/MPJPE", "Val/RGB-only/PA-MPJPE", "Train/epoch_loss"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        kept = [(row["step"], row[name]) for row in run.scalars if name in row]
        assert [step for step, _ in shown] == [step for step, _ in kept], name
        assert [v for _, v in shown] == pytest.approx([v for _, v in kept], rel=1e-6), name
