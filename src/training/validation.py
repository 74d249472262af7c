"""What becomes of a validation's result: the log lines, and whether it is the best so far."""

from __future__ import annotations

from src.config import ValidationConfig
from src.errors import ConfigError, TrainingError
from src.evaluation.evaluator import CheckedResult, report_lines
from src.runtime.distributed import DistContext
from src.runtime.log import get_logger
from src.training.checkpoint import Progress

_log = get_logger("validation")


def require_selectable(config: ValidationConfig) -> None:
    """Refuse to train with the official split as judge, unless that is asked for by name.

    Raises:
        ConfigError: validation.split is evaluation and validation.select_on_evaluation is false.
    """
    if config.split == "evaluation" and not config.select_on_evaluation:
        raise ConfigError(
            "validation.split=evaluation would choose best.pt by its score on HO3D's official split, which "
            "would then measure the choice too. Train with validation.split=val and score the end with "
            "--evaluate CKPT validation.split=evaluation; or, to do it all the same, set "
            "validation.select_on_evaluation=true"
        )


def is_best(result: CheckedResult, position: Progress, config: ValidationConfig) -> bool:
    """Remember the result if it is the best; True if it is.

    Raises:
        TrainingError: predictions are not finite and validation.on_nonfinite is stop; on every rank, because
            the result is the same on every rank.
    """
    if result.is_finite and result.mpjpe_mm < position.best_mpjpe_mm:
        position.best_mpjpe_mm, position.best_epoch = result.mpjpe_mm, position.epoch
        return True
    if result.nonfinite_count and config.on_nonfinite == "stop":
        raise TrainingError(
            f"validation of epoch {position.epoch}: {result.nonfinite_count} predictions are not finite "
            f"(samples {list(result.nonfinite_indices)}). Resume from an earlier checkpoint with a lower "
            "optimizer.lr, or set validation.on_nonfinite=continue"
        )
    return False


def report(result: CheckedResult, modality: str, context: DistContext) -> None:
    """Log a validation.

    The lines of the contract for the main score, one line for the score without depth.
    """
    if modality == "rgbd":
        for line in report_lines(result, context.world, context.devices_label):
            _log.info(line)
        return
    _log.info(
        f"  Without depth: Loss: {result.loss:.3f}, MPJPE: {result.mpjpe_mm:.3f} mm, "
        f"PA-MPJPE: {result.pa_mpjpe_mm:.3f} mm ({result.num_samples} samples)"
    )
