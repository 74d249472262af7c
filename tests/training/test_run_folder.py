"""The folder of a run: which one is the newest, who holds it, what a failed start leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from src.config import LoggingConfig, RunConfig
from src.errors import ConfigError, DataError
from src.runtime import log
from src.training import run_folder
from src.training.checkpoints.folder import FOLDER, LAST
from src.training.run_folder import LOCK, META, open_run_folder, started
from tests.log_lines import log_lines
from tests.training.toy import ALONE


@pytest.fixture(autouse=True)
def let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are held until the process ends; here until the test does."""
    monkeypatch.setattr(run_folder, "_held", [])
    monkeypatch.setattr(run_folder, "_WAIT_S", 0.3)


def config_in(runs: Path) -> RunConfig:
    return RunConfig(name="demo", logging=LoggingConfig(runs_dir=runs))


def run_of(runs: Path, name: str, when: str | None, *, saved: bool = True, **meta: object) -> Path:
    """A run folder; its checkpoints are not looked into."""
    run = runs / name
    (run / FOLDER).mkdir(parents=True)
    if saved:
        (run / FOLDER / LAST).touch()
    if when is not None:
        (run / META).write_text(json.dumps({"started": when, **meta}))
    return run


def newest(monkeypatch: pytest.MonkeyPatch, runs: Path, *finished: Path) -> tuple[Path | None, str]:
    monkeypatch.setattr(run_folder, "_is_finished", lambda last, config: last.parent.parent in finished)
    return run_folder._newest(config_in(runs))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2026-10-25T02:30:00+0200", "2026-10-25T02:10:00+0100"),  # the hour that comes twice
        ("2026-07-01T23:00:00+09:00", "2026-07-01T10:30:00-04:00"),  # Tokyo, then New York
        ("2026-07-01T12:00:00+00:00", "2026-07-01T12:00:01"),  # no zone: UTC
    ],
)
def test_the_newest_run_is_told_by_what_is_written_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str, later: str
) -> None:
    """By folder names, which are local time, an older run would be gone on with, and its scores believed."""
    run_of(tmp_path, "20261025-023000-demo", earlier)
    run = run_of(tmp_path, "20261025-021000-demo", later)
    assert newest(monkeypatch, tmp_path) == (run / FOLDER / LAST, "")


def test_a_run_without_its_facts_has_the_age_of_its_files(tmp_path: Path) -> None:
    """Torn, of another program, of a year that no clock shows, a pipe that nobody writes to, or never written
    on a full disk: the file system's clock knows no zones.
    """
    years = ('{"started": "0001-01-01T00:00:00+23:00"}', '{"started": "2999-01-01T00:00:00+00:00"}')
    torn = ("{", "[" * 200_000, '{"started": 5}', '{"started": "yesterday"}')
    for k, text in enumerate((None, "pipe", *torn, *years)):
        run = run_of(tmp_path, f"run{k}", None)
        if text == "pipe":
            os.mkfifo(run / META)
        elif text is not None:
            (run / META).write_text(text)
        for path in (run, run / FOLDER / LAST):
            os.utime(path, (1.8e9 + k, 1.8e9 + k))
        assert started(run).timestamp() == 1.8e9 + k, text


def test_auto_takes_this_name_alone_and_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation makes a folder of the run's name, newer and without checkpoints; a link whose disk is
    away and the file of another program are no runs.
    """
    (tmp_path / "20260702-100000-demo").symlink_to(tmp_path / "nowhere")
    (tmp_path / "20260703-100000-demo").touch()
    run = run_of(tmp_path, "20260101-000000-demo", "2026-01-01T00:00:00+00:00")
    run_of(tmp_path, "20260103-000000-demo-2", "2026-01-03T00:00:00+00:00")
    run_of(tmp_path, "20260104-000000-demo", "2026-01-04T00:00:00+00:00", saved=False, evaluated="last.pt")
    assert newest(monkeypatch, tmp_path) == (run / FOLDER / LAST, "")
    (run / FOLDER / LAST).rename(run / FOLDER / "epoch_3.pt")  # last.pt is lost, the run is not
    assert newest(monkeypatch, tmp_path) == (run / FOLDER / LAST, "")


def test_a_run_that_never_saved_does_not_hand_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished run before it would be resumed, nothing trained, status 0."""
    old = run_of(tmp_path, "20260101-000000-demo", "2026-01-01T00:00:00+00:00")
    run_of(tmp_path, "20260102-000000-demo", "2026-01-02T00:00:00+00:00", saved=False)
    never = "WARNING: --resume auto: the newest run, 20260102-000000-demo, has never saved"
    assert newest(monkeypatch, tmp_path, old) == (
        None,
        f"{never}, and the one before it, 20260101-000000-demo, is finished: a new one",
    )
    assert newest(monkeypatch, tmp_path) == (
        old / FOLDER / LAST,
        f"{never}: going on with the one before it, 20260101-000000-demo",
    )


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    """A misspelt name begins anew: somebody must be able to see that, in the log of the new run too."""
    with log_lines("run folder") as said, open_run_folder(config_in(tmp_path), ALONE, "auto") as folder:
        assert (folder.new, folder.source) == (True, None)
    assert said == [f"--resume auto: no run called demo in {tmp_path} has saved: a new one"]
    assert said[0] in (folder.path / "log.txt").read_text()
    log.configure()


def hold(
    folder: str, ready: multiprocessing.synchronize.Event, leave: multiprocessing.synchronize.Event
) -> None:
    run_folder._take(Path(folder))
    ready.set()
    leave.wait(60)


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_a_folder_that_is_written_is_refused_with_who_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Two runs in one folder overwrite each other's checkpoints; where there are no locks, by the process."""
    if not locks:
        monkeypatch.setattr(run_folder, "lock", lambda file, **_: False)
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, leave))
    other.start()
    assert ready.wait(30)
    who = rf"process {other.pid} on {socket.gethostname()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
    try:
        with pytest.raises(ConfigError, match=who):
            run_folder._take(tmp_path)
    finally:
        leave.set()
        other.join(30)
    run_folder._take(tmp_path)  # it ended: the folder is free
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_without_locks_a_run_of_another_machine_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it runs cannot be told from here: whoever knows removes its lock. A torn one bars nobody."""
    monkeypatch.setattr(run_folder, "lock", lambda file, **_: False)
    (tmp_path / LOCK).write_text(json.dumps({"host": "other-node", "pid": 7, "since": "today"}))
    with pytest.raises(ConfigError, match=r"process 7 on other-node.*If it is gone, delete .*run\.lock"):
        run_folder._take(tmp_path)
    for content in (b"", b"{", b"[1]", b'{"pid": "x"}', b'{"pid": -1}', b"\xff" * 9000):
        (tmp_path / LOCK).write_bytes(content)
        run_folder._take(tmp_path)
    run_folder._leave(run_folder._held[-1])
    assert (tmp_path / LOCK).read_bytes() == b"", "a run that ended in order leaves no owner"


@pytest.mark.parametrize("kind", [DataError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_fails_leaves_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], there: bool
) -> None:
    """Ten wrong paths in a row are ten folders that --resume auto and people look through; but a resume that
    fails at its start must not take the run with it.
    """
    run = run_of(tmp_path, "20260101-000000-demo", "2026-01-01T00:00:00+00:00", saved=there)
    monkeypatch.setattr(run_folder, "to_go_on_from", lambda path: (path, ""))
    with pytest.raises(kind), open_run_folder(config_in(tmp_path), ALONE, "auto") as folder:  # noqa: PT012
        assert (folder.path / LOCK).is_file()
        assert (folder.source, folder.new) == ((run / FOLDER / LAST, False) if there else (None, True))
        raise kind
    assert list(tmp_path.iterdir()) == [run]
    assert (run / FOLDER / LAST).is_file() == there
