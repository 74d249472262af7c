"""Named random streams."""

from __future__ import annotations

import torch

from src.runtime.seed import seed_everything, stream, torch_stream


def test_a_stream_is_its_name_and_nothing_else() -> None:
    """A sample's augmentation must not depend on what was drawn before it, or by whom."""
    first = stream(0, "augment", 3, 17).random(4)
    stream(0, "augment", 3, 16).random(100)
    assert (stream(0, "augment", 3, 17).random(4) == first).all()
    others = [(1, "augment", 3, 17), (0, "modality", 3, 17), (0, "augment", 4, 17), (0, "augment", 3, 18)]
    for seed, *names in others:
        assert (stream(seed, *names).random(4) != first).all()


def test_streams_leave_the_global_generator_alone() -> None:
    """A validation that draws from the global generator changes the training after it."""
    seed_everything(0, rank=1)
    state = torch.get_rng_state()
    torch_stream(0, "loader", 1)
    stream(0, "x")
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.rand(3)
    seed_everything(0, rank=0)
    assert not torch.equal(torch.rand(3), drawn)
