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
    "augmentation.view_deg": Replaced(
        TRAINING_ONLY,
        "is gone: with turned scenes a run scored to a hundredth of a millimetre what it did without",
    ),
    "augmentation.view_from_epoch": Replaced(TRAINING_ONLY, "is gone, with augmentation.view_deg"),
    # Weights of another stem do not fit into the network, which says so.
    "model.stem": Replaced(
        TRAINING_ONLY, "is gone: the preset decides (convolutions in tiny, a patch projection in the others)"
    ),
    "model.upsampling": Replaced("conv", "is gone: feature maps are upsampled by convolutions"),
    "model.joints": Replaced("hand", "is gone: the joints are those of the hand model"),
    "model.depth_residual": Replaced(True, "is gone: the refinement always sees the depth residual"),
    "model.compile": Replaced(TRAINING_ONLY, "is gone: compiled, a step took longer"),
    "validation.rgb_only": Replaced(TRAINING_ONLY, "is gone: RGB-only is always scored too"),
    "validation.timeout_s": Replaced(TRAINING_ONLY, "is gone: runtime.timeout_s bounds the collection too"),
    "training.keep_last_epochs": Replaced(TRAINING_ONLY, "is gone: the three newest epoch_<k>.pt are kept"),
    "optimizer.eps": Replaced(TRAINING_ONLY, "is gone: AdamW adds 1e-8 to its denominator"),
    "scheduler.final_lr_ratio": Replaced(TRAINING_ONLY, "is gone: the rate ends at a hundredth of its peak"),
}
