"""Backbone weights from a local file: torchvision's ViT, timm's, ViTPose's and UTNet's own.

Nothing is loaded "successfully" by accident: keys are renamed by a table, loaded, missing and unexpected ones
are counted, and below 90 % the file is refused. So is one tensor of another shape, and a file without patch
projection or positions, however many others fit: a backbone that sees its picture through random weights has
nobody's features. What the file never has (depth, queries) keeps its start.

Positions: a row of the position table that belongs to the class token is added to the class token, which is
the same arithmetic. ViTPose has no class token and adds that row to every patch; so do we. Its patch
projection pads the picture by 2 pixels, ours does not: the same features for a picture shifted by 2 pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from src.errors import AssetError
from src.models.tokens import PATCH
from src.models.utnet import UTNet
from src.runtime.files.tensor_file import first_nonfinite, load_tensors

MIN_LOADED = 0.9
"""Share of the backbone's tensors that a file must fill."""

_WRAPPERS = ("state_dict", "model", "model_state", "module", "teacher")
_OWN = ("embed.", "vit.")
_NO_VIT_HAS = (
    *("embed.pose", "embed.shape", "embed.camera", "embed.intrinsics"),
    *("embed.stem.depth", "embed.stem.join", "embed.stem.placeholder"),
)
_NAMES = (
    # A ViTPose file has its head beside `backbone.`; the head keeps its name and is reported.
    (r"^(?:module\.)?(?:(?:encoder\.)?backbone\.)?", ""),
    (r"^(?:conv_proj|patch_embed\.proj)\.", "embed.stem.rgb."),
    (r"^(?:class_token|cls_token)$", "embed.class_token"),
    (r"^(?:encoder\.pos_embedding|pos_embed)$", "embed.positions"),
    (r"^(?:encoder\.ln|(?:last_)?norm)\.", "vit.norm."),
    (r"^(?:encoder\.layers\.encoder_layer_|blocks\.)", "vit.blocks."),
    # torchvision's parts of a block
    (r"^(vit\.blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"^(vit\.blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"^(vit\.blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"^(vit\.blocks\.\d+)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
    (r"^(vit\.blocks\.\d+)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
)
"""Names in files of torchvision, timm and ViTPose, and ours; applied one after the other."""

_EYES = ("embed.stem.", "embed.positions")
"""What stands between the picture and the first block: without it the rest of a file is worth nothing."""
_OTHER_FEATURES = ("vit.", "norm_pre.", "encoder.layers.", "reg_token")
"""Names that, left over, mean the file's features are computed in another way than ours."""
_LIGHTNING = "pytorch-lightning_version"
"""Key that PyTorch Lightning puts into every checkpoint."""
_RECORD_BYTES = 1 << 24
"""As much of a file is looked through for it."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor; names are those of the network, or of the file where it has no place."""

    loaded: tuple[str, ...]
    """Filled from the file."""
    missing: tuple[str, ...]
    """Wanted by the backbone, absent in the file."""
    unexpected: tuple[str, ...]
    """In the file, with no place in the backbone."""

    def __str__(self) -> str:
        """One line for the log."""
        text = f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        listed = {"missing": self.missing, "unexpected": self.unexpected}
        return text + "".join(f"; {what}: {_sample(names)}" for what, names in listed.items() if names)


def load_backbone(model: UTNet, path: Path) -> LoadReport:
    """Fill the backbone of `model` from a file.

    Args:
        model: changed in place: picture projection, positions, class token, blocks, last norm. From a
            checkpoint of UTNet also the layers of depth and the queries.
        path: written by torch.save; read with weights_only=True, so nothing in it runs.

    Returns:
        What was loaded, missing and unexpected.

    Raises:
        AssetError: no such file; damaged, or not a file of weights; a tensor of another shape; no patch
            projection or positions; less than 90 % of the backbone found; blocks hold tensors that this
            backbone has no place for; a number is not finite.
    """
    found = {_renamed(name): tensor for name, tensor in _read(path).items()}
    own, state = any(name.startswith("embed.pose") for name in found), model.state_dict()
    ours = [name for name in state if name.startswith(_OWN)]
    wanted = {name: state[name] for name in ours if own or not only_ours(name)}
    _require_shapes(found, wanted, path)
    _fit_positions(found, wanted)
    loaded = {name: tensor for name, tensor in found.items() if name in wanted}
    report = LoadReport(
        tuple(sorted(loaded)), tuple(sorted(wanted.keys() - found)), tuple(sorted(found.keys() - wanted))
    )
    eyes = [name for name in report.missing if name.startswith(_EYES)]
    if eyes or len(loaded) < MIN_LOADED * len(wanted):
        raise AssetError(
            f"pretrained weights {path}: only {len(loaded)} of {len(wanted)} tensors of the backbone "
            f"found, want {MIN_LOADED:.0%} and all of {', '.join(eyes or _EYES)} ({report}). Check "
            "model.preset against the file; preset tiny takes the weights of no ViT"
        )
    strange = [name for name in report.unexpected if name.startswith(_OTHER_FEATURES)]
    if strange:
        raise AssetError(
            f"pretrained weights {path}: the file's backbone has {len(strange)} tensors that ours has no "
            f"place for ({_sample(strange)}); its features could not be reproduced. Use a plain ViT"
        )
    if (bad := first_nonfinite(loaded)) is not None:
        raise AssetError(
            f"pretrained weights {path}: numbers are not finite, first in {bad}. Use another copy"
        )
    with torch.no_grad():
        for name, tensor in loaded.items():
            state[name].copy_(tensor)
    return report


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, wrappers taken off."""
    try:
        content = load_tensors(path, "pretrained weights")
    except AssetError:
        if not _names_lightning(path):
            raise
        content = {_LIGHTNING: None}  # its other parts are seldom plain
    if isinstance(content, dict) and _LIGHTNING in content:
        raise AssetError(
            f"pretrained weights {path}: a checkpoint of PyTorch Lightning, want the backbone's weights "
            "alone. If you trust the file, write them: c = torch.load(FILE, weights_only=False)"
            "['state_dict']; "
            "torch.save({k.removeprefix('model.'): v for k, v in c.items()}, NEW), with the backbone's own "
            "name in that LightningModule for model, and set model.pretrained=NEW"
        )
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise AssetError(f"pretrained weights {path}: no tensors in it, want a state dict")
    return tensors


def _names_lightning(path: Path) -> bool:
    """Whether the first record of a file of torch.save, its pickle, holds Lightning's key."""
    try:
        with path.open("rb") as file:
            return _LIGHTNING.encode() in file.read(_RECORD_BYTES)
    except OSError:
        return False


def _require_shapes(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Refuse a file of which a tensor does not fit its place; what the picture meets first is named first."""
    order = sorted(wanted.keys() & found, key=lambda name: (not name.startswith(_EYES), name))
    wrong = [(name, want) for name in order if (want := _misfit(name, found[name], wanted[name])) is not None]
    if wrong:
        first, want = wrong[0]
        got = tuple(found[first].shape) if found[first].is_floating_point() else found[first].dtype
        raise AssetError(
            f"pretrained weights {path}: {first} is {got}, want {want} ({len(wrong)} of {len(wanted)} "
            f"tensors do not fit). Give a plain ViT with patches of {PATCH} x {PATCH} pixels and the width "
            "of model.preset"
        )


def _misfit(name: str, tensor: Tensor, place: Tensor) -> str | None:
    """What is wanted instead of a tensor that does not fit its place; None where it does.

    Positions may be of another grid, in rows and columns or flat, with or without a row for the class token.
    """
    if not tensor.is_floating_point():
        return "floating-point numbers"
    if name != "embed.positions":
        return None if tensor.shape == place.shape else str(tuple(place.shape))
    width = place.shape[-1]
    grid_known = tensor.ndim == 4 or (tensor.ndim == 3 and _grid_of_table(tensor.shape[1]) is not None)
    if grid_known and (tensor.shape[0], tensor.shape[-1]) == (1, width) and tensor.numel():
        return None
    return f"(1, positions, {width}) of a square or 4:3 grid, or (1, rows, columns, {width})"


def _renamed(name: str) -> str:
    """Name of the network for a name of a file; one that fits nothing stays as it is."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def only_ours(name: str) -> bool:
    """True for what pretrained ViTs do not have."""
    return name.startswith(_NO_VIT_HAS)


def _fit_positions(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bring the file's table of positions to our grid; its row for the class token goes where it belongs."""
    name = "embed.positions"
    if name not in found or name not in wanted:
        return
    table = found[name].float()
    if table.ndim == 3 and (grid := _grid_of_table(table.shape[1])) is not None:
        rows, cols, extra = grid
        if extra:
            head, table = table[:, :1], table[:, 1:]
            if "embed.class_token" in found:
                found["embed.class_token"] = found["embed.class_token"] + head
            else:
                table = table + head
        table = table.reshape(1, rows, cols, -1)
    target = wanted[name].shape[1:3]
    if table.shape[1:3] != target:
        table = F.interpolate(
            table.permute(0, 3, 1, 2), size=target, mode="bicubic", antialias=False, align_corners=False
        ).permute(0, 2, 3, 1)
    found[name] = table.contiguous()


def _grid_of_table(length: int) -> tuple[int, int, bool] | None:
    """(rows, cols, has a class row) of a flat table: square, or 4:3 as for 256 x 192; None: neither."""
    for rows, cols in ((1, 1), (4, 3)):
        for extra in (1, 0):
            unit = math.isqrt((length - extra) // (rows * cols))
            if unit and rows * cols * unit * unit == length - extra:
                return unit * rows, unit * cols, bool(extra)
    return None


def _sample(names: tuple[str, ...] | list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
