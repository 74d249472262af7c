"""What each part of UTNet brings on motions that it has never seen, for equal time of training.

    python -m benchmarks.ablation [--arms "no depth" ...] [--samples 36000] [--seed 0] [--data DIR]

Prints RGB-D and RGB-only scores on the held-out motions and their ratios to the full network's. Without
--data, the data of `make learn` are written if they are not there. "no depth" computes its depth branch all
the same. How arms are trained: `benchmarks/equal_time.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.equal_time import Arm, compare
from src.runtime.command_line import exit_status

ARMS = {
    "full": Arm(),
    "no depth": Arm(("dataset.p_drop_depth=1",)),
    "no modality sampling": Arm(("dataset.p_drop_depth=0",)),
    "refinement": Arm(("model.refine_iterations=1",)),
    "no second look": Arm(("model.second_look=false",)),
    "AdamW instead of Muon, rate 8e-4": Arm(("optimizer.name=adamw", "optimizer.lr=8e-4")),
    "no canonical joints in the loss": Arm(("loss.joints_canonical=0",)),
    "no heat maps in the loss": Arm(("loss.heatmap=0",)),
    "no average of the weights": Arm(("training.ema_decay=0",)),
}


def main(argv: Sequence[str] = ()) -> None:
    """Train the arms and compare them."""
    compare("ablation", __doc__, ARMS, argv)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
