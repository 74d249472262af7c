"""Files that other people wrote, as nobody should write them: each is one line, little memory, little time.

The cases of a kind run one after the other in a process of their own, whose memory and CPU time the system
bounds. Beside its folder stands one that nothing may touch.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import UTNetError
from src.runtime.outlet import Guard
from tests.end_to_end.inputs import hostile_files, hostile_labels
from tests.end_to_end.inputs.hostile_labels import written
from tests.hand_file import hand_file

KINDS = hostile_labels.KINDS | hostile_files.KINDS
MOST_BYTES = 256 << 20
CPU_S = 5
"""No expectation: a case takes some milliseconds, and an attack that works takes minutes or hours."""
WAIT_S = 120.0


def _memory(name: str) -> int:
    """Bytes of this process, as the system counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def attack(kind: str, folder: Path) -> None:
    """Run the cases of a kind; what becomes of each goes into `folder`/said.jsonl at once."""
    torch.set_num_threads(1)
    # An allocation of more fails; what fits is compared with MOST_BYTES by what was touched.
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MOST_BYTES,) * 2)
    with (folder / "said.jsonl").open("a", encoding="utf-8") as said:
        for number, (name, case) in enumerate(KINDS[kind].items()):
            place, before = folder / f"case {number}", _memory("VmRSS")
            place.mkdir()
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process
            text = "no error"
            with Guard() as guard:
                case(place)
            if (error := guard.error) is not None:
                whose = "" if isinstance(error, UTNetError) else "traceback: "
                text = f"{whose}{type(error).__name__}: {error}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            peak = max(0, _memory("VmHWM") - before)
            said.write(json.dumps({"case": name, "text": text, "peak": peak}) + "\n")
            said.flush()


def _tree(folder: Path) -> list[tuple[str, int, int, int]]:
    """Names, sizes and times below a folder."""
    found = [(str(p), p.lstat()) for p in sorted(folder.rglob("*"))]
    return [(name, status.st_mode, status.st_size, status.st_mtime_ns) for name, status in found]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of each case; all kinds at once."""
    hand_file()  # made before anybody is attacked
    outside = tmp_path_factory.mktemp("outside")  # where a name with .. leads from a case's folder
    written(outside, "theirs.txt", b"of somebody else\n")
    before = _tree(outside)
    context = multiprocessing.get_context("forkserver")
    folders = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    attacks = [context.Process(target=attack, args=item, name=item[0]) for item in folders.items()]
    for process in attacks:
        process.start()
    for process in attacks:
        process.join(WAIT_S)
        if process.is_alive():
            process.kill()
            process.join()
    assert _tree(outside) == before
    found = {}
    for kind, folder in folders.items():
        assert {p.name.rstrip("0123456789") for p in folder.iterdir()} == {"case ", "said.jsonl"}
        for line in (folder / "said.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[kind, row["case"]] = row
    return found


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in KINDS.items() for name in cases])
def test_one_line_and_little_memory(
    said: dict[tuple[str, str], dict[str, Any]], kind: str, name: str
) -> None:
    """A hang, a traceback or a machine out of memory is what a stranger's file would cost a night."""
    row = said.get((kind, name))
    assert row is not None, f"it took more than {CPU_S} s of CPU or ended the process"
    text = row["text"]
    assert not text.startswith(("no error", "traceback")), text
    assert text.isprintable(), text  # one line, and nothing that a terminal obeys
    assert len(text) < 1500, text
    assert row["peak"] < MOST_BYTES, f"{row['peak'] >> 20} MiB"
    if kind == "scalars":
        assert text == "UTNetError: kept steps [1, 3, 4]"
