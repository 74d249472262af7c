"""One training step against the same step built from well-kept libraries.

The reference is this network with its hand layer replaced by smplx's MANO layer, its graph by a dense
adjacency that is normalised in every call, its transformer by timm's blocks and its optimiser by
torch.optim.AdamW as it comes. Both start from the same weights and give the same loss, which is
checked before anything is timed.

How threads wait for each other (`src/runtime/__init__.py`), alone and beside busy processes, against torch as
it comes: each measurement is a process of its own, because libgomp reads its surroundings when torch is
loaded.

    python -m benchmarks train_step
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import smplx
import timm
import torch
from torch import Tensor, nn

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from dataloader.synthetic.hand.standin import build_standin, write_standin
from dataloader.synthetic.writer import Parameters, write_tree
from src.config import RunConfig
from src.config_file import load_config
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer, ManoOutput
from src.losses.loss import HandLoss
from src.models.gcn import MeshGraph
from src.models.utnet import UTNet
from src.models.vit import ViT
from src.runtime.machine import has_bf16, worker_count
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch
from src.training.setup import backbone_dtype
from src.training.step import TrainStep

CONFIG = Path("config/config.yaml")
PRESET, BATCH = "small", 4
ROUNDS = {"cpu": 7, "cuda": 50}
EMULATED_ROUNDS = 1
"""In bf16 on a device that has none a step takes half a minute."""
SAME_LOSS = 1e-3
"""Relative difference of the losses of both steps, float32, that rounding explains."""
WAITING_ROUNDS = 3
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WORK = """
import time
import torch
torch.set_num_threads({threads})
tokens, weights = torch.randn(5312, 192), torch.randn(192, 192)
def some():
    began = time.perf_counter()
    for _ in range(30):
        torch.nn.functional.gelu(tokens @ weights)
    return time.perf_counter() - began
some()
print(sorted(some() for _ in range(5))[2])
"""
"""Small products and functions in turns, as a training step of tiny has them."""


class SmplxHand(ManoLayer):
    """Our interface around smplx's layer, which takes matrices too."""

    def __init__(self, path: Path, like: ManoLayer) -> None:
        nn.Module.__init__(self)
        for name, buffer in like.named_buffers():
            self.register_buffer(name, buffer, persistent=False)
        self.fingerprint, self.is_standin = like.fingerprint, like.is_standin
        self.layer = smplx.MANOLayer(str(path), is_rhand=True, flat_hand_mean=True)
        for parameter in self.layer.parameters():
            parameter.requires_grad_(False)

    def forward(
        self, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, translation_m: Tensor
    ) -> ManoOutput:
        """As `ManoLayer.forward`."""
        root = global_orient[:, None]
        out = self.layer(betas=betas, global_orient=root, hand_pose=hand_pose, transl=translation_m)
        joints = torch.cat([out.joints, out.vertices[:, self.tip_vertices]], dim=1)
        return ManoOutput(out.vertices, joints[:, permutation(HO3D21, OPENPOSE21)])


class DenseGraph(nn.Module):
    """D^-1/2 (A + I) D^-1/2, dense, made in every call."""

    def __init__(self, graph: MeshGraph) -> None:
        super().__init__()
        linked = (graph.matrix > 0).float()
        self.register_buffer("adjacency", linked - torch.eye(len(linked), device=linked.device))

    def forward(self, nodes: Tensor) -> Tensor:
        """(V, B, C) -> (V, B, C)."""
        whole = self.adjacency + torch.eye(len(self.adjacency), device=nodes.device)
        scale = whole.sum(dim=1).rsqrt()
        return torch.einsum("uv,vbc->ubc", scale[:, None] * whole * scale, nodes)


class TimmViT(nn.Module):
    """timm's blocks and norm on our sequence of tokens, with our weights."""

    def __init__(self, vit: ViT, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        made = timm.models.VisionTransformer(
            embed_dim=width, depth=len(vit.blocks), num_heads=heads, drop_path_rate=drop_path
        )
        self.blocks, self.norm = made.blocks, made.norm
        self.load_state_dict(vit.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.norm(self.blocks(tokens))


def _ours(config: RunConfig, where: torch.device) -> TrainStep:
    """The step as `train.py` takes it."""
    torch.manual_seed(config.seed)
    hand = ManoLayer.from_file(config.mano.model_path).to(where)
    model = UTNet(config.model, hand).to(where)
    model.backbone_dtype = backbone_dtype(config, where)
    loss = HandLoss(config.loss, hand).to(where)
    return TrainStep(model, loss, config, DistContext(0, 1, 0, where, None), total_steps=10_000)


def _of_libraries(config: RunConfig, where: torch.device) -> TrainStep:
    """The step with its parts exchanged."""
    step = _ours(config, where)
    model = step.model
    assert isinstance(model, UTNet)
    hand = SmplxHand(config.mano.model_path, model.decoder.mano).to(where)
    model.decoder.mano = step.loss.mano = hand
    assert model.refiner is not None
    model.refiner.graph = DenseGraph(model.refiner.graph)
    first = model.vit.blocks[0]
    width, heads = first.norm1.normalized_shape[0], first.attn.heads
    drop_path = config.model.drop_path
    model.vit = TimmViT(model.vit, width, heads, drop_path).to(where)  # type: ignore[assignment]
    step.optimizer = _Plain(model, config.optimizer.weight_decay)  # type: ignore[assignment]
    return step


class _Plain:
    """torch.optim.AdamW as it comes, behind `Optimizer`'s two calls."""

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self._adamw = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)

    def step(self, rate: float, alive: Tensor | None = None) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    def zero_grad(self) -> None:
        self._adamw.zero_grad()


def _first_loss(step: TrainStep, batch: HandBatch) -> float:
    """Before any step, and with no branch left out."""
    step.model.eval()
    with torch.no_grad():
        return float(step.loss(step.model(batch), batch).total)


def _row(config: RunConfig, where: torch.device) -> Row:
    """Both steps in one arithmetic."""
    data = build_dataset(config, "train", show_progress=False)
    batch = prepare(data.batch([SampleKey(i) for i in range(BATCH)]).pack(shared=False).unpack(where))
    ours, theirs = _ours(config, where), _of_libraries(config, where)
    precision = str(ours.model.backbone_dtype).removeprefix("torch.")
    a, b = _first_loss(ours, batch), _first_loss(theirs, batch)
    limit = SAME_LOSS if precision == "float32" else 0.02
    assert abs(a - b) < limit * abs(b), f"the two steps differ: loss {a} and {b}"
    emulated = precision != "float32" and not has_bf16(where)

    def waited(step: TrainStep) -> Callable[[], None]:
        def run() -> None:
            step([batch])
            if where.type == "cuda":
                torch.cuda.synchronize(where)

        return run

    both = {"ours": waited(ours), "libraries": waited(theirs)}
    seconds = interleaved(both, EMULATED_ROUNDS if emulated else ROUNDS[where.type])
    step, reference = seconds["ours"], seconds["libraries"]
    return Row(
        f"{PRESET}, batch {BATCH}, {precision}{' (emulated)' if emulated else ''}, step: {step * 1e3:.1f}",
        f"smplx, timm, dense graph, plain AdamW: {reference * 1e3:.1f}",
        reference / step,
        "ms",
    )


def _waiting() -> list[Row]:
    """Both ways of waiting, timed in turns."""
    threads = worker_count()
    rows = []
    for beside in (0, 1, 2):
        seconds: dict[str, list[float]] = {"import src\n": [], "": []}
        with _busy(beside):
            for _ in range(WAITING_ROUNDS):
                for first, own in seconds.items():
                    own.append(_seconds(first + WORK.format(threads=threads)))
        ours, plain = (1e3 * statistics.median(own) for own in seconds.values())
        what = f"{threads} threads, busy processes beside them {beside}: {ours:.1f}"
        rows.append(Row(what, f"torch as it comes: {plain:.1f}", plain / ours, "ms"))
    return rows


def _seconds(program: str) -> float:
    """What a program says that its work took."""
    surroundings = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", program], env=surroundings, stdout=subprocess.PIPE, timeout=300, check=True
    )
    return float(done.stdout)


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes of one thread at work, as many as asked for."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Time both steps in float32, and in bfloat16 too, on made-up frames; then how threads wait."""
    torch.set_num_threads(1)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, hand_file = Path(folder) / "HO3D", Path(folder) / "HAND.pkl"
        write_standin(hand_file)
        frames = Parameters(sequences=3, frames=8, evaluation_sequences=0, cameras=1)
        write_tree(root, frames, build_standin(), workers=2)
        shared = (
            f"dataset.root_dir={root}",
            "dataset.expected_train_frames=null",
            f"mano.model_path={hand_file}",
            f"model.preset={PRESET}",
        )
        for precision in ("fp32", "bf16"):
            began = time.perf_counter()
            rows.append(_row(load_config(CONFIG, (*shared, f"training.precision={precision}")), where))
            print(f"train_step, {precision}: {time.perf_counter() - began:.0f} s")
    report("train_step", [*rows, *_waiting()])


if __name__ == "__main__":
    main()
