"""The hand layer, forward and backward, against smplx's MANO on the same file and the same parameters.

smplx takes axis-angle and turns it into matrices inside; ours takes matrices. Both are timed from the form
that a network of theirs would give them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import smplx
import torch

from benchmarks.common import Row, interleaved, report
from dataloader.synthetic.hand.standin import write_standin
from src.geometry.rotation import rotation_from_aa
from src.hand.mano import ManoLayer


def main() -> None:
    """Time both at batch 4 and 64."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "MANO_RIGHT.pkl"
        write_standin(path)
        ours = ManoLayer.from_file(path)
        theirs = smplx.MANO(str(path), is_rhand=True, use_pca=False, flat_hand_mean=True)
    rows = []
    for batch in (4, 64):
        generator = torch.Generator().manual_seed(batch)
        pose = torch.randn(batch, 48, generator=generator) * 0.3
        betas, shift = torch.randn(batch, 10, generator=generator), torch.randn(batch, 3, generator=generator)
        matrices = rotation_from_aa(pose.view(batch, 16, 3))

        def run_ours(m: torch.Tensor = matrices, b: torch.Tensor = betas, t: torch.Tensor = shift) -> None:
            m, b = m.detach().requires_grad_(), b.detach().requires_grad_()
            hand = ours(m[:, 0], m[:, 1:], b, t)
            (hand.vertices_m.square().mean() + hand.joints_m.square().mean()).backward()

        def run_theirs(p: torch.Tensor = pose, b: torch.Tensor = betas, t: torch.Tensor = shift) -> None:
            p, b = p.detach().requires_grad_(), b.detach().requires_grad_()
            hand = theirs(betas=b, global_orient=p[:, :3], hand_pose=p[:, 3:], transl=t)
            (hand.vertices.square().mean() + hand.joints.square().mean()).backward()

        seconds = interleaved({"ours": run_ours, "theirs": run_theirs}, repeats=60 if batch == 4 else 30)
        rows.append(
            Row(
                f"ManoLayer forward + backward, batch {batch}: {seconds['ours'] * 1e3:.2f}",
                f"smplx.MANO: {seconds['theirs'] * 1e3:.2f}",
                seconds["theirs"] / seconds["ours"],
                "ms",
            )
        )
    report("hand_layer", rows)


if __name__ == "__main__":
    main()
