"""What a validation shows: samples chosen among all, fetched from the ranks, drawn, and put on its page.

What fails while a page is made is one warning, and the run goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.ho3d_dataset import HO3DDataset
from src.build import Scoring
from src.errors import UTNetError
from src.evaluation.evaluator import MODALITY_NAMES
from src.hand.mano import ManoLayer
from src.pages.chosen import choose
from src.pages.files import REPORT
from src.pages.page import KEPT
from src.pages.samples import Crop, Hand, Sample
from src.pages.validation import Validation
from src.render.pictures import captioned, grid, picture_from_network
from src.runtime.outlet import optional
from src.schema import HandSample, Shown
from src.training.kept_hands import KeptHands, meshes_of
from src.training.recorder import Recorder, read_scalars
from src.training.validation import Outcome

_MEANS = {
    "mpvpe_mm": "MPVPE, mm",
    "pa_mpvpe_mm": "PA-MPVPE, mm",
    "coarse_mpjpe_mm": "MPJPE before refinement, mm",
    "coarse_pa_mpjpe_mm": "PA-MPJPE before refinement, mm",
}


def keepers(scoring: Scoring) -> dict[Shown, KeptHands]:
    """What keeps this rank's predictions while it validates; nothing where no pictures are wanted."""
    return {shown: KeptHands() for shown in scoring.loaders} if scoring.config.validation.pictures else {}


def show(
    recorder: Recorder,
    scoring: Scoring,
    outcome: Outcome | None,
    kept: Mapping[Shown, KeptHands],
    facts: Mapping[str, str],
    *,
    step: int,
    curves: Path | None,
) -> Callable[[], Path | None]:
    """Collect what `val/report.html` and TensorBoard's pictures are made of; every rank calls it.

    Args:
        recorder: of the run.
        scoring: what was validated.
        outcome: what came of it; None on ranks without rows.
        kept: this rank's predictions.
        facts: what the page is about: name and value, in front of what is known here.
        step: optimiser steps of the weights.
        curves: scalars.jsonl of the training, which need not exist; None: it is not known.

    Returns:
        what makes them, from here on without other ranks: it gives the page's path, or None on ranks without
        rows and where the page could not be made, which is one warning.
    """
    chosen: dict[str, list[int]] = {}
    if kept:
        chosen = scoring.context.broadcast_object(_choose(scoring, outcome))
    asked = [row for rows in chosen.values() for row in rows]
    hands = {shown: keeper.gather(asked, scoring.context) for shown, keeper in kept.items()}

    def make() -> Path | None:
        if outcome is None:
            return None
        folder, path = recorder.run_dir / "val", None
        samples: dict[str, list[Sample]] = {}
        with optional("the validation's page"):
            samples = {
                kind: [_sample(scoring, outcome, hands, row) for row in rows] for kind, rows in chosen.items()
            }
            page = _validation(scoring, outcome, samples, facts, curves).page()
            page.keep(folder / KEPT)
            page.write(folder / REPORT)
            path = folder / REPORT
        with optional("the validation's pictures"):
            for kind, own in samples.items():
                tiles = [
                    captioned(grid(list(s.pictures.values()), 3), [s.name, s.text]) for s in own if s.pictures
                ]
                if tiles:
                    recorder.picture(step, f"Val/{kind}", grid(tiles, columns=1))
        return path

    return make


def _choose(scoring: Scoring, outcome: Outcome | None) -> dict[str, list[int]]:
    """Samples to look at, on rank 0: those that have a label, by MPJPE with depth."""
    if outcome is None:
        return {}
    rows = outcome.results["rgbd"].rows
    assert rows is not None
    usable = np.flatnonzero(rows.usable)
    sequences, numbers = scoring.dataset.frames.names()
    most = scoring.config.validation.pictures
    chosen = choose(rows.mpjpe_mm[usable], sequences[usable].tolist(), numbers[usable].tolist(), most)
    return {kind: usable[own].tolist() for kind, own in chosen.items()}


def _sample(
    scoring: Scoring, outcome: Outcome, kept: Mapping[Shown, Mapping[int, NDArray[np.float32]]], row: int
) -> Sample:
    """One sample with what was predicted of it."""
    hands, said = {}, []
    for shown, result in outcome.results.items():
        rows, name = result.rows, MODALITY_NAMES[shown]
        assert rows is not None
        hands[name] = Hand(rows.pred_joints_cam_m[row], meshes_of(kept[shown][row][None], scoring.hand)[0])
        said.append(f"{name} {rows.mpjpe_mm[row]:.3f} mm, aligned {rows.pa_mpjpe_mm[row]:.3f} mm")
    sample = Sample(row, outcome.frames[row], "; ".join(said) + ".", hands)
    return with_picture(sample, scoring.dataset, scoring.hand)


def with_picture(sample: Sample, dataset: HO3DDataset, hand: ManoLayer) -> Sample:
    """A sample with its crop and its truth; where the picture cannot be read, its text says so."""
    try:
        item = dataset[sample.index]
    except (UTNetError, OSError) as error:
        return replace(sample, text=f"{sample.text} No picture: {error}")
    hands = {"truth": _truth(dataset, sample.index, item, hand), **sample.hands}
    crop = Crop(
        picture_from_network(np.asarray(item.rgb)),
        np.asarray(item.depth)[0],
        np.asarray(item.depth_valid)[0] > 0,
        np.asarray(item.intrinsics_crop_px, np.float64),
        np.asarray(item.rot_crop_from_img, np.float64),
    )
    return replace(sample, hands=hands, crop=crop, faces=hand.faces.cpu().numpy())


def _truth(dataset: HO3DDataset, row: int, item: HandSample, hand: ManoLayer) -> Hand:
    """What a sample is labelled with, image camera; the published mesh where there is one."""
    to_image = torch.as_tensor(item.rot_crop_from_img)
    joints = (torch.as_tensor(item.joints_cam_m) @ to_image).numpy()
    index = np.array([row])
    if (published := dataset.frames.truth_vertices(index)) is not None:
        return Hand(joints, published[0])
    if not bool(item.mano_valid):
        return Hand(joints)
    names = ("global_orient", "hand_pose", "betas", "translation_m")
    parts = {name: torch.as_tensor(getattr(item, name))[None].to(hand.faces.device) for name in names}
    return Hand(joints, (hand(**parts).vertices_m[0].cpu() @ to_image).numpy())


def _validation(
    scoring: Scoring,
    outcome: Outcome,
    samples: Mapping[str, Sequence[Sample]],
    facts: Mapping[str, str],
    curves: Path | None,
) -> Validation:
    """What the page is made of."""
    judge, context, config = outcome.results["rgbd"], scoring.context, scoring.config
    box = scoring.dataset.frames.labels().box_px
    about = {
        **facts,
        "Data": str(config.dataset.root_dir),
        "Split": scoring.dataset.frames.split_line,
        "Evaluated": f"{judge.num_samples} samples from all {context.world} {context.devices_label}",
        "Network": "{}, crops of {} x {} pixels".format(config.model.preset, *config.model.image_size),
        "Hand model": "the procedural stand-in" if scoring.hand.is_standin else "MANO",
        "Written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    means = {}
    for shown, result in outcome.results.items():
        columns = {title: result.columns[name] for name, title in _MEANS.items() if name in result.columns}
        means[MODALITY_NAMES[shown]] = {"loss": result.loss, **columns}
    return Validation(
        title=f"Validation of {config.name}",
        facts=list(about.items()),
        scored=outcome.scored,
        total=len(outcome.frames),
        means=means,
        baselines=outcome.baselines.rows,
        official=outcome.official,
        boxes=outcome.boxes_lines(),
        box_side_px=(box[:, 2:] - box[:, :2]).max(axis=1),
        scalars=[values for _, values in read_scalars(curves)] if curves and curves.is_file() else [],
        chosen=samples,
    )
