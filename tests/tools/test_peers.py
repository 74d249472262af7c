"""Peers stand where UTNet stands: what they say is scored and taught as a hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.equal_time import CONFIG
from benchmarks.peers import ARMS, NETWORKS, main
from src.config import ModelConfig
from src.config_file import load_config
from src.errors import ConfigError
from src.geometry.camera import project
from src.losses.loss import HandLoss
from tests.models.scene import hand_model, make_batch

SIZE = (64, 64)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_peer_learns_from_all_that_it_has_and_sees_depth_where_it_says_so(name: str) -> None:
    """A comparison with a network that is not trained, or is blind, flatters ours."""
    torch.manual_seed(0)
    net = NETWORKS[name](ModelConfig(preset="tiny", image_size=SIZE), hand_model())
    batch = make_batch(3, *SIZE, noise=True)
    config = load_config(CONFIG, ARMS[name].settings)
    assert not config.model.second_look, "upright crops alone teach nothing to who looks once"
    assert config.training.ema_decay == 0.0, "statistics of batches are not those of averaged weights"
    prediction = net(batch)
    HandLoss(config.loss, hand_model())(prediction, batch).total.backward()
    assert config.dataset.p_drop_depth == (0.0 if "depth" in name else 1.0)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    hand = prediction.hand
    assert hand.joints_root_m.shape == (3, 21, 3)
    assert (hand.root_cam_m[:, 2] > 0).all()
    pixels = project(hand.joints_cam_m, batch.intrinsics_crop_px) / 64 - 0.5
    torch.testing.assert_close(prediction.vote_joints_unit, pixels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        blind = [net(shown).hand.joints_root_m for shown in (batch, batch.without_depth())]
    assert torch.equal(*blind) == ("depth" not in name)


def test_heat_maps_are_read_where_they_are() -> None:
    """Half a cell off, every joint would be."""
    net = NETWORKS["ResNet-18, heat maps"](ModelConfig(preset="tiny", image_size=SIZE), hand_model())
    batch = make_batch(1, *SIZE, noise=True)
    volume = torch.zeros(1, 21, 32, 16, 16)
    volume[:, :, 8, 4, 12] = 100.0
    hand = net.estimate(volume.flatten(1, 2), batch)
    pixels = project(hand.joints_cam_m, batch.intrinsics_crop_px)[0]
    torch.testing.assert_close(pixels, torch.tensor([12.5 / 16 * 64, 4.5 / 16 * 64]).expand(21, 2))
    depth = batch.z_ref_m + 0.25 * (2 * 8.5 / 32 - 1)
    torch.testing.assert_close(hand.joints_cam_m[0, :, 2], depth.expand(21))


@pytest.mark.parametrize(("given", "got"), [((), "nothing"), (("ResNet",), "ResNet")])
def test_a_peer_that_is_none_is_said(given: tuple[str, ...], got: str) -> None:
    """A slip must not train UTNet in a peer's name."""
    with pytest.raises(ConfigError, match=f"--as: got {got}, want one of ResNet-18, MANO, depth; "):
        main(["--as", *given])
