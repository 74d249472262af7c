"""Backbone weights from a local file: torchvision's ViT, timm's, ViTPose's and UTNet's own.

Nothing is loaded "successfully" by accident: keys are renamed by a table, loaded, missing and unexpected ones
are counted, and below 90 % the file is refused. What the file never has (depth, queries) keeps its start.

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
from src.models.utnet import UTNet
from src.runtime.tensor_file import first_nonfinite, load_tensors

MIN_LOADED = 0.9
"""Share of the backbone's tensors that a file must fill."""

_WRAPPERS = ("state_dict", "model", "model_state", "module", "teacher")
_PREFIXES = ("module.", "backbone.", "encoder.backbone.")
_OWN = ("embed.", "vit.")

_TORCHVISION = (
    (r"^conv_proj\.", "embed.stem.rgb."),
    (r"^class_token$", "embed.class_token"),
    (r"^encoder\.pos_embedding$", "embed.positions"),
    (r"^encoder\.ln\.", "vit.norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"vit.blocks.\1.norm\2."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"vit.blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"vit.blocks.\1.attn.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"vit.blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"vit.blocks.\1.mlp.fc2."),
)
_TIMM = (
    (r"^patch_embed\.proj\.", "embed.stem.rgb."),
    (r"^cls_token$", "embed.class_token"),
    (r"^pos_embed$", "embed.positions"),
    (r"^(?:last_)?norm\.", "vit.norm."),
    (r"^blocks\.", "vit.blocks."),
)

_FEATURE_KEYS = re.compile(r"^(vit\.|norm_pre\.|encoder\.layers\.|reg_token)")
"""Names that, left over, mean the file's features are computed in another way than ours."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor; names are those of the network, or of the file where it has no place."""

    loaded: tuple[str, ...]
    """Filled from the file."""
    missing: tuple[str, ...]
    """Wanted by the backbone, absent or of another shape in the file (with the shapes)."""
    unexpected: tuple[str, ...]
    """In the file, with no place in the backbone."""

    def __str__(self) -> str:
        """One line for the log."""
        text = f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        return text + "".join(
            f"; {what}: {_sample(names)}"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        )


def load_backbone(model: UTNet, path: Path) -> LoadReport:
    """Fill the backbone of `model` from a file.

    Args:
        model: changed in place: picture projection, positions, class token, blocks, last norm. From a
            checkpoint of UTNet also the layers of depth and the queries.
        path: written by torch.save; read with weights_only=True, so nothing in it runs.

    Returns:
        What was loaded, missing and unexpected.

    Raises:
        AssetError: no such file; damaged, or not a file of weights; less than 90 % of the backbone found;
            blocks hold tensors that this backbone has no place for; a number is not finite.
    """
    found = _rename(_read(path))
    own = any(name.startswith("embed.pose") for name in found)
    wanted = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(_OWN) and (own or not only_ours(name))
    }
    _fit_positions(found, wanted, path)
    loaded = {
        name: tensor
        for name, tensor in found.items()
        if name in wanted and tensor.shape == wanted[name].shape
    }
    missing = [
        name if name not in found else f"{name} {tuple(found[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in loaded
    ]
    unexpected = [name for name in found if name not in wanted]
    report = LoadReport(tuple(sorted(loaded)), tuple(sorted(missing)), tuple(sorted(unexpected)))
    if len(loaded) < MIN_LOADED * len(wanted):
        raise AssetError(
            f"pretrained weights {path}: only {len(loaded)} of {len(wanted)} tensors of the backbone "
            f"found, want {MIN_LOADED:.0%} ({report}). Check model.preset and model.stem against the file"
        )
    strange = [name for name in report.unexpected if _FEATURE_KEYS.match(name)]
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
        state = model.state_dict()
        for name, tensor in loaded.items():
            state[name].copy_(tensor)
    return report


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, wrappers taken off."""
    content = load_tensors(path, "pretrained weights")
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise AssetError(f"pretrained weights {path}: no tensors in it, want a state dict")
    return tensors


def _rename(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the network for the names of a file; those that fit no table stay as they are."""
    found = dict(found)
    for prefix in _PREFIXES:
        # A ViTPose file has its head beside `backbone.`; the head keeps its name and is reported.
        if any(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    if any(name.startswith("vit.blocks.") for name in found):
        return found
    table = _TORCHVISION if "conv_proj.weight" in found else _TIMM
    renamed = {}
    for name, tensor in found.items():
        target = name
        for pattern, replacement in table:
            target = re.sub(pattern, replacement, target)
        renamed[target] = tensor
    return renamed


def only_ours(name: str) -> bool:
    """True for what pretrained ViTs do not have."""
    return name.startswith(
        (
            "embed.pose",
            "embed.shape",
            "embed.camera",
            "embed.intrinsics",
            "embed.stem.depth",
            "embed.stem.join",
            "embed.stem.placeholder",
        )
    )


def _fit_positions(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Bring the file's table of positions to our grid; its row for the class token goes where it belongs."""
    name = "embed.positions"
    if name not in found or name not in wanted:
        return
    table = found[name].float()
    if table.ndim == 3:
        rows, cols, extra = _grid_of_table(table.shape[1], path)
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


def _grid_of_table(length: int, path: Path) -> tuple[int, int, bool]:
    """(rows, cols, has a class row) of a flat table: square, or 4:3 as for 256 x 192 pictures."""
    for extra in (True, False):
        side = math.isqrt(length - extra)
        if side * side == length - extra:
            return side, side, extra
    for extra in (True, False):
        unit = math.isqrt((length - extra) // 12)
        if unit and 12 * unit * unit == length - extra:
            return 4 * unit, 3 * unit, extra
    raise AssetError(f"pretrained weights {path}: {length} positions are neither a square nor a 4:3 grid")


def _sample(names: tuple[str, ...] | list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
