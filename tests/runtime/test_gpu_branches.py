"""What only a GPU takes: batches made one ahead, numbers read late, devices chosen. CUDA itself is a stand-in
that writes down what is asked of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dataloader import build
from src.config import RuntimeConfig
from src.runtime.distributed import DistContext, setup_distributed
from src.runtime.machine import has_bf16
from src.training.step import Numbers

GPU = torch.device("cuda", 0)


class Stream:
    """A CUDA stream's name and whom it waited for."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: Stream) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


class Batch:
    """A batch that tells which stream made it and which reads it."""

    def __init__(self, number: int, events: list[str]) -> None:
        self.number, self.events = number, events

    def record_stream(self, stream: Stream) -> None:
        self.events.append(f"batch {self.number} is read by {stream.name}")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batches_are_made_one_ahead_and_none_is_lost(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of the next batch runs while this one is at work: each is made on the side stream, waited for
    before it is used, marked as read by the main stream, and handed out once, in order, the last one too.
    """
    events: list[str] = []
    main, side = Stream("main", events), Stream("side", events)
    now = [main]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)

    def made() -> Iterator[Batch]:
        for number in range(count):
            events.append(f"batch {number} is made on {now[-1].name}")
            yield Batch(number, events)

    for batch in build._one_ahead(made(), GPU):  # type: ignore[arg-type]
        events.append(f"batch {batch.number} is used")  # type: ignore[attr-defined]
    assert [event for event in events if event.endswith("used")] == [
        f"batch {number} is used" for number in range(count)
    ]
    for number in range(count):
        place = {what: events.index(f"batch {number} is {what}") for what in ("made on side", "used")}
        wait = [k for k, event in enumerate(events) if event == "main waits for side"][number]
        read = events.index(f"batch {number} is read by main")
        assert place["made on side"] < wait < read < place["used"], events
        if number + 1 < count:
            following = events.index(f"batch {number + 1} is made on side")
            assert wait < following < place["used"], "made while the batch before it is at work"


class OnDevice:
    """Three numbers on a GPU whose copy has arrived when its event was waited for, and not before."""

    is_cuda, shape, dtype = True, (3,), torch.float32


class Host:
    """Page-locked memory."""

    def __init__(self) -> None:
        self.arrived = False

    def copy_(self, values: OnDevice, *, non_blocking: bool) -> None:
        assert non_blocking, "a copy that blocks waits for all that the GPU has queued"

    def tolist(self) -> list[float]:
        return [1.5, 40.0, 0.0] if self.arrived else [0.0, 0.0, 0.0]


def test_numbers_of_a_step_are_read_when_they_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read before, the loss is whatever stood in that memory: zeros, or those of another step."""
    host, recorded = Host(), []

    class Event:
        def record(self) -> None:
            recorded.append(True)

        def synchronize(self) -> None:
            assert recorded
            host.arrived = True

    def empty(shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> Host:
        assert pin_memory, "a copy into other memory waits for the GPU"
        return host

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    numbers = Numbers(OnDevice())  # type: ignore[arg-type]
    assert not host.arrived, "making it must not wait"
    assert numbers.values == [1.5, 40.0, 0.0]


def test_one_process_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on a machine with GPUs trains on the first, `cpu` does not, and the log says which it is."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = {wish: setup_distributed(wish) for wish in ("auto", "cuda", "cpu")}
    assert {wish: context.device for wish, context in chosen.items()} == {
        "auto": GPU,
        "cuda": GPU,
        "cpu": torch.device("cpu"),
    }
    assert [chosen[wish].devices_label for wish in ("auto", "cpu")] == ["GPUs", "CPU ranks"]
    assert DistContext(3, 4, 3, torch.device("cuda", 3), None).devices_label == "GPUs"
    assert RuntimeConfig().device == "auto"


def test_bf16_that_a_gpu_emulates_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older GPUs answer yes and are then slower than in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16(GPU)
