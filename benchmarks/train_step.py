"""One training step, whole and by part, against the same step built from well-kept libraries.

The reference is this network with its hand layer replaced by smplx's MANO layer, its graph by a dense
adjacency that is normalised in every call, its transformer by timm's blocks and its optimiser by
torch.optim.AdamW as it comes. Both start from the same weights and give the same features and the same loss,
which is checked before anything is timed. Parts are timed alone, forward and backward, on the inputs
that they have in a step.

    python -m benchmarks train_step
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import smplx
import timm
import torch
from torch import Tensor, nn

from benchmarks.common import Row, interleaved, report
from benchmarks.scene import Scene, alone, device, scene, sync
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer, ManoOutput
from src.models.gcn import MeshGraph
from src.models.utnet import UTNet
from src.models.vertex_sampling import sample_points
from src.models.vit import ViT
from src.runtime.machine import has_bf16
from src.schema import HandBatch
from src.training.step import TrainStep

PRESET, BATCH = "small", 4
ROUNDS = {"cpu": 7, "cuda": 50}
EMULATED_ROUNDS = 1
"""In bf16 on a device that has none a step takes half a minute."""
SAME_LOSS = 1e-3
"""Relative difference of the losses of both steps, float32, that rounding explains."""


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

    def _pose(self, root: Tensor, pose: Tensor, betas: Tensor, translation: Tensor) -> ManoOutput:
        out = self.layer(betas=betas, global_orient=root[:, None], hand_pose=pose, transl=translation)
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


def _of_libraries(scene: Scene, where: torch.device) -> TrainStep:
    """The step with its parts exchanged."""
    step = scene.trainer(alone(where))
    model = step.model
    assert isinstance(model, UTNet)
    hand = SmplxHand(scene.config.mano.model_path, model.decoder.mano).to(where)
    model.decoder.mano = step.loss.mano = hand
    assert model.refiner is not None
    model.refiner.graph = DenseGraph(model.refiner.graph)
    first = model.vit.blocks[0]
    width, heads = first.norm1.normalized_shape[0], first.attn.heads
    drop_path = scene.config.model.drop_path
    model.vit = TimmViT(model.vit, width, heads, drop_path).to(where)  # type: ignore[assignment]
    step.optimizer = _Plain(model, scene)  # type: ignore[assignment]
    return step


class _Plain:
    """torch.optim.AdamW as it comes, behind `Optimizer`'s two calls."""

    def __init__(self, model: nn.Module, scene: Scene) -> None:
        self._adamw = torch.optim.AdamW(model.parameters(), weight_decay=scene.config.optimizer.weight_decay)

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


def _features_apart(ours: TrainStep, theirs: TrainStep, where: torch.device) -> float:
    """Relative distance of what both transformers, in evaluation mode, make of the same tokens."""
    assert isinstance(ours.model, UTNet)
    assert isinstance(theirs.model, UTNet)
    dtype = ours.model.backbone_dtype
    low = dtype != torch.float32
    width = ours.model.vit.norm.normalized_shape[0]
    tokens = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0)).to(where)
    with torch.no_grad(), torch.autocast(where.type, dtype=dtype if low else None, enabled=low):
        a, b = ours.model.vit(tokens).float(), theirs.model.vit(tokens).float()
    return float((a - b).norm() / b.norm())


def _parts(step: TrainStep, batch: HandBatch) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of each part, on the inputs of a real step."""
    model = step.model
    assert isinstance(model, UTNet)
    refiner = model.refiner
    assert refiner is not None
    named = {
        "tokens and stem": model.embed,
        "transformer": model.vit,
        "feature maps": model.pyramid,
        "read-out": model.readout,
        "coarse head": model.coarse,
        "refinement": refiner,
        "hand model (one of two)": model.decoder,
    }
    seen: dict[str, tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args))
        for name, module in named.items()
    ]
    prediction = model(batch)
    for hook in hooks:
        hook.remove()
    backbone = {"tokens and stem", "transformer", "feature maps"}
    parts = {
        name: _pass(module, seen[name], model.backbone_dtype if name in backbone else torch.float32)
        for name, module in named.items()
    }
    maps = seen["refinement"][2]
    assert maps.features[0].requires_grad
    points = torch.cat([prediction.coarse.vertices_cam_m, prediction.coarse.joints_cam_m], dim=1)
    levels = _levels(model, seen["feature maps"])
    parts["sampling under vertices"] = _pass(
        lambda *m: sample_points(refiner.project(m), points.detach(), batch), levels
    )
    parts["loss"] = _pass(lambda p: step.loss(p, batch).total, (prediction,))

    def optimise() -> None:
        step.optimizer.step(1e-6)
        if step.ema is not None:
            step.ema.update()

    parts["optimiser and average"] = optimise
    return parts


def _levels(model: UTNet, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The feature maps of a step, float32."""
    return tuple(level.float() for level in model.pyramid(*(_leaves(a) for a in args)))


def _pass(
    part: Callable[..., object], args: tuple[Any, ...], dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """Forward and backward pass of `part` with gradients down to its inputs."""

    def run() -> None:
        low = dtype != torch.float32
        fresh = tuple(_leaves(argument) for argument in args)
        kind = next(t for t in _tensors(fresh)).device.type
        with torch.autocast(kind, dtype=dtype if low else None, enabled=low):
            out = part(*fresh)
        total = sum(t.float().sum() for t in _tensors(out) if t.requires_grad)
        assert isinstance(total, Tensor)
        total.backward()

    return run


def _leaves(value: Any) -> Any:
    """Detached copies of what the network computed, requiring a gradient; labels and pictures as they are."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_() if value.requires_grad else value
    if isinstance(value, tuple):
        return tuple(_leaves(v) for v in value)
    if isinstance(value, HandBatch) or not dataclasses.is_dataclass(value):
        return value
    assert not isinstance(value, type)
    return dataclasses.replace(
        value, **{f.name: _leaves(getattr(value, f.name)) for f in dataclasses.fields(value)}
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a tuple or a dataclass."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _tensors(getattr(value, f.name))


def _timed(where: torch.device, parts: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns; a GPU is waited for."""

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        def both() -> None:
            run()
            sync(where)

        return both

    return interleaved({name: waiting(run) for name, run in parts.items()}, rounds)


def _rows(scene: Scene, where: torch.device) -> list[Row]:
    """Both steps and the parts, in one arithmetic."""
    batch = scene.batch(BATCH, where)
    ours, theirs = scene.trainer(alone(where)), _of_libraries(scene, where)
    precision = str(ours.model.backbone_dtype).removeprefix("torch.")
    a, b = _first_loss(ours, batch), _first_loss(theirs, batch)
    limit = SAME_LOSS if precision == "float32" else 0.02
    assert abs(a - b) < limit * abs(b), f"the two steps differ: loss {a} and {b}"
    apart = _features_apart(ours, theirs, where)
    assert apart < limit, f"the two transformers differ: features {apart:.1%} apart"
    emulated = precision != "float32" and not has_bf16(where)
    rounds = EMULATED_ROUNDS if emulated else ROUNDS[where.type]
    both = {"ours": lambda: ours([batch]), "libraries": lambda: theirs([batch])}
    seconds = _timed(where, both, rounds)
    step, reference = seconds["ours"], seconds["libraries"]
    what = f"{PRESET}, batch {BATCH}, {precision}{' (emulated)' if emulated else ''}"
    rows = [
        Row(
            f"{what}, step: {step * 1e3:.1f}",
            f"smplx, timm, dense graph, plain AdamW: {reference * 1e3:.1f}",
            reference / step,
            "ms",
        )
    ]
    if emulated:
        return rows
    parts = _timed(where, _parts(ours, batch), rounds)
    rows += [
        Row(
            f"{what}, {name}: {value * 1e3:.1f} ({value / step:.0%})",
            f"step: {step * 1e3:.1f}",
            step / value,
            "ms",
        )
        for name, value in parts.items()
    ]
    return rows


def main() -> None:
    """Time both steps in float32, and in bfloat16 too."""
    torch.set_num_threads(1)
    where = device()
    rows = []
    for precision in ("fp32", "bf16"):
        began = time.perf_counter()
        with scene(
            f"model.preset={PRESET}", f"training.precision={precision}", sequences=1, frames=8
        ) as made:
            rows += _rows(made, where)
        print(f"train_step, {precision}: {time.perf_counter() - began:.0f} s")
    report("train_step", rows)


if __name__ == "__main__":
    main()
