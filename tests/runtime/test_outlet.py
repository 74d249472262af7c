"""What a run says beside its checkpoints may fail in every way that a machine knows, and never ends it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.runtime import outlet
from src.runtime.outlet import Outlet, optional
from tests.log_lines import log_lines
from tests.rooms.sources import ROOT


@pytest.fixture(autouse=True)
def nothing_fails_before() -> Iterator[None]:
    """Failures are counted per process."""
    outlet._failures.clear()
    yield
    outlet._failures.clear()


class Disk:
    """os.write on a disk with so many bytes of room for log.txt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.room, self.number, self._write = 0, number, os.write
        monkeypatch.setattr(outlet.os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name != "log.txt":  # what the test itself says
            return self._write(descriptor, data)
        if not self.room:
            raise OSError(self.number, os.strerror(self.number))
        written = self._write(descriptor, bytes(data[: self.room]))
        self.room -= written
        return written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
def test_lines_wait_for_room_and_none_is_lost_or_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk fills up in the middle of a line and is emptied an hour later: one warning, and every line."""
    disk, file = Disk(monkeypatch, number), Outlet("log", path=tmp_path / "log.txt")
    with log_lines("outlets") as said:
        disk.room = 9
        for k in range(5):
            file.write(f"line {k}\n")
        assert (tmp_path / "log.txt").read_text() == "line 0\nli"
        disk.room = 10_000
        file.write("line 5\n")
    assert (tmp_path / "log.txt").read_text() == "".join(f"line {k}\n" for k in range(6))
    assert said == [
        f"WARNING: log: {os.strerror(number)}. The run goes on without it.",
        "log works again, after it failed 4 times.",
    ]


def test_what_waits_is_bounded_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stays full for a week must not take the memory; the file says where it has a gap."""
    monkeypatch.setattr(outlet, "_MOST_BYTES", 1000)
    disk, file = Disk(monkeypatch), Outlet("log", path=tmp_path / "log.txt")
    for k in range(300):
        file.write(f"line {k:03}\n")
        assert len(file._waiting) <= 1000
    disk.room = 10_000
    file.close()
    first, *lines = (tmp_path / "log.txt").read_text().splitlines()
    missing = 300 - len(lines)
    assert lines == [f"line {k:03}" for k in range(missing, 300)]
    assert first == f"[{9 * missing} bytes are missing here: they could not be written]"


def test_a_file_is_made_where_there_is_none_and_is_nobody_elses(tmp_path: Path) -> None:
    """Lines into a removed file are lost unheard; a pipe that nobody reads would be waited for; a link leads
    to a file of somebody else.
    """
    theirs, path = tmp_path / "theirs", tmp_path / "log.txt"
    theirs.write_text("kept")
    log = Outlet("log", path=path)
    for text in ("one\n", "two\n"):
        log.write(text)
        assert path.read_text() == text
        path.unlink()
    with log_lines("outlets") as said:
        path.symlink_to(theirs)
        Outlet("a link", path=path).write("line\n")
        path.unlink()
        os.mkfifo(path)
        Outlet("a pipe", path=path).write("line\n")
    assert [line[:17] for line in said] == ["WARNING: a link: ", "WARNING: a pipe: "]
    assert theirs.read_text() == "kept"


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    """A terminal that was stopped with Ctrl-S, a pager nobody scrolls: rank 0 would stand, and all wait."""
    reader, writer = os.pipe()
    stream = Outlet("a pipe", descriptor=writer)
    text = "".join(f"line {k:06}\n" for k in range(20_000))
    with log_lines("outlets") as said:
        stream.write(text)
    assert said == ["WARNING: a pipe: nobody reads it. The run goes on without it."]
    read = b""
    while stream.stopped:
        read += os.read(reader, 1 << 20)
        stream.flush()
    os.close(writer)
    while block := os.read(reader, 1 << 20):
        read += block
    assert read.decode() == text
    os.close(reader)


def test_a_reader_that_died_is_not_waited_for_nor_written_to() -> None:
    """Its text would fill the memory, and what a library in C prints there would fail again and again."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = Outlet("a pipe", descriptor=writer)
    stream.write("one\n")
    stream.write("two\n")
    assert not stream.stopped
    assert os.write(writer, b"three\n") == 6, "the descriptor leads nowhere now"
    os.close(writer)


def test_what_decorates_may_fail_in_any_way() -> None:
    """A picture, a curve, a report: once a warning, once that it works again. Ctrl-C is Ctrl-C."""
    with log_lines("outlets") as said:
        for error in (RuntimeError("no"), MemoryError("no"), None, None):
            with optional("the picture") as attempt:
                if error is not None:
                    raise error
            assert attempt.error is error
    assert said == [
        "WARNING: the picture: RuntimeError: no. The run goes on without it.",
        "the picture works again, after it failed 2 times.",
    ]
    with pytest.raises(KeyboardInterrupt), optional("the picture"):
        raise KeyboardInterrupt


PROGRAM = """
import sys
from pathlib import Path
from src.runtime import log
log.configure()
log.configure(log_file=Path(sys.argv[1]))
for k in range(300):
    log.get_logger("run").info(f"line {k} \\u624b \\udcff")
    print("out", file=sys.stderr, flush=True)
with open(sys.argv[2], "w") as file:
    assert file.fileno() > 2, "a file of ours got the number of a stream"
    file.write("done")
"""


def _run(folder: Path, shell: str, **env: str) -> str:
    """Run PROGRAM by a shell line; what its log.txt says."""
    (folder / "program.py").write_text(PROGRAM)
    line = f"'{sys.executable}' {folder}/program.py {folder}/log.txt {folder}/done"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = ["bash", "-o", "pipefail", "-c", shell.replace("RUN", line)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "done").read_text() == "done"
    text = (folder / "log.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("line ")]
    assert lines == [f"line {k} \u624b \\xff" for k in range(300)]
    return text


GONE = [
    ("RUN | true", "WARNING: stdout: Broken pipe."),
    ("RUN 2>&1 | head -3", "WARNING: stderr: Broken pipe."),
    ("RUN >&-", "WARNING: stdout: it was closed when the run started."),
    ("RUN 2>&-", "WARNING: stderr: it was closed when the run started."),
    ("RUN <&- >&- 2>&-", "WARNING: stderr: it was closed when the run started."),
    ("RUN > /dev/full 2>&1", "WARNING: stdout: No space left on device."),
]


@pytest.mark.parametrize(("shell", "warning"), GONE, ids=[shell for shell, _ in GONE])
def test_streams_that_are_gone_are_one_warning_in_the_log(tmp_path: Path, shell: str, warning: str) -> None:
    """`| head`, `| tee` that died, nohup without streams, a log on a full disk: the work is done."""
    text = _run(tmp_path, shell)
    assert text.count(warning) == 1, text[-300:]
    assert text.count("WARNING: stdout") <= 1


def test_any_text_can_be_printed_in_any_encoding(tmp_path: Path) -> None:
    """A name in Chinese, or none that is UTF-8, on a terminal that knows neither."""
    assert "WARNING" not in _run(tmp_path, "RUN > out.txt 2> err.txt", PYTHONIOENCODING="ascii")
    assert len((tmp_path / "out.txt").read_bytes().splitlines()) == 300
