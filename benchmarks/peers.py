"""UTNet beside what a user would pick instead: same data, loader, augmentation, schedule, minutes, machine.

    python -m benchmarks.peers [--arms "ResNet-18, MANO" ...] [--samples N] [--data DIR] [--other DIR]

All are trained from scratch by train.py, as `benchmarks/equal_time.py` says; the peers with AdamW at 1e-3,
the best of 3e-4, 1e-3 and 3e-3 (the ViT learns at neither of the first two: 120 and 121 mm after 200 steps),
and without an average of the weights, which does not suit statistics of batches. A peer that sees depth has
it as a fourth channel and never loses it: its rival is UTNet with depth. A peer without depth is the rival of
UTNet's RGB-only score.

| peer | after |
|---|---|
| ResNet-18, MANO | HMR (Kanazawa et al. 2018): parameters from pooled features; one pass, 6D rotations |
| ResNet-18, heat maps | Sun et al. 2018: integral heat maps of joints in 2.5D, three up-convolutions of 128 |
| ViT, decoder | HaMeR (Pavlakos et al. 2024): timm's ViT of tiny's size, a decoder with one query for MANO |
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import timm
import torch
import torchvision
from torch import Tensor, nn

import train
from benchmarks.equal_time import Arm, Network, compare
from src.config import ModelConfig
from src.errors import ConfigError
from src.geometry.camera import project, unproject
from src.geometry.rotation import rotation_from_6d, rotation_from_aa, sixd_from_rotation
from src.hand.mano import ManoLayer
from src.models.heads import HandDecoder, HandState
from src.runtime.command_line import exit_status
from src.schema import HandEstimate, NetworkInput, Prediction
from src.training import setup

PARAMETERS = 16 * 6 + 10 + 3
"""Rotations in 6D, shape, wrist: of `HandState`."""
DEPTH_CELLS = 32
REACH_M = 0.25
"""Heat maps reach so far before and behind the reference depth. Without depth a box gives that to within 25 %
and leaves joints of 12 % of the hands out of reach; a reach of 0.45 to 2.2 times it scored the same without
depth, and less with it (records/2026-11-30-twice-the-time.md)."""


def resnet(channels: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, 512, H / 32, W / 32)."""
    net = torchvision.models.resnet18(weights=None)
    net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(*list(net.children())[:-2])


class Peer(nn.Module):
    """A network that stands where UTNet stands; its votes are its own hand's."""

    def __init__(self, config: ModelConfig, mano: ManoLayer, *, depth: bool) -> None:
        super().__init__()
        self.size, self.channels = config.image_size, 3 + depth
        self.backbone_dtype = torch.float32
        self.decoder = HandDecoder(mano, config.image_size)
        self.features = self.build()
        pose = rotation_from_aa(mano.hands_mean.detach().reshape(15, 3).float().cpu())
        mean = torch.cat([torch.eye(3)[None], pose])
        self.register_buffer("mean", sixd_from_rotation(mean).flatten(), persistent=False)

    def build(self) -> nn.Module:
        """What turns a picture into features."""
        raise NotImplementedError

    def estimate(self, features: Tensor, batch: NetworkInput) -> HandEstimate:
        """The hand that float32 features say."""
        state = HandState(
            *rotation_from_6d((features[:, :96] + self.mean).unflatten(1, (16, 6))).split([1, 15], dim=1),
            betas=features[:, 96:106],
            wrist_code=features[:, 106:],
        )
        state = HandState(state.global_orient[:, 0], state.hand_pose, state.betas, state.wrist_code)
        return self.decoder(state, batch.intrinsics_crop_px, batch.z_ref_m)

    def forward(self, batch: NetworkInput) -> Prediction:
        """As of `UTNet`."""
        seen, device = torch.cat([batch.rgb, batch.depth], dim=1)[:, : self.channels], batch.rgb.device.type
        low = self.backbone_dtype != torch.float32
        with torch.autocast(device, dtype=self.backbone_dtype if low else None, enabled=low):
            features = self.features(seen)
        with torch.autocast(device, enabled=False):
            hand = self.estimate(features.float(), batch)
        height, width = self.size
        pixels = project(hand.joints_cam_m, batch.intrinsics_crop_px)
        unit = pixels / pixels.new_tensor([width, height]) - 0.5
        return Prediction(hand, hand, hand.joints_root_m, unit, unit.new_zeros(len(unit), 21, 4, 4))


class ResNetMano(Peer):
    """Pooled features to parameters."""

    def build(self) -> nn.Module:
        """ResNet-18 and a linear layer."""
        last = nn.Linear(512, PARAMETERS)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        return nn.Sequential(resnet(self.channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


class ResNetHeatmaps(Peer):
    """Joints as means over volumes; there is no mesh."""

    def build(self) -> nn.Module:
        """ResNet-18 and up-convolutions to a quarter of the crop."""
        ups: list[nn.Module] = []
        for inputs in (512, 128, 128):
            up = nn.ConvTranspose2d(inputs, 128, 4, stride=2, padding=1, bias=False)
            ups += [up, nn.BatchNorm2d(128), nn.ReLU()]
        return nn.Sequential(resnet(self.channels), *ups, nn.Conv2d(128, 21 * DEPTH_CELLS, 1))

    def estimate(self, features: Tensor, batch: NetworkInput) -> HandEstimate:
        """Place and depth of each joint."""
        b, _, h, w = features.shape
        share = features.reshape(b, 21, -1).softmax(dim=-1).view(b, 21, DEPTH_CELLS, h, w)
        u, v, d = (
            (share.sum(dim=others) * torch.linspace(0.5 / n, 1 - 0.5 / n, n, device=share.device)).sum(dim=-1)
            for others, n in (((2, 3), w), ((2, 4), h), ((3, 4), DEPTH_CELLS))
        )
        height, width = self.size
        z = batch.z_ref_m[:, None] + REACH_M * (2 * d - 1)
        joints = unproject(torch.stack([u * width, v * height], dim=-1), z, batch.intrinsics_crop_px)
        eye = torch.eye(3, device=z.device)
        return HandEstimate(
            global_orient=eye.expand(b, 3, 3),
            hand_pose=eye.expand(b, 15, 3, 3),
            betas=z.new_zeros(b, 10),
            root_cam_m=joints[:, 0],
            joints_root_m=joints - joints[:, :1],
            vertices_root_m=z.new_zeros(b, 778, 3),
        )


class VitDecoder(Peer):
    """Image tokens, asked by one query."""

    def build(self) -> nn.Module:
        """timm's ViT of width 192 and depth 6, a decoder of two layers."""
        return _Asked(self.size, self.channels)


class _Asked(nn.Module):
    """(B, C, H, W) -> (B, PARAMETERS)."""

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.vit = timm.models.VisionTransformer(
            img_size=size,
            patch_size=16,
            in_chans=channels,
            num_classes=0,
            embed_dim=192,
            depth=6,
            num_heads=3,
        )
        layer = nn.TransformerDecoderLayer(192, 3, 384, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder, self.query = nn.TransformerDecoder(layer, 2), nn.Parameter(torch.randn(1, 1, 192))
        self.last = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, PARAMETERS))
        nn.init.normal_(self.last[1].weight, std=1e-3)
        nn.init.zeros_(self.last[1].bias)

    def forward(self, picture: Tensor) -> Tensor:
        """Ask."""
        tokens = self.vit.forward_features(picture)
        answer: Tensor = self.last(self.decoder(self.query.expand(len(tokens), -1, -1), tokens)[:, 0])
        return answer


KINDS = {"ResNet-18, MANO": ResNetMano, "ResNet-18, heat maps": ResNetHeatmaps, "ViT, decoder": VitDecoder}
NETWORKS: dict[str, Network] = {
    name + end: functools.partial(kind, depth=depth)
    for name, kind in KINDS.items()
    for end, depth in ((", depth", True), ("", False))
}
_TRAINING = (
    "optimizer.name=adamw",
    "optimizer.lr=1e-3",
    "optimizer.weight_decay=0.05",
    "loss.heatmap=0",
    "model.second_look=false",
    "training.ema_decay=0",
)
_JOINTS = ("loss.joints_canonical=0", "loss.vertices=0", "loss.rotations=0")


def _arm(name: str, network: Network) -> Arm:
    """A peer, its settings, and how Python starts it."""
    settings = (*_TRAINING, f"dataset.p_drop_depth={0 if 'depth' in name else 1}")
    settings += _JOINTS if "heat maps" in name else ()
    return Arm(settings, network, ("-m", "benchmarks.peers", "--as", name))


ARMS = {"UTNet": Arm()} | {name: _arm(name, network) for name, network in NETWORKS.items()}


def main(argv: Sequence[str] = ()) -> None:
    """Train UTNet and its peers and compare them; with --as, be train.py with another network."""
    if argv[:1] == ["--as"]:
        if (name := "".join(argv[1:2])) not in NETWORKS:
            raise ConfigError(f"--as: got {name or 'nothing'}, want one of {'; '.join(NETWORKS)}")
        setup.UTNet = NETWORKS[name]
        sys.exit(train.main(argv[2:]))
    compare("peers", __doc__, ARMS, argv)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
