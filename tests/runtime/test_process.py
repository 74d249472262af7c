"""What a process says and how it ends: which rank complains, which lines it prints, which signal it obeys."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from src.errors import AssetError, CollectError, ConfigError, PeerError, TrainingError
from src.runtime import log
from src.runtime.ranks.launch import complaint
from src.runtime.signals import StopRequest

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize(
    ("error", "together", "speakers"),
    [
        (AssetError("torn"), False, [0]),  # before there are ranks all find the same fault
        (AssetError("torn"), True, [0, 1, 2]),  # met by one rank alone: the others have a PeerError
        (OSError("disk full"), True, [0, 1, 2]),
        (ConfigError("lr"), True, [0]),
        (CollectError("rank 2 died"), True, [0]),
        (TrainingError("nan"), True, [0]),
        (PeerError("rank 1 failed"), True, []),
        (RuntimeError("gloo: connection closed\nmore"), True, [0, 1, 2]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failure_is_said_once_by_who_knows_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, together: bool, speakers: list[int]
) -> None:
    """Said by nobody, a run of days ends without a reason; said by all, one line drowns in its copies."""
    monkeypatch.setattr(dist, "is_initialized", lambda: together)
    said = {}
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        if (text := complaint(error)) is not None:
            said[rank] = text
    assert list(said) == speakers
    for text in said.values():
        assert str(error).splitlines()[0] in text
        assert "\n" not in text


@pytest.fixture
def _log_put_back() -> Iterator[None]:
    yield
    log.configure()


@pytest.mark.usefixtures("_log_put_back")
def test_results_are_printed_by_rank_0_and_warnings_by_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """grep finds each line of the contract once, whatever the number of ranks; a warning says whose it is."""
    logger = log.get_logger("test")
    for rank in (0, 1):
        log.configure(rank=rank, log_file=tmp_path / "run/log.txt")
        logger.info("Epoch 0: Train Loss: 1.000")
        logger.warning("WARNING: careful")
    assert capsys.readouterr().out.splitlines() == [
        *("Epoch 0: Train Loss: 1.000", "WARNING: careful"),
        "[rank 1] WARNING: careful",
    ]
    text = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    assert text.splitlines() == ["Epoch 0: Train Loss: 1.000", "WARNING: careful"]
    log.configure(log_file=tmp_path / "run/log.txt")  # a resume goes on with the file
    logger.info("Resumed")
    assert (tmp_path / "run/log.txt").read_text(encoding="utf-8") == f"{text}Resumed\n"
    assert logging.getLogger("utnet").propagate is False


@pytest.fixture
def _signals_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in CAUGHT}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals_put_back")
@pytest.mark.parametrize("first", CAUGHT, ids=lambda number: number.name)
def test_only_a_second_ctrl_c_ends_a_run_before_it_has_saved(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, schedulers, closing terminals and Slurm's warning send several: all of them are one request,
    and what is not caught ends the run at once.
    """
    stop, again = StopRequest(), []
    stop.install()
    monkeypatch.setattr("src.runtime.signals.signal.raise_signal", again.append)  # it would end this process
    for number in (first, signal.SIGTERM, signal.SIGHUP):
        assert signal.getsignal(number) == stop._on_signal
        os.kill(os.getpid(), number)
    assert stop.received == first.name
    assert again == []
    os.kill(os.getpid(), signal.SIGINT)
    assert again == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
