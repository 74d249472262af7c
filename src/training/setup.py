"""Configuration -> hand, network and loss on this rank's device."""

from __future__ import annotations

import torch

from src.config import RunConfig
from src.hand.mano import ManoLayer
from src.hand.mano_assets import banner, load_hand_asset
from src.losses.loss import HandLoss
from src.models.pretrained import load_backbone
from src.models.utnet import UTNet
from src.runtime.log import get_logger
from src.runtime.machine import has_bf16
from src.runtime.ranks.distributed import DistContext

_log = get_logger("setup")


def build_model(
    config: RunConfig, context: DistContext, *, fresh: bool = True
) -> tuple[ManoLayer, UTNet, HandLoss]:
    """Hand, network and loss, with the same initial weights on every rank.

    Args:
        config: model, mano, loss and training.precision.
        context: ranks; rank 0 reads the hand first, so that only one of them writes its cache.
        fresh: load model.pretrained if it is set; not where a checkpoint replaces all weights anyway.

    Raises:
        AssetError: the hand model or the pretrained weights are missing, unsafe or do not fit.
    """
    asset = context.together(
        "reading the hand model", lambda: load_hand_asset(config.mano.model_path), main_first=True
    )
    if (notice := banner(asset)) is not None:
        _log.info(notice)
    hand = ManoLayer.from_asset(asset).to(context.device)
    torch.manual_seed(config.seed)
    model = UTNet(config.model, hand).to(context.device)
    if fresh and (pretrained := config.model.pretrained) is not None:
        found = context.together("loading pretrained weights", lambda: load_backbone(model, pretrained))
        _log.info(f"Pretrained backbone {pretrained}: {found}")
    model.backbone_dtype = backbone_dtype(config, context.device)
    return hand, model, HandLoss(config.loss, hand)


def backbone_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Arithmetic of the backbone: as asked, or bf16 where the device computes it itself."""
    auto = config.training.precision == "auto"
    half = has_bf16(device) if auto else config.training.precision == "bf16"
    return torch.bfloat16 if half else torch.float32
