"""Weights of others: features equal theirs, and nothing loads by accident."""

import argparse
import re
from pathlib import Path

import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torchvision.models.vision_transformer as tv_vit
from torch import nn
from torch.nn import functional as F

from src.config import ModelConfig
from src.errors import AssetError
from src.models.pretrained import LoadReport, load_backbone, only_ours
from src.models.tokens import map_to_tokens
from src.models.utnet import UTNet
from src.models.vit import PRESETS
from tests.models.scene import build

SIZE = PRESETS["tiny"]


def network(size: tuple[int, int]) -> UTNet:
    return build(ModelConfig(preset="tiny", image_size=size), seed=1, patches=True).eval()


def features(net: UTNet, picture: torch.Tensor, *, class_token: bool = True) -> torch.Tensor:
    """Our backbone on class and image tokens alone: the sequence that others feed."""
    image = map_to_tokens(net.embed.stem.rgb(picture)) + net.embed.positions.flatten(1, 2)
    head = [net.embed.class_token.expand(len(picture), -1, -1)] if class_token else []
    return net.vit(torch.cat([*head, image], dim=1))


def roughen(module: nn.Module) -> nn.Module:
    """Random weights everywhere: norms of 1 and biases of 0 would hide a swap."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def timm_model(size: tuple[int, int], **options: object) -> nn.Module:
    width, depth, heads = SIZE.width, SIZE.depth, SIZE.heads
    shape = {"img_size": size, "embed_dim": width, "depth": depth, "num_heads": heads, "num_classes": 7}
    return roughen(timm_vit.VisionTransformer(**shape, **options))


def loaded(tmp_path: Path, content: object, size: tuple[int, int] = (64, 64)) -> tuple[UTNet, LoadReport]:
    """A network with the backbone of a file."""
    torch.save(content, tmp_path / "weights.pth")
    net = network(size)
    return net, load_backbone(net, tmp_path / "weights.pth")


def refused(tmp_path: Path, content: object, said: str) -> None:
    """The file is refused with these words, and nothing of the network has changed."""
    net = network((64, 64))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(AssetError, match=said):
        load_backbone(net, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_timm_features_are_reproduced(tmp_path: Path):
    """Lesson 13: an extra norm, another eps or a lost class position destroys pretrained statistics."""
    reference = timm_model((64, 64))
    content = {"state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}}
    net, report = loaded(tmp_path, content)
    assert report.missing == ()
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    picture = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(features(net, picture), reference.forward_features(picture), atol=1e-4, rtol=0)


def test_no_layer_of_depth_is_missed_in_a_file_of_pictures():
    """What no other ViT has would count against the share that must be found, and be listed as missing."""
    net = build(ModelConfig(preset="tiny", image_size=(64, 64)))
    wanted = {n for n, _ in net.embed.stem.named_parameters() if not only_ours(f"embed.stem.{n}")}
    assert {name.split(".")[0] for name in wanted} == {"rgb", "stage4", "stage8", "stage16", "project"}


@torch.no_grad()
def test_torchvision_features_are_reproduced(tmp_path: Path):
    """As for timm; torchvision names every tensor differently."""
    reference = roughen(tv_vit.VisionTransformer(64, 16, SIZE.depth, SIZE.heads, SIZE.width, 4 * SIZE.width))
    net, report = loaded(tmp_path, reference.state_dict())
    assert report.missing == ()
    picture = torch.randn(2, 3, 64, 64)
    theirs = reference._process_input(picture)
    theirs = reference.encoder(torch.cat([reference.class_token.expand(2, -1, -1), theirs], dim=1))
    torch.testing.assert_close(features(net, picture), theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_vitpose_features_are_reproduced(tmp_path: Path):
    """ViTPose adds the class row of its positions to all patches, and pads by 2 pixels: ours is shifted."""
    reference = timm_model((64, 48), class_token=False, global_pool="avg", fc_norm=False)
    theirs = {f"last_norm.{k}": v for k, v in reference.norm.state_dict().items()}
    own = ("patch_embed.", "blocks.")
    theirs |= {k: v for k, v in reference.state_dict().items() if k.startswith(own)}
    theirs["pos_embed"] = torch.randn(1, 13, SIZE.width)
    content = {f"backbone.{k}": v for k, v in theirs.items()}
    content["keypoint_head.final_layer.weight"] = torch.zeros(3)
    net, report = loaded(tmp_path, {"state_dict": content}, (64, 48))
    assert report.missing == ("embed.class_token",)
    assert report.unexpected == ("keypoint_head.final_layer.weight",)
    picture = torch.randn(2, 3, 64, 48)
    patches = F.conv2d(
        picture, theirs["patch_embed.proj.weight"], theirs["patch_embed.proj.bias"], stride=16, padding=2
    )
    x = patches.flatten(2).transpose(1, 2) + theirs["pos_embed"][:, 1:] + theirs["pos_embed"][:, :1]
    shifted = F.pad(picture, (2, -2, 2, -2))
    torch.testing.assert_close(
        features(net, shifted, class_token=False), reference.norm(reference.blocks(x)), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_positions_are_resized_as_a_picture(tmp_path: Path):
    """A table flattened on another grid and cut to length puts positions in the wrong rows."""
    reference = timm_model((128, 128))
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    reference.pos_embed[0, 1:, :2] = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    net, _ = loaded(tmp_path, reference.state_dict(), (64, 96))
    table = net.embed.positions[0]
    # Token centres of 4 rows on 8: 0.5, 2.5, 4.5, 6.5; bicubic is exact on a ramp away from its ends.
    torch.testing.assert_close(table[1:3, 2, 0], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)
    torch.testing.assert_close(table[2, 2:4, 1], torch.tensor([2.8333, 4.1667]), atol=0.1, rtol=0)


def test_our_own_checkpoint_fills_the_whole_backbone(tmp_path: Path):
    """Depth and queries are part of the backbone when the file is ours."""
    source = network((64, 48))
    with torch.no_grad():
        source.embed.stem.depth.weight.normal_()
    net, report = loaded(tmp_path, {"model": source.state_dict()}, (64, 48))
    assert report.missing == ()
    assert all(name.startswith(("readout.", "coarse.", "pyramid.", "refiner.")) for name in report.unexpected)
    for name, value in source.state_dict().items():
        if name.startswith(("embed.", "vit.")):
            assert torch.equal(net.state_dict()[name], value), name


def test_a_file_that_is_not_this_backbones_is_an_error(tmp_path: Path) -> None:
    """Lesson 12: a prefix nobody expected, and a random backbone reported as loaded.

    With a block less, more than half of the tensors are there; with layer scale all are: the features are
    nobody's.
    """
    theirs = timm_model((64, 64)).state_dict()
    for prefix in ("encoder.vit.", "net."):
        said = r"only 0 of \d+ .*missing: .*unexpected: .*model\.preset"
        refused(tmp_path, {f"{prefix}{k}": v for k, v in theirs.items()}, said)
    cut = {k: v for k, v in theirs.items() if not k.startswith("blocks.1.")}
    refused(tmp_path, cut, r"only \d+ of \d+ tensors .*want 90%.*vit\.blocks\.1\.")
    refused(tmp_path, timm_model((64, 64), init_values=1e-5).state_dict(), r"ls1\.gamma")
    refused(tmp_path, {"model": nn.Linear(2, 2)}, "plain tensors")


MISFITS: list[tuple[str, tuple[int, ...] | None, str]] = [
    ("patch_embed.proj.weight", (192, 3, 8, 8), "stem.rgb.weight is (192, 3, 8, 8), want (192, 3, 16, 16)"),
    ("patch_embed.proj.weight", (192, 4, 16, 16), "is (192, 4, 16, 16), want (192, 3, 16, 16)"),
    ("patch_embed.proj.weight", None, "all of embed.stem.rgb.weight"),
    ("pos_embed", (1, 17, 384), "embed.positions is (1, 17, 384), want (1, positions, 192)"),
    ("pos_embed", (1, 20, 192), "embed.positions is (1, 20, 192), want (1, positions, 192) of a square"),
    ("pos_embed", None, "all of embed.positions"),
    ("cls_token", (1, 1, 96), "embed.class_token is (1, 1, 96), want (1, 1, 192)"),
]
"""Name, shape in the file (None: it is missing), what is said."""


def test_one_tensor_that_does_not_fit_is_an_error(tmp_path: Path):
    """A ViT/8 fits in all but its patch projection: with a random one the run would train from noise."""
    fits = timm_model((64, 64)).state_dict()
    cases = [(name, None if shape is None else torch.zeros(shape), said) for name, shape, said in MISFITS]
    cases.append(("norm.weight", torch.zeros(192, dtype=torch.int8), "is torch.int8, want floating-point"))
    for name, value, said in cases:
        changed = {k: v for k, v in fits.items() if k != name} | ({} if value is None else {name: value})
        refused(tmp_path, changed, re.escape(said))


def test_a_lightning_checkpoint_says_what_to_do(tmp_path: Path):
    """Its names never fit, and its other parts are seldom plain: `Use another copy` would help nobody."""
    for extra in ({"lr": 1e-4}, argparse.Namespace(lr=1e-4)):
        content = {
            "state_dict": {"model.x": torch.zeros(1)},
            "pytorch-lightning_version": "2",
            "extra": extra,
        }
        refused(tmp_path, content, r"Lightning.*torch\.save.*removeprefix.*model\.pretrained=NEW")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    """One flipped bit or NaN of a backbone that others trained spoils a run of days, and nothing shows it."""
    weights = timm_model((64, 64)).state_dict()
    weights["head.weight"][0] = torch.nan  # it is not loaded
    net, _ = loaded(tmp_path, weights)
    path = tmp_path / "weights.pth"
    whole = path.read_bytes()
    at = whole.index(weights["blocks.1.attn.qkv.weight"].numpy().tobytes()[:64]) + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    said = r"pretrained weights .*weights\.pth is no whole file of torch\.save: record"
    with pytest.raises(AssetError, match=said):
        load_backbone(net, path)
    with pytest.raises(AssetError, match="no such file"):
        load_backbone(net, tmp_path / "none.pth")
    weights["blocks.1.attn.qkv.weight"][5, 5] = torch.inf
    refused(tmp_path, weights, r"not finite, first in vit\.blocks\.1\.attn\.qkv\.weight \(1 of ")
