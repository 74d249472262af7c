"""Keys that are no more: what became of each, and which kept values a checkpoint may still have."""

from __future__ import annotations

from typing import Any, NamedTuple

TRAINING_ONLY = "training only"
"""As `was`: no score of a checkpoint depends on the key, so any kept value is passed over."""


class Replaced(NamedTuple):
    """What became of a key."""

    was: Any
    """The value that every run has now, as YAML has it. A checkpoint that keeps another one is refused."""
    sentence: str
    """For who still writes the key."""
    by: str | None = None
    """The key that takes its value in a checkpoint's configuration instead."""


REPLACED = {
    "dataset.max_unreadable": Replaced(
        TRAINING_ONLY,
        "is replaced by dataset.max_unusable (a count, or a share such as 0.1%), which counts every frame "
        "that cannot be used, not unreadable annotations alone",
        by="dataset.max_unusable",
    ),
    "dataset.index_workers": Replaced(
        TRAINING_ONLY, "is gone: the index and the crop cache are made by one process a core, at most eight"
    ),
    "split.seed": Replaced(
        42, "is gone: every run draws val with the seed 42, so that all score the same frames"
    ),
    "augmentation.view_deg": Replaced(
        TRAINING_ONLY,
        "is gone: with turned scenes a run scored to a hundredth of a millimetre what it did without",
    ),
    "loss.root": Replaced(0.15, "is gone: the wrist's depth always counts 0.15"),
    "augmentation.view_from_epoch": Replaced(TRAINING_ONLY, "is gone, with augmentation.view_deg"),
    "augmentation.shift": Replaced(TRAINING_ONLY, "is gone: crops move by up to a fifth of the box's side"),
    "augmentation.scale": Replaced(
        TRAINING_ONLY, "is gone: the side of the box is drawn from 0.7 to 1.5 of the labelled one"
    ),
    "augmentation.p_depth_holes": Replaced(
        TRAINING_ONLY, "is gone: every second sample has holes in its depth"
    ),
    "augmentation.depth_noise_m": Replaced(TRAINING_ONLY, "is gone: the noise on depth is 2 mm"),
    "augmentation.calm_strength": Replaced(TRAINING_ONLY, "is gone, with augmentation.calm_share"),
    "augmentation.calm_share": Replaced(
        TRAINING_ONLY, "is gone: with weaker augmentation in the last epochs a run scored as without"
    ),
    # Weights of another stem do not fit into the network, which says so.
    "model.stem": Replaced(
        TRAINING_ONLY, "is gone: the preset decides (convolutions in tiny, a patch projection in the others)"
    ),
    "model.upsampling": Replaced("conv", "is gone: feature maps are upsampled by convolutions"),
    "model.joints": Replaced("hand", "is gone: the joints are those of the hand model"),
    "model.depth_residual": Replaced(True, "is gone: the refinement always sees the depth residual"),
    "model.activation_checkpointing": Replaced(TRAINING_ONLY, "is gone: the preset decides (on in huge)"),
    "loss.votes_3d": Replaced(TRAINING_ONLY, "is gone: loss.joints_3d weighs the voted joints too"),
    "loss.votes_2d": Replaced(TRAINING_ONLY, "is gone: loss.joints_2d weighs the voted places too"),
    "loss.betas": Replaced(TRAINING_ONLY, "is gone: the weight of shape is 0.02"),
    "loss.prior": Replaced(TRAINING_ONLY, "is gone: the weight of the prior is 0.005"),
    "loss.coarse": Replaced(TRAINING_ONLY, "is gone: terms of the hand before refinement count half"),
    "model.compile": Replaced(TRAINING_ONLY, "is gone: compiled, a step took longer"),
    "training.keep_every_epochs": Replaced(TRAINING_ONLY, "is gone: a run keeps last.pt and best.pt"),
    "training.keep_last_epochs": Replaced(TRAINING_ONLY, "is gone: a run keeps last.pt and best.pt"),
    "validation.on_nonfinite": Replaced(
        TRAINING_ONLY, "is gone: training stops at a prediction that is not finite"
    ),
    "validation.select_on_evaluation": Replaced(
        TRAINING_ONLY, "is gone: best.pt is never chosen on HO3D's official split, which --evaluate scores"
    ),
    "logging.tensorboard": Replaced(TRAINING_ONLY, "is gone: TensorBoard files are always written"),
    "logging.doctor": Replaced(TRAINING_ONLY, "is gone: the doctor always looks, and changes nothing"),
    "validation.rgb_only": Replaced(TRAINING_ONLY, "is gone: RGB-only is always scored too"),
    "validation.timeout_s": Replaced(TRAINING_ONLY, "is gone: runtime.timeout_s bounds the collection too"),
    "optimizer.eps": Replaced(TRAINING_ONLY, "is gone: AdamW adds 1e-8 to its denominator"),
    "scheduler.final_lr_ratio": Replaced(TRAINING_ONLY, "is gone: the rate ends at a hundredth of its peak"),
}
