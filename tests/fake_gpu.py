"""A GPU that is not there: tensors on `cuda` without values, streams and events that write down what they do.

A tensor left on the CPU, or a value that the host asks for, raises. Shapes, dtypes, devices and every branch
that tests for `cuda` are real. Backward passes (autograd wants a device's thread) and autocast are not there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from src.config import ModelConfig
from src.hand.mano import ManoLayer
from src.models import gcn
from src.models.utnet import UTNet
from tests.hand_file import hand_file

GPU = torch.device("cuda", 0)


class Stream:
    """A queue of work."""

    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: Stream) -> None:
        """What comes after waits on the device for what `other` has now."""
        self.gpu.did(f"{self.name} waits for {other.name}")


class Event:
    """A mark in a queue."""

    def __init__(self, gpu: FakeGpu, number: int) -> None:
        self.gpu, self.number = gpu, number

    def record(self) -> None:
        """Put the mark."""
        self.gpu.did(f"event {self.number} on {self.gpu.stream.name}")

    def synchronize(self) -> None:
        """The host waits for the mark."""
        self.gpu.did(f"host waits for event {self.number}")


class FakeGpu:
    """What was asked of it, in order.

    Attributes:
        done: streams' and events' doings, and what the test adds.
        stream: where work goes now.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stream = Stream(self, "main")
        self._streams = self._events = 0

    def did(self, what: str) -> None:
        """Write something down."""
        self.done.append(what)

    def new_stream(self, *_: object) -> Stream:
        """torch.cuda.Stream."""
        self._streams += 1
        return Stream(self, f"side{self._streams}")

    def new_event(self) -> Event:
        """torch.cuda.Event."""
        self._events += 1
        return Event(self, self._events)

    @contextlib.contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        """torch.cuda.stream."""
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """Tensor.record_stream."""
        assert tensor.device == GPU
        self.did(f"{stream.name} reads {tuple(tensor.shape)}")


class _Host(TorchFunctionMode):
    """The host's side: page-locked memory is a mark on the tensor, and every number that arrived is 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return _pinned(args[0].clone())
        if name == "item" and args[0].device.type == "cpu":  # tolist() asks for each
            return 1.0
        wanted = kwargs.pop("pin_memory", False) if name in ("tensor", "empty") else False
        result = func(*args, **kwargs)
        return _pinned(result) if wanted else result


def _pinned(tensor: Tensor) -> Tensor:
    tensor.pinned_on_fake_gpu = True  # type: ignore[attr-defined]  # read by tests/waits.py
    return tensor


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Within the context tensors are fake, and those made on `cuda` say that they are there."""
    gpu = FakeGpu()
    changes: dict[str, Callable[..., Any]] = {
        "torch.cuda.Stream": gpu.new_stream,
        "torch.cuda.Event": gpu.new_event,
        "torch.cuda.stream": gpu.within,
        "torch.cuda.current_stream": lambda *_: gpu.stream,
        "torch.Tensor.record_stream": lambda tensor, stream: gpu.record_stream(tensor, stream),
    }
    with contextlib.ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(mock.patch(name, change))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Host())
        yield gpu


def network(config: ModelConfig) -> tuple[ManoLayer, UTNet]:
    """Hand and network on the fake GPU; any size takes no memory."""
    with unset_fake_temporarily():  # type: ignore[no-untyped-call]
        hand = ManoLayer.from_file(hand_file())
        graph = gcn.MeshGraph(hand.faces, hand.lbs_weights.shape[0])
    hand.to(GPU)
    with mock.patch.object(gcn, "MeshGraph", return_value=graph.to(GPU)), GPU:
        return hand, UTNet(config, hand)
