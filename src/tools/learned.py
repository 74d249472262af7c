"""What a run has learned on motions it has never seen, beside what predictors that see nothing score.

    python -m src.tools.learned --run RUN --held-out EVALUATION --random EVALUATION [--other EVALUATION]

RUN is the folder of the training, the others are folders of `train.py --evaluate` of its checkpoints: on the
held-out motions, on random frames of the whole list, and on held-out motions of another data set. Prints a
table, says where the page of the held-out motions is, and ends with the line RESULT, and one more for the
other data set. Exit status 2 with one line for input that does not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.build import build_dataset
from src.config import RunConfig
from src.config_file import load_config
from src.errors import DataError
from src.evaluation.baselines.scores import NAMES
from src.evaluation.evaluator import FILE_ENDS, MODALITY_NAMES, read_per_sample
from src.evaluation.scored import sequences_of
from src.hand.mano import ManoLayer
from src.pages.files import REPORT
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.schema import Shown
from src.training.recorder import read_scalars
from src.training.run_folder import META, facts_of

_METRICS = ("mpjpe_mm", "pa_mpjpe_mm")
_COARSE = ("coarse_mpjpe_mm", "coarse_pa_mpjpe_mm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, or 2 with one line."""
    parser = make_parser("python -m src.tools.learned", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder of the training")
    parser.add_argument("--held-out", type=Path, required=True, help="run folder of --evaluate on val")
    parser.add_argument("--random", type=Path, required=True, help="run folder of --evaluate by frame")
    parser.add_argument("--other", type=Path, help="run folder of --evaluate on another data set")
    arguments = parser.parse_args(argv)
    log.configure()
    return exit_status(
        lambda: summarise(arguments.run, arguments.held_out, arguments.random, arguments.other)
    )


def summarise(run: Path, held_out: Path, random: Path, other: Path | None) -> None:
    """Print the table and RESULT, also of another data set."""
    config = load_config(run / "config.yaml")
    for folder in filter(None, (held_out, random, other)):
        _require_weights_of(run, folder)
    dataset = build_dataset(config, "val", ManoLayer.from_file(config.mano.model_path), show_progress=False)
    rows = {shown: _rows(held_out, shown) for shown in FILE_ENDS}
    split, count = rows["rgbd"]["split_hash"], len(rows["rgbd"]["frame"])
    if (str(split), count) != (dataset.frames.split.id, len(dataset)):
        raise DataError(
            f"{held_out}: its split is {split} with {count:,} frames, the run's is {dataset.frames.split.id} "
            f"with {len(dataset):,}. Evaluate the run's own split."
        )
    base, away = _baselines(held_out), None if other is None else _elsewhere(other, config)
    seen = {
        shown: _trained_on(_rows(random, shown), set(rows[shown]["frame"].tolist())) for shown in FILE_ENDS
    }
    if (minutes := _last_scalars(run).get("minutes")) is None:
        raise DataError(f"{run / 'scalars.jsonl'}: no scalars of a run. Give the folder of a training.")
    print(dataset.frames.describe())
    print(f"{'mm':<44}{'MPJPE':>10}{'PA-MPJPE':>10}")
    for shown, name in MODALITY_NAMES.items():
        _line(f"{name}, held-out motions", *_means(rows[shown]))
        if _COARSE[0] in rows[shown]:
            _line(f"{name}, before refinement", *(float(np.nanmean(rows[shown][m])) for m in _COARSE))
    for shown, name in MODALITY_NAMES.items():
        _line(f"{name}, random frames of training motions", *_means(seen[shown]))
    _line("zero pose", base["zero_mpjpe_mm"], base["zero_pa_mm"])
    _line("mean pose", base["mean_pose_mpjpe_mm"], base["mean_pose_pa_mm"])
    _line("nearest training pose (knows the truth)", float("nan"), base["nearest_pose_pa_mm"])
    if (page := held_out / "val" / REPORT).is_file():
        print(f"Page of the held-out motions: {page}")
    print(_result(f"split={config.split.by}", rows, base, minutes))
    if away is not None:
        print(_result(*away, minutes))


def _require_weights_of(run: Path, folder: Path) -> None:
    """Scores of another run's weights would be printed as this one's.

    Raises:
        DataError: an evaluation is of a checkpoint in another run folder, or no evaluation.
    """
    scored = facts_of(folder).get("evaluated")
    if not isinstance(scored, str):
        raise DataError(f"{folder}: no folder of --evaluate: its {META} names no checkpoint. Give one.")
    if Path(scored).absolute().parent.parent.name != run.resolve().name:
        raise DataError(f"{folder}: it scored {scored}, want a checkpoint of {run}. Evaluate the run's own.")


def _elsewhere(folder: Path, config: RunConfig) -> tuple[str, dict[Shown, dict[str, Any]], dict[str, float]]:
    """Which data and split, rows and baselines of another data set than the run's."""
    scored = load_config(folder / "config.yaml")
    root = scored.dataset.root_dir
    if root == config.dataset.root_dir:
        raise DataError(f"--other {folder}: it is of {root}, the data set of the training")
    where = f"data={root.name} split={scored.split.by}"
    return where, {shown: _rows(folder, shown) for shown in FILE_ENDS}, _baselines(folder)


def _result(where: str, rows: dict[Shown, dict[str, Any]], base: dict[str, float], minutes: float) -> str:
    """The line for scripts, which says first what was scored."""
    scores = [
        f"{shown}_{name}={value:.3f}"
        for shown in FILE_ENDS
        for name, value in zip(("mpjpe", "pa"), _means(rows[shown]), strict=True)
    ]
    return (
        f"RESULT {where} {' '.join(scores)} zero_pa={base['zero_pa_mm']:.3f} "
        f"mean_pose_mpjpe={base['mean_pose_mpjpe_mm']:.3f} mean_pose_pa={base['mean_pose_pa_mm']:.3f} "
        f"nearest_pa={base['nearest_pose_pa_mm']:.3f} minutes={minutes:.1f}"
    )


def _means(rows: dict[str, Any]) -> list[float]:
    """MPJPE and PA-MPJPE of some rows."""
    return [float(rows[metric].mean()) for metric in _METRICS]


def _line(what: str, mpjpe: float, pa: float) -> None:
    """One row of the table."""
    print(f"{what:<44}{'' if np.isnan(mpjpe) else format(mpjpe, '.3f'):>10}{pa:>10.3f}")


def _rows(folder: Path, shown: Shown) -> dict[str, Any]:
    """Columns of a per-sample file."""
    path = folder / "val" / f"per_sample{FILE_ENDS[shown]}.npz"
    rows = read_per_sample(path)
    if missing := set(_METRICS) - rows.keys():
        raise DataError(f"{path} has no {min(missing)}. Give a folder of --evaluate on val.")
    for metric in _METRICS:
        if (bad := np.flatnonzero(~np.isfinite(rows[metric]))).size:
            frame = rows["frame"][bad[0]]
            raise DataError(
                f"{path}: {metric} of {bad.size} frames is not finite (first: {frame}): no score."
            )
    return rows


def _trained_on(rows: dict[str, Any], held_out: set[str]) -> dict[str, Any]:
    """Rows of sequences that are not held out."""
    keep = ~np.isin(sequences_of(rows["frame"].tolist()), sequences_of(held_out))
    if not keep.any():
        raise DataError("--random: no frame of a training motion. Evaluate with split.by=frame.")
    return {name: rows[name][keep] for name in _METRICS}


def _last_scalars(folder: Path) -> dict[str, float]:
    """The last value of each scalar of a run, by name."""
    last: dict[str, float] = {}
    for _, values in read_scalars(folder / "scalars.jsonl"):
        last |= {name: value for name, value in values.items() if value is not None}
    return last


def _baselines(folder: Path) -> dict[str, float]:
    """Scores of the predictors that see nothing, by name."""
    last = _last_scalars(folder)
    if missing := [name for name in NAMES if f"Val/baseline/{name}" not in last]:
        raise DataError(f"{folder / 'scalars.jsonl'}: no {', '.join(missing)}. Give a folder of --evaluate.")
    return {name: last[f"Val/baseline/{name}"] for name in NAMES}


if __name__ == "__main__":
    sys.exit(main())
