"""`Predictor`: a trained network, ready for anybody's frames.

    from src.predict import Predictor
    predictor = Predictor.from_checkpoint("runs/<run>/checkpoints/best.pt")   # or an exported .pt2 or .onnx
    hands = predictor(rgb, depth_m, intrinsics_px, box_px, left)              # image camera, OpenCV, metres

Legend: B pictures, H W their size, N hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.config import RunConfig
from src.errors import ConfigError, DataError, ShapeError
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.models.utnet import UTNet
from src.predict.crops import raw_crops
from src.predict.frame import Frame, HandBox
from src.predict.graph import RawNetwork
from src.predict.hands import PER_HAND, Hands, mirrored
from src.runtime.machine import full_float32
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import open_checkpoint
from src.training.checkpoints.settings import command_settings
from src.training.setup import backbone_dtype

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the program."""

EXPORTED = (".pt2", ".onnx")
"""Endings of exported networks."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What must be known of a network to feed it and to use its answers."""

    image_size: tuple[int, int]
    """(H, W) of a crop."""
    box_scale: float
    """Side of the square crop over the longer side of the hand's box."""
    batch_size: int
    """Hands that are predicted at once, where nothing else is asked for."""
    faces: NDArray[np.int64]
    """(F, 3) of the right hand."""
    named: str
    """What it is, for messages and outputs."""


class Engine(Protocol):
    """Something that computes `src.predict.graph.RawNetwork`."""

    facts: Facts

    def __call__(self, crops: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        """`RAW_INPUTS` on the CPU -> `PER_HAND`, right hands in the image camera."""


class EagerEngine:
    """The network itself, on one device."""

    def __init__(self, network: UTNet, facts: Facts, device: torch.device) -> None:
        self.facts = facts
        self.graph = RawNetwork(network).to(device).eval()
        """The graph that is run."""
        self._device = device

    @torch.no_grad()
    def __call__(self, crops: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        """As of `Engine`."""
        with full_float32():
            hands = self.graph(**{name: tensor.to(self._device) for name, tensor in crops.items()})
        return {name: value.float().cpu().numpy() for name, value in hands.items()}


class Predictor:
    """Estimates hands in pictures of any size.

    Args:
        engine: what computes the network.
        batch_size: hands at once; None: as the network's validation did, which gives the very same numbers.
    """

    def __init__(self, engine: Engine, *, batch_size: int | None = None) -> None:
        self.engine = engine
        self.facts = engine.facts
        self.batch_size = batch_size or engine.facts.batch_size

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        *,
        device: torch.device | str | None = None,
        hand_model: Path | str | None = None,
        batch_size: int | None = None,
    ) -> Predictor:
        """The network of a checkpoint, or of an exported file.

        Args:
            path: `best.pt` or another checkpoint of a run; or a `.pt2` or `.onnx` of `src.tools.export`.
            device: where it runs, e.g. `cuda:0`; None: a GPU if there is one, else the CPU.
            hand_model: MANO_RIGHT.pkl or the stand-in, the one that it was trained with; None: where the
                checkpoint says. Exported files hold the hand themselves.
            batch_size: see `Predictor`.

        Raises:
            AssetError: the file or its hand model is missing, damaged, or of another kind.
            ConfigError: there is no such device; or a library that an exported file needs is not installed.
        """
        path = Path(path)
        if path.suffix in EXPORTED:
            from src.predict.exported import open_exported  # its libraries are an extra

            return cls(open_exported(path, device), batch_size=batch_size)
        return cls(eager_engine(path, device=device, hand_model=hand_model), batch_size=batch_size)

    def __call__(
        self,
        rgb: Any,
        depth_m: Any,
        intrinsics_px: Any,
        box_px: Any,
        left: Any = None,
        *,
        exact: bool = True,
    ) -> Hands:
        """The hand in each of B pictures of one size; arrays or tensors, the answer is of the same kind.

        Args:
            rgb: (B, H, W, 3) uint8, RGB.
            depth_m: (B, H, W) z of the camera, metres, aligned to the picture; 0, nan or inf where nothing
                was measured. None: no depth, colour alone decides.
            intrinsics_px: (B, 3, 3) K of the pictures; (3, 3) for all.
            box_px: (B, 4) x0, y0, x1, y1 around the hand's joints, pixels.
            left: (B,) bool, left hands; None: all are right.
            exact: the boxes are as large as the hands. False, for boxes of a detector or drawn by hand: where
                depth is measured, that says how large a hand is seen.

        Returns:
            B hands, image camera (OpenCV), metres.

        Raises:
            ShapeError: an argument is not as stated.
            DataError: a box is no box, or outside its picture.
        """
        pictures = _checked("rgb", rgb, (None, None, None, 3), "u")
        batch = len(pictures)
        depth = None if depth_m is None else _checked("depth_m", depth_m, pictures.shape[:3], "f")
        cameras = (
            np.broadcast_to(_array(intrinsics_px), (batch, 3, 3))
            if np.ndim(intrinsics_px) == 2
            else intrinsics_px
        )
        k = _checked("intrinsics_px", cameras, (batch, 3, 3), "fiu").astype(np.float64)
        boxes = _checked("box_px", box_px, (batch, 4), "fiu").astype(np.float64)
        lefts = np.zeros(batch, bool) if left is None else _checked("left", left, (batch,), "b")
        asked = [
            (
                Frame(f"picture {i}", pictures[i], None if depth is None else depth[i], k[i]),
                HandBox(tuple(boxes[i].tolist()), bool(lefts[i]), exact=exact),
            )
            for i in range(batch)
        ]
        hands = self.predict(asked)
        if not torch.is_tensor(rgb):
            return hands
        there = {name: torch.from_numpy(getattr(hands, name)).to(rgb.device) for name in (*PER_HAND, "left")}
        return Hands(**there, faces=hands.faces)

    def predict(self, asked: Sequence[tuple[Frame, HandBox]]) -> Hands:
        """Hands in frames that may differ in size, in their order, NumPy arrays.

        Raises:
            DataError: as `__call__`; names the frame.
        """
        parts = []
        for start in range(0, len(asked), self.batch_size):
            chunk = asked[start : start + self.batch_size]
            found = self.engine(raw_crops(chunk, self.facts.image_size, self.facts.box_scale))
            broken = [
                f.name for k, (f, _) in enumerate(chunk) if not np.isfinite(found["vertices_m"][k]).all()
            ]
            if broken:
                raise DataError(
                    f"{broken[0]}: the prediction is not finite. Use device cpu, or other weights"
                )
            left = np.array([box.left for _, box in chunk])
            turned = {
                name: np.where(left.reshape(-1, *[1] * (v.ndim - 1)), mirrored(name, v), v)
                for name, v in found.items()
            }
            parts.append(Hands(**turned, left=left, faces=self.facts.faces))
        return Hands.join(parts, self.facts.faces)


def eager_engine(
    path: Path,
    *,
    device: torch.device | str | None = None,
    hand_model: Path | str | None = None,
    precision: str | None = None,
) -> EagerEngine:
    """The network of a checkpoint; see `Predictor.from_checkpoint`.

    Args:
        path, device, hand_model: as there.
        precision: `fp32` or `bf16`; None: as the checkpoint's training.precision says.
    """
    overrides = [] if precision is None else [f"training.precision={precision}"]
    config = command_settings(None, overrides, evaluate=path).config
    state = open_checkpoint(path)
    place = find_device(device)
    asset = load_hand_asset(hand_file(config, hand_model))
    hand = ManoLayer.from_asset(asset)
    ckpt.check_hand(state, hand, path)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and then replaced
        network = UTNet(config.model, hand)
    ckpt.load_weights(network, state, path)
    network.backbone_dtype = backbone_dtype(config, place)
    size = config.model.image_size
    facts = Facts(
        size, config.dataset.box_scale, config.validation.batch_size, asset.faces, ckpt.named(state, path)
    )
    return EagerEngine(network, facts, place)


def find_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for; None: the first GPU, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    asked = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        found = torch.device(asked)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {asked!r}: {str(error).splitlines()[0]}. Use cpu, cuda or cuda:N"
        ) from None
    return found


def hand_file(config: RunConfig, asked: Path | str | None) -> Path:
    """The hand model of a checkpoint: relative names are looked for here, then in the program's folder."""
    if asked is not None:
        return Path(asked)
    named = config.mano.model_path
    return named if named.is_absolute() or named.exists() else ROOT / named


def _array(value: Any) -> NDArray[Any]:
    """An argument as a NumPy array."""
    return value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)


def _checked(name: str, value: Any, shape: tuple[int | None, ...], kinds: str) -> NDArray[Any]:
    """An argument as an array of a shape (None: any size) and kind of numbers, or a ShapeError."""
    array = _array(value)
    fits = len(array.shape) == len(shape) and all(
        w in (None, g) for g, w in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds or (name == "rgb" and array.dtype != np.uint8):
        wanted = "uint8" if name == "rgb" else {"f": "float", "fiu": "numbers", "b": "bool"}.get(kinds, kinds)
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(f"{name}: got {array.shape} {array.dtype}, want ({text}) {wanted}")
    return array
