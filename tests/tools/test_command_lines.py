"""What holds for every command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from dataloader.synthetic import __main__ as synthetic
from dataloader.synthetic.hand import __main__ as standin
from src.config import LoggingConfig, RunConfig
from src.config_file import config_to_dict
from src.errors import UTNetError
from src.tools import compare, doctor, export_submission, learned
from tests.checkpoints import write_checkpoint

LEARNED = ["--run", "a", "--held-out", "b", "--random", "c"]


def test_an_option_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As for settings, wherever the two stand on the line."""
    lines: list[tuple[Callable[[list[str]], object], list[str], str]] = [
        (train.parse_arguments, ["--config", "a", "seed=1", "--config=b"], "--config"),
        (train.parse_arguments, ["--resume", "auto", "--resume", "auto"], "--resume"),
        (doctor.parse_arguments, ["--config", "a", "--steps", "5", "seed=1", "--steps", "5"], "--steps"),
        (synthetic.main, ["--out", "a", "--seed", "0", "--seed", "0"], "--seed"),
        (standin.main, ["--out", "a", "--out", "b"], "--out"),
        (compare.main, ["a", "b", "--metric", "x", "--metric", "y"], "--metric"),
        (learned.main, ["--run", "a", "--held-out", "b", "--run", "a"], "--run"),
        (export_submission.parse_arguments, ["--checkpoint", "a", "--checkpoint", "b"], "--checkpoint"),
    ]
    for parse, given, option in lines:
        with pytest.raises(SystemExit) as left:
            parse(given)
        assert left.value.code == 2
        assert f"{option} is given twice, keep one" in capsys.readouterr().err
    line = ["seed=1", "--config", "a", "name=x", "--evaluate", "b", "split.by=frame"]
    assert train.parse_arguments(line).overrides == ["seed=1", "name=x", "split.by=frame"]


def test_the_doctor_takes_the_settings_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint looked at with the settings of another run looks ill; with none named there are none."""
    seen: list[RunConfig] = []
    monkeypatch.setattr("src.runtime.log.configure", lambda **_: None)
    monkeypatch.setattr(doctor, "examine", lambda config, _: seen.append(config) or iter(()))
    kept = config_to_dict(RunConfig(name="theirs", logging=LoggingConfig(runs_dir=Path("/theirs"))))
    path = write_checkpoint(tmp_path / "a.pt", config=kept)
    assert doctor.main(["seed=3", "--checkpoint", str(path)]) == 0
    assert seen == [RunConfig(name="theirs", seed=3)]
    with pytest.raises(SystemExit) as left:
        doctor.main(["--leaks"])
    assert left.value.code == 2
    assert "give --config, or --checkpoint" in capsys.readouterr().err


def test_every_tool_looks_where_it_writes_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes of pictures or predictions were made first, and then there was no place for them."""
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("src.runtime.log.configure", lambda **_: None)
    asked: list[tuple[Callable[[list[str]], int], list[str], str, str, str]] = [
        (synthetic.main, ["--out"], "folder", "dataloader.synthetic.__main__._hand", "is not empty"),
        (synthetic.main, ["--out"], "file", "dataloader.synthetic.__main__._hand", "is a file"),
        (synthetic.main, ["--out"], "file/x", "dataloader.synthetic.__main__._hand", "Not a directory"),
        (
            standin.main,
            ["--out"],
            "file/x.pkl",
            "dataloader.synthetic.hand.standin.build_standin",
            "Not a directory",
        ),
        (
            compare.main,
            ["a.npz", "b.npz", "--out"],
            "folder.html",
            "src.tools.compare.read_column",
            "is a folder",
        ),
        (
            export_submission.main,
            ["--checkpoint", "a", "--out"],
            "file",
            "src.tools.export_submission.open_checkpoint",
            "Not a directory",
        ),
    ]

    def work(*_: object, **__: object) -> None:
        raise AssertionError("it works already")

    for main, given, out, begins, said in asked:
        with monkeypatch.context() as patch:
            patch.setattr(begins, work)
            assert main([*given, str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(tmp_path / out) in error
        assert said in error
    assert {p.name for p in tmp_path.rglob("*")} == {"folder", "x", "folder.html", "file"}


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (compare.main, ["nowhere.npz", "nowhere.npz"]),
        (export_submission.main, ["--checkpoint", "nowhere.pt"]),
        (learned.main, LEARNED),
        (doctor.main, ["--checkpoint", "nowhere.pt"]),
    ],
)
def test_an_error_is_one_line_and_its_traceback_is_a_variable_away(
    main: Callable[[list[str]], int],
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """README: status 2 and one line; who mends the program itself sets UTNET_TRACE=1, of whatever tool."""
    monkeypatch.setattr("src.runtime.log.configure", lambda **_: None)
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"(Asset|Config|Data)Error: ", line)
    monkeypatch.setenv("UTNET_TRACE", "1")
    with pytest.raises(UTNetError):
        main(given)
