"""Bad input: one clear line on stderr, status 2, no traceback, no run that pretends."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Embedded


def first_frame(root: Path, kind: str) -> Path:
    return sorted((root / "train").glob(f"*/{kind}/*"))[0]


def no_data(root: Path) -> None:
    shutil.rmtree(root)


def no_list(root: Path) -> None:
    (root / "train.txt").unlink()


def empty_list(root: Path) -> None:
    (root / "train.txt").write_text("")


def torn_picture(root: Path) -> None:
    for path in (root / "train").glob("*/rgb/*"):
        path.write_bytes(path.read_bytes()[:100])


def torn_meta(root: Path) -> None:
    path = first_frame(root, "meta")
    path.write_bytes(path.read_bytes()[:-40])


def hostile_meta(root: Path) -> None:
    first_frame(root, "meta").write_bytes(pickle.dumps({"camMat": os.getcwd}))


def other_hand(root: Path) -> None:
    for path in (root / "train").glob("*/meta/*"):
        meta = pickle.loads(path.read_bytes())
        meta["handJoints3D"] = meta["handJoints3D"] * 1.05
        path.write_bytes(pickle.dumps(meta, protocol=2))


def byte_order_mark(root: Path) -> None:
    path = root / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"nonsense\n")


def missing_frame(root: Path) -> None:
    first_frame(root, "rgb").unlink()


CASES: list[tuple[Callable[[Path], None] | None, list[str], list[str]]] = [
    (no_data, [], ["DataError", "HO3D", "dataset.root_dir"]),
    (no_list, [], ["DataError", "train.txt"]),
    (empty_list, [], ["DataError", "train.txt"]),
    (torn_picture, [], ["DataError", ".jpg"]),
    (torn_meta, [], ["DataError", "1 of 48", ".pkl", "dataset.max_unusable=1"]),
    (hostile_meta, [], ["DataError", "getcwd"]),
    (missing_frame, [], ["DataError", ".jpg"]),
    (other_hand, [], ["DataError", "mm from what the hand model decodes", "mano.model_path is not the hand"]),
    (byte_order_mark, [], ["DataError", "line 49: got 'nonsense'"]),
    (None, ["logging.runs_dir=README.md"], ["ConfigError", "logging.runs_dir=README.md"]),
    (None, ["logging.runs_dir=README.md/runs"], ["ConfigError", "no run folder can be made"]),
    (
        None,
        ["mano.model_path=nowhere/MANO_RIGHT.pkl"],
        ["AssetError", "nowhere/MANO_RIGHT.pkl", "mano.is.tue.mpg.de"],
    ),
    (None, ["--evaluate", "nowhere.pt"], ["AssetError", "nowhere.pt", "no such file"]),
    (None, ["--resume", "nowhere.pt"], ["AssetError", "nowhere.pt", "no such file"]),
    (None, ["training.batchsize=3"], ["ConfigError", "did you mean training.batch_size"]),
    (None, ["training.batch_size=1000"], ["ConfigError", "training.batch_size"]),
    (None, ["dataset.expected_train_frames=83325"], ["DataError", "83,325"]),
    (None, ["runtime.device=cuda"], ["ConfigError", "runtime.device"]),
    (None, ["validation.split=evaluation"], ["ConfigError", "--evaluate CKPT validation.split=evaluation"]),
]


@pytest.mark.parametrize(
    ("spoil", "arguments", "parts"), CASES, ids=[c[0].__name__ if c[0] else c[1][0][:24] for c in CASES]
)
def test_one_line_and_status_two(
    embedded: Embedded,
    tmp_path: Path,
    spoil: Callable[[Path], None] | None,
    arguments: list[str],
    parts: list[str],
) -> None:
    """A user learns what is wrong, where, and what to do, from one line; without labels nothing is scored."""
    if "runtime.device=cuda" in arguments and os.path.exists("/dev/nvidia0"):  # noqa: PTH110
        pytest.skip("this machine has a GPU")
    data = embedded
    if spoil is not None:
        data = Embedded(tmp_path / "HO3D", embedded.hand, tmp_path / "runs")
        shutil.copytree(embedded.root, data.root, ignore=shutil.ignore_patterns(".utnet"))
        spoil(data.root)
    done = data.main(*arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert "Evaluated on" not in done.stdout
    for part in parts:
        assert part in lines[0]


def test_one_ranks_torn_picture_ends_all_ranks_in_lines(embedded: Embedded, tmp_path: Path) -> None:
    """One unreadable picture of one rank: its line says which, the others that a rank is lost; all end."""
    data = Embedded(tmp_path / "HO3D", embedded.hand, tmp_path / "runs")
    shutil.copytree(embedded.root, data.root, ignore=shutil.ignore_patterns(".utnet"))
    for path in sorted((data.root / "train").glob("*/rgb/*"))[::12]:
        path.write_bytes(path.read_bytes()[:100])
    done = data.main("training.batch_size=2", "split.by=frame", "dataset.num_workers=1", ranks=2)
    assert done.returncode != 0
    assert ".jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_scoring_possible_training_samples_is_said_aloud(embedded: Embedded) -> None:
    """A score on samples that were trained on looks splendid and means nothing."""
    trained = embedded.main("name=leak", "training.num_epochs=1", "training.max_steps_per_epoch=1")
    assert trained.returncode == 0, trained.stderr
    path = str(embedded.newest("leak") / "checkpoints" / "last.pt")
    same = embedded.main("name=same", "--evaluate", path)
    other = embedded.main("name=other", "--evaluate", path, "split.by=frame")
    assert "WARNING" not in same.stdout
    assert "WARNING: the checkpoint was trained on another training split" in other.stdout
    assert "Changed since the checkpoint: split.by: sequence -> frame" in other.stdout
