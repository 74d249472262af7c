"""Can the network learn at all? A few hands by heart, with and without depth."""

import pytest
import torch

from src.config import LossConfig, ModelConfig, OptimizerConfig, SchedulerConfig
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.schema import HandBatch
from src.training.optim import Optimizer, learning_rate
from tests.models.scene import hand_model, make_batch


def test_one_batch_of_eight_is_learned_to_2_mm_with_and_without_depth():
    """The first version stayed at the zero-pose score.

    In float32: with bf16 in the backbone it ends at 3.7 mm. At 120 steps, half a minute of one core, it
    stands at 1.2 mm both ways; 160 leave room for another machine's rounding.
    """
    assert max(learn([make_batch(8)], steps=160, enough_mm=2.0)) < 2.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_64_frames_are_learned_to_4_mm_with_and_without_depth():
    """Eight hands may be told apart by a corner of the picture; 64 ask for the hand."""
    assert max(learn([make_batch(16, seed=k) for k in range(4)], steps=480, enough_mm=4.0)) < 4.0


def learn(batches: list[HandBatch], *, steps: int, enough_mm: float) -> list[float]:
    """Train until MPJPE is low enough; steps alternate between RGB-only and RGB-D.

    Returns:
        MPJPE over all batches, mm, RGB-only and RGB-D.
    """
    torch.manual_seed(0)
    mano = hand_model()
    net = UTNet(ModelConfig(preset="tiny", image_size=(128, 128)), mano)
    loss = HandLoss(LossConfig(), mano)
    optimizer = Optimizer(net, OptimizerConfig(name="muon", weight_decay=0.0), torch.device("cpu"))
    shown = [[batch.without_depth() for batch in batches], batches]
    scores = [_mpjpe_mm(net, part) for part in shown]
    assert min(scores) > 50.0
    for step in range(steps):
        batch = shown[step % 2][step // 2 % len(batches)]
        optimizer.zero_grad()
        loss(net(batch), batch).total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 20.0)
        optimizer.step(learning_rate(step, steps, 8e-3, SchedulerConfig()))
        if step >= 0.6 * steps and step % 10 == 9:
            scores = [_mpjpe_mm(net, part) for part in shown]
            if max(scores) < enough_mm:
                break
    return scores


@torch.no_grad()
def _mpjpe_mm(net: UTNet, batches: list[HandBatch]) -> float:
    errors = [(net(b).hand.joints_root_m - b.joints_root_m).norm(dim=-1).mean() for b in batches]
    return float(torch.stack(errors).mean() * 1000)
