"""From a configuration to the arithmetic of the backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.config_file import load_config
from src.training import setup

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("precision", "native", "want"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),  # asked for by name: slow, and the doctor says so
        ("fp32", True, torch.float32),
        ("fp32", False, torch.float32),
    ],
)
def test_arithmetic_is_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str, native: bool, want: torch.dtype
) -> None:
    """A setting that a device silently overrides makes two runs of one configuration two experiments."""
    monkeypatch.setattr(setup, "has_bf16", lambda device: native)
    config = load_config(ROOT / "config/demo.yaml", [f"training.precision={precision}"])
    assert setup.backbone_dtype(config, torch.device("cpu")) == want
