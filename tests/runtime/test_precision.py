"""Float32 is float32 everywhere but in the backbone, and there it is bf16 or float32, never TF32.

No GPU is needed: a mode rounds what a GPU's tensor cores would round, wherever the settings of the process
let them, and a second one looks for half precision behind the backbone.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dataloader.crop.prepare import prepare
from src.config import LossConfig, ModelConfig, RuntimeConfig
from src.geometry.rotation import rotation_from_aa
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.machine import configure_torch
from src.schema import HandBatch, HandEstimate, Prediction, RawBatch
from src.training.mesh_scorer import MeshScorer
from tests.models.scene import hand_model
from tests.rooms.sources import ENTRIES, ROOT, source_files
from tests.training.test_step import raw

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addbmm")
CONVOLUTIONS = ("convolution", "convolution_backward")


class TensorCores(TorchDispatchMode):
    """What TF32 does: inputs of products and convolutions keep ten bits of their mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, backends = func.overloadpacket.__name__, torch.backends
        where = backends.cuda.matmul if name in PRODUCTS else None
        where = backends.cudnn.conv if name in CONVOLUTIONS else where
        if where is not None and where.fp32_precision == "tf32":
            args = tree_map(lambda x: _ten_bits(x) if isinstance(x, Tensor) else x, args)
        return func(*args, **(kwargs or {}))


def _ten_bits(x: Tensor) -> Tensor:
    """Round to nearest even."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Those of a run, planted ones overridden; afterwards those of this process."""
    threads, level = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    deterministic, workspace = torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG"
    had = os.environ.get(workspace)
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    torch.backends.cudnn.allow_tf32 = True  # as torch does
    configure_torch(RuntimeConfig(threads=1))
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(level)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = convolutions, benchmark
    torch.use_deterministic_algorithms(deterministic)
    if had is None:
        os.environ.pop(workspace, None)


def turned() -> RawBatch:
    """Hands half a metre away, seen by crop cameras that are turned, in coloured light."""
    rng = torch.Generator().manual_seed(5)
    return dataclasses.replace(
        raw(0),
        rot_crop_from_img=rotation_from_aa(torch.randn(2, 3, generator=rng)),
        colour_affine=torch.eye(3, 4) + 0.1 * torch.randn(2, 3, 4, generator=rng),
    )


def perfect(batch: HandBatch) -> Prediction:
    """The labels as the network would predict them."""
    out = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, torch.zeros(batch.size, 3))
    wrist = out.joints_m[:, :1]
    hand = HandEstimate(
        global_orient=batch.global_orient,
        hand_pose=batch.hand_pose,
        betas=batch.betas,
        root_cam_m=batch.root_cam_m,
        joints_root_m=out.joints_m - wrist,
        vertices_root_m=out.vertices_m - wrist,
    )
    return Prediction(hand, hand, hand.joints_root_m, batch.joints_unit, torch.zeros(batch.size, 21, 16, 16))


def numbers(net: UTNet) -> dict[str, Tensor]:
    """What labels, hand layer, projection, loss and network come to, and gradients of all its parameters."""
    batch = prepare(turned())
    right = perfect(batch)
    loss = HandLoss(LossConfig(), hand_model())
    found = {f"loss {name}": value for name, value in loss(right, batch).values.items()}
    net.zero_grad()
    prediction = net(batch)
    loss(prediction, batch).total.backward()
    grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return found | {
        "colour": batch.rgb,
        "projection": batch.joints_crop_px,
        "labels": batch.to_image_camera(batch.joints_cam_m),
        "vertices": right.hand.vertices_root_m,
        "votes": prediction.vote_logits.detach(),
        "network": torch.cat([t.detach().flatten() for t in tree_leaves(prediction)]),
        "gradients": grads,
    }


@pytest.fixture(scope="module")
def net() -> UTNet:
    """In float32, as `training.precision=fp32` asks for."""
    torch.manual_seed(0)
    return UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model())


def test_no_number_of_a_run_depends_on_tensor_cores(net: UTNet) -> None:
    """In TF32 labels turned to the image camera err by 0.15 mm, and a perfect prediction scores them."""
    exact = numbers(net)
    with TensorCores():
        rounded = numbers(net)
    assert [name for name, value in exact.items() if not torch.equal(value, rounded[name])] == []


@pytest.mark.parametrize(
    ("backend", "spoils"),
    [
        (torch.backends.cuda.matmul, {"labels", "projection", "vertices", "colour", "network", "gradients"}),
        (torch.backends.cudnn.conv, {"votes", "network", "gradients"}),
    ],
)
def test_the_rounding_shows_where_it_is_let_in(backend: Any, spoils: set[str], net: UTNet) -> None:
    """A mode that rounds nothing would find nothing."""
    exact = numbers(net)
    backend.fp32_precision = "tf32"
    with TensorCores():
        rounded = numbers(net)
    changed = {name for name, value in exact.items() if not torch.equal(value, rounded[name])}
    assert spoils <= changed
    assert ("labels" in changed) == ("labels" in spoils)


def test_one_place_sets_the_precision_and_every_program_goes_there() -> None:
    """A second setting somewhere else wins or loses by the order of imports."""
    words = re.compile(r"allow_tf32|fp32_precision|float32_matmul_precision|reduced_precision_reduction")
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in source_files()}
    assert {name for name, text in texts.items() if words.search(text)} == {"src/runtime/machine.py"}
    programs = [n for n in texts if n in ENTRIES or n.startswith("src/tools/")]
    builders = [n for n in programs if re.search(r"build_(model|run|evaluation)\(", texts[n])]
    assert "train.py" in builders
    assert [n for n in builders if "configure_torch(" not in texts[n]] == []


class HalfPrecision(TorchDispatchMode):
    """Lists operators that see or make numbers of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bfloat16, torch.float16) for x in tensors):
            self.seen.append(str(func))
        return result


def test_half_precision_ends_with_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-out, heads, refinement, hand, loss and scores, forward and backward: rotations and projections in
    bf16 lose millimetres. What its backward pass hands to the optimiser is float32 again.
    """
    torch.manual_seed(0)
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64), refine_iterations=2), hand_model())
    net.backbone_dtype = torch.bfloat16
    behind, inner = HalfPrecision(), UTNet._hands
    whole: list[Tensor] = []
    leaves: list[Any] = []

    def hands(
        self: UTNet, image: Tensor, queries: Tensor, maps: tuple[Tensor, ...], batch: HandBatch
    ) -> Prediction:
        whole.extend((image, queries, *maps))
        leaves.extend(x.detach().requires_grad_() for x in whole)
        with behind:
            return inner(self, leaves[0], leaves[1], tuple(leaves[2:]), batch)

    truth: Any = type("Truth", (), {"truth_vertices": lambda *_: None, "truth_joints": lambda *_: None})()
    with behind:
        batch = prepare(turned())
    monkeypatch.setattr(UTNet, "_hands", hands)
    with HalfPrecision() as backbone:
        prediction = net(batch)
    with behind:
        HandLoss(LossConfig(), hand_model())(prediction, batch).total.backward()
        MeshScorer(hand_model(), truth, official=False)(batch, prediction)
        batch.to_image_camera(prediction.hand.joints_cam_m)
    assert {"aten.mm.default", "aten.convolution.default"} & set(backbone.seen)
    assert behind.seen == []
    assert {x.dtype for x in leaves} | {x.grad.dtype for x in leaves} == {torch.float32}
    torch.autograd.backward(whole, [x.grad for x in leaves])
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
