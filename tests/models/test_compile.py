"""The network as one graph: torch.compile gives up its gains at every break, and an export stops there."""

from __future__ import annotations

import pytest
import torch

from src.config import ModelConfig
from src.hand.mano import ManoLayer
from src.models.utnet import UTNet
from src.predict.graph import RawNetwork, example_inputs
from tests.hand_file import hand_file

SIZE = (64, 64)


@pytest.mark.parametrize(("dtype", "training"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_whole_network_compiles_as_one_graph(dtype: torch.dtype, training: bool) -> None:
    """From raw crops to hands, backwards too, with branches that are left out at random."""
    network = UTNet(
        ModelConfig(preset="tiny", image_size=SIZE, drop_path=0.3), ManoLayer.from_file(hand_file())
    )
    network.backbone_dtype = dtype
    graph = RawNetwork(network).train(training)
    inputs = example_inputs(SIZE, 3)
    torch.compiler.reset()
    hands = torch.compile(graph, fullgraph=True, backend="eager")(**inputs)
    if training:
        sum(value.square().sum() for value in hands.values()).backward()
        unseen = [name for name, p in network.named_parameters() if p.grad is None]
        assert all(name.startswith("readout.joints") for name in unseen), (
            "of votes, which have their own loss"
        )
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        return
    for name, value in graph(**inputs).items():
        assert torch.allclose(value, hands[name], atol=1e-5), name
