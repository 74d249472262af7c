"""The folder of a run: made new, or found again by --resume; the same on every rank, and one run's alone."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from src.config import RunConfig
from src.errors import AssetError, ConfigError
from src.runtime import log
from src.runtime.files.disk import lock, open_lock, read_plain
from src.runtime.ranks.distributed import DistContext
from src.runtime.signals import stop_signals_blocked
from src.training.checkpoints.checkpoint import load_checkpoint
from src.training.checkpoints.folder import FOLDER, LAST, to_go_on_from

META, LOCK = "meta.json", "run.lock"
_WAIT_S = 10.0
"""What loader processes of a killed run may take to end, and with them its lock, seconds."""
_AHEAD = timedelta(days=1)
"""What another machine's clock may be ahead; what is said to have started later is not believed."""
_MOST_META_BYTES = 1 << 20
_log = log.get_logger("run folder")
_held: list[BinaryIO] = []
"""Locks of this process, kept until it ends."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes."""

    path: Path
    source: Path | None
    """Checkpoint to go on from; None: from the start."""
    new: bool
    """Made by this process."""


@contextlib.contextmanager
def open_run_folder(config: RunConfig, context: DistContext, resume: str | None) -> Iterator[RunFolder]:
    """The folder of this run, for what begins it: decided by rank 0, which locks it.

    From here on the log is also kept in the run folder. If what begins the run fails, whatever ends it, a new
    folder is removed: a run that never began leaves nothing behind.

    Args:
        config: of the run.
        context: ranks.
        resume: None, `auto`, or the path of a checkpoint.

    Raises:
        AssetError: the checkpoint cannot be read, and no other may take its place.
        ConfigError: logging.runs_dir cannot be written to, or another run writes the folder.
    """

    def decide() -> tuple[RunFolder, list[str]]:
        named = None if resume is None else Path(resume)
        asked, said = _newest(config) if resume == "auto" else (named, "")
        if asked is None:
            return _make(config), [said]
        own = asked.parent.parent if asked.parent.name == FOLDER else None
        if own is not None:
            _take(own)
        source, warning = to_go_on_from(asked)
        return RunFolder(own, source, new=False) if own else _make(config, source), [said, warning]

    with contextlib.ExitStack() as unless_begun:
        with stop_signals_blocked():
            decided = context.together("making the run folder", lambda: decide() if context.is_main else None)
            folder, lines = context.broadcast_object(decided)
            unless_begun.callback(_remove, folder, context)
        log.configure(rank=context.rank, log_file=folder.path / "log.txt")
        for line in filter(None, lines if context.is_main else ()):
            (_log.warning if line.startswith("WARNING") else _log.info)(line)
        yield folder
        unless_begun.pop_all()


def _remove(folder: RunFolder, context: DistContext) -> None:
    if folder.new and context.is_main:
        log.configure(rank=context.rank)
        shutil.rmtree(folder.path, ignore_errors=True)


def started(run: Path) -> datetime:
    """When a run was last started, by what it wrote itself; where it wrote nothing, by its files' times.

    The folder's name is local time: of another zone, or of the hour that comes twice, it misleads.
    """
    now = datetime.now(UTC)
    try:
        when = datetime.fromisoformat(facts_of(run)["started"])
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        if when <= now + _AHEAD:
            return when
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    times = [0.0]
    for path in (run, *run.glob(f"{FOLDER}/*.pt")):
        with contextlib.suppress(OSError):  # a link to nowhere
            times.append(path.stat().st_mtime)
    return datetime.fromtimestamp(max(times), UTC)


def facts_of(run: Path) -> dict[str, Any]:
    """What a run says of itself; nothing where that is not to be read."""
    try:
        return _facts(read_plain(run / META, _MOST_META_BYTES))
    except OSError:
        return {}


def _facts(text: bytes) -> dict[str, Any]:
    """What a file of facts says; nothing where it is torn, or of another program."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _newest(config: RunConfig) -> tuple[Path | None, str]:
    """last.pt of the newest run of this name, or None for a new one; and a line that says why."""
    runs_dir, name = config.logging.runs_dir, config.name
    pattern = re.compile(r"\d{8}-\d{6}-" + re.escape(name))
    found = [p for p in runs_dir.glob("*") if pattern.fullmatch(p.name) and p.is_dir()]
    runs = sorted((p for p in found if not _is_evaluation(p)), key=started, reverse=True)
    saved = next((run for run in runs if any(run.glob(f"{FOLDER}/*.pt"))), None)
    if saved is None:
        return None, f"--resume auto: no run called {name} in {runs_dir} has saved: a new one"
    last = saved / FOLDER / LAST
    if saved == runs[0]:
        return last, ""
    never = f"--resume auto: the newest run, {runs[0].name}, has never saved"
    if _is_finished(last, config):
        return None, f"WARNING: {never}, and the one before it, {saved.name}, is finished: a new one"
    return last, f"WARNING: {never}: going on with the one before it, {saved.name}"


def _is_evaluation(run: Path) -> bool:
    return "evaluated" in facts_of(run)


def _is_finished(last: Path, config: RunConfig) -> bool:
    try:
        epoch: int = load_checkpoint(last, mapped=True, any_format=True)["progress"]["epoch"]
    except AssetError:
        return False  # whoever goes on from it says so
    return epoch >= config.training.num_epochs


def _make(config: RunConfig, source: Path | None = None) -> RunFolder:
    """Make `runs/<time>-<name>/`; a second run of the same second waits for the next.

    Raises:
        ConfigError: logging.runs_dir cannot be written to.
    """
    while True:
        folder = config.logging.runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not config.logging.runs_dir.is_dir():
                raise ConfigError(f"logging.runs_dir={config.logging.runs_dir} is not a folder") from None
            time.sleep(0.2)
            continue
        except OSError as error:
            raise ConfigError(
                f"logging.runs_dir={config.logging.runs_dir}: no run folder can be made there "
                f"({error.strerror}). Look at its rights, and at the length of name"
            ) from None
        _take(folder)
        return RunFolder(folder, source, new=True)


def _take(folder: Path) -> None:
    """Hold a run folder until this process ends.

    Raises:
        ConfigError: another process writes it, or this one may not.
    """
    path = folder / LOCK
    try:
        file = open_lock(path)
    except OSError as error:
        raise ConfigError(f"run folder {folder} cannot be written to ({error.strerror})") from None
    try:
        locked = lock(file, wait_s=_WAIT_S)
    except BlockingIOError:
        raise _taken(folder, _owner(file)) from None
    owner = _owner(file)
    if not locked and owner.get("host", "") not in ("", socket.gethostname()):
        raise _taken(folder, owner, f". If it is gone, delete {path}: there are no locks that would say so")
    if not locked and owner and _lives(owner.get("pid")):
        raise _taken(folder, owner)
    since = datetime.now(UTC).isoformat(" ", "seconds")
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(mine).encode())
    file.flush()
    _held.append(file)
    atexit.register(_leave, file)


def _leave(file: BinaryIO) -> None:
    """Say that nobody writes the folder any more."""
    with contextlib.suppress(OSError, ValueError):
        file.truncate(0)


def _owner(file: BinaryIO) -> dict[str, Any]:
    """Who wrote a lock; nothing where it says nothing."""
    file.seek(0)
    return _facts(file.read(4096))


def _lives(pid: object) -> bool:
    """Whether another process of this machine has this number."""
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(folder: Path, owner: dict[str, Any], more: str = "") -> ConfigError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('since', '?')}"
    return ConfigError(
        f"run folder {folder} is written by another run ({who}). Two runs in one folder would overwrite each "
        f"other's checkpoints: wait for that one, end it, or start a run of another name{more}"
    )
