"""Learning rate, weight decay and averaged weights do what the configuration says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from src.config import OptimizerConfig, SchedulerConfig
from src.errors import AssetError
from src.training.optim import Ema, build_optimizer, learning_rate


def test_warm_up_and_cosine() -> None:
    """The rate rises linearly, reaches optimizer.lr, falls to the final ratio, and never leaves these
    bounds.
    """
    config = SchedulerConfig(warmup_fraction=0.1, final_lr_ratio=0.01)
    rates = [learning_rate(k, 100, 2e-3, config) for k in range(100)]
    assert rates[0] == pytest.approx(2e-3 / 11)
    assert max(rates) == rates[10] == 2e-3
    assert rates[-1] == pytest.approx(2e-5)
    assert all(b > a for a, b in pairwise(rates[:11]))
    assert all(b < a for a, b in pairwise(rates[10:]))
    assert learning_rate(0, 1, 1.0, SchedulerConfig(warmup_fraction=0.0)) == 1.0


def test_only_matrices_decay() -> None:
    """Decay on norms, biases and tokens pulls them to zero."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    token = nn.Parameter(torch.zeros(1, 4))
    token.no_weight_decay = True  # type: ignore[attr-defined]
    model.register_parameter("token", token)
    decayed, free = build_optimizer(
        model, OptimizerConfig(weight_decay=0.1), torch.device("cpu")
    ).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)]
    assert len(free["params"]) == 4
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_average_is_exponential_and_swaps_back_bit_for_bit() -> None:
    """Validation of the averaged weights must not change the weights that are trained."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    ema = Ema(model, decay=0.5)
    expected = model.weight.detach().clone()
    for k in range(4):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    trained = model.weight.detach().clone()
    with ema.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, trained)
    other = Ema(model, decay=0.5)
    other.load_state_dict(ema.state_dict())
    with other.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    with pytest.raises(AssetError, match="names differ"):
        other.load_state_dict({"average": {"x": torch.zeros(1)}, "updates": 1})
