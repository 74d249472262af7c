"""Can the network learn at all? One batch, with and without depth."""

import math

import torch

from src.config import LossConfig, ModelConfig
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.schema import HandBatch
from tests.models.scene import hand_model, make_batch


def test_one_batch_of_eight_is_learned_to_5_mm_with_and_without_depth():
    """Acceptance 8: the first version stayed at the zero-pose score; steps alternate between the modalities.

    On one core 150 steps take about 20 s and end at 3.8 mm both ways; 240 leave room for another machine's
    rounding.
    """
    torch.manual_seed(0)
    mano = hand_model()
    batch = make_batch(8)
    inputs = (batch.without_depth(), batch)
    net = UTNet(ModelConfig(preset="tiny", image_size=(128, 128)), mano)
    net.backbone_dtype = torch.bfloat16
    loss = HandLoss(LossConfig(), mano)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0, fused=True)
    first = _mpjpe_mm(net, inputs[1])
    scores = [first, first]
    for step in range(240):
        for group in optimiser.param_groups:
            group["lr"] = (
                1e-3 * min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / 150)))
            )
        optimiser.zero_grad()
        seen = inputs[step % 2]
        loss(net(seen), seen).total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if step >= 99 and step % 10 == 9:
            scores = [_mpjpe_mm(net, shown) for shown in inputs]
            if max(scores) < 5.0:
                break
    assert first > 50.0
    assert max(scores) < 5.0, f"RGB-only, RGB-D: {scores} mm"


@torch.no_grad()
def _mpjpe_mm(net: UTNet, batch: HandBatch) -> float:
    return float((net(batch).hand.joints_root_m - batch.joints_root_m).norm(dim=-1).mean() * 1000)
