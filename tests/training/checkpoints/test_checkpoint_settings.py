"""Commands without --config: a checkpoint says what is read, and nothing about where to write."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import train
from src.config import RunConfig
from src.config_file import config_to_dict, load_config
from src.errors import AssetError, UTNetError
from src.training.checkpoints.settings import Settings, command_settings
from tests.checkpoints import write_checkpoint

SENT = {
    "name": "theirs",
    "seed": 7,
    "dataset": {"root_dir": "data/\x1b[2Jtheirs", "cache": "/their/cache", "index_dir": "/their/index"},
    "training": {"num_epochs": 9},
    "logging": {"runs_dir": "/their/runs", "every": 3},
}


def write(path: Path, settings: Mapping[str, Any] = SENT) -> Path:
    """A checkpoint with these settings, the others as they are by default."""
    kept: dict[str, Any] = config_to_dict(RunConfig())
    for name, value in settings.items():
        kept[name] = {**kept[name], **value} if isinstance(value, dict) and name != "name" else value
    return write_checkpoint(path, config=kept)


def test_a_checkpoint_decides_nothing_about_where_is_written(tmp_path: Path) -> None:
    """Whoever downloads a checkpoint would write its index, crops and run folders where its author wants."""
    path = write(tmp_path / "best.pt")
    settings = command_settings(None, ["training.num_epochs=2"], evaluate=path)
    assert command_settings(None, ["training.num_epochs=2"], resume=str(path)) == settings
    config, said = settings.config, str(settings.origin)
    assert (config.name, config.seed, config.logging.every, config.training.num_epochs) == ("theirs", 7, 3, 2)
    assert (str(config.logging.runs_dir), str(config.dataset.index_dir)) == ("runs", "runs/.utnet")
    assert said.startswith(f"No --config: the settings are those kept in {path}: dataset.root_dir='data/")
    assert "mano.model_path='data/mano/MANO_RIGHT.pkl'; by the command line training.num_epochs=2;" in said
    assert said.endswith(
        "; not taken, because it says where is written: dataset.cache='/their/cache' (here 'off'), "
        "dataset.index_dir='/their/index' (here 'runs/.utnet'), "
        "logging.runs_dir='/their/runs' (here 'runs')"
    )
    assert said.isprintable(), "the name of a folder could steer the terminal that shows the log"
    mine = command_settings(None, ["logging.runs_dir=my", "dataset.cache=auto"], evaluate=path)
    assert (str(mine.config.logging.runs_dir), mine.config.dataset.cache) == ("my", "auto")
    assert "/their/runs" not in str(mine.origin)


@pytest.mark.parametrize(
    ("made", "given", "place"),
    [
        (None, (), "runs/.utnet"),
        ("link", (), "runs/.utnet"),
        ("folder", (), None),
        (None, ("dataset.root_dir={data}",), None),
        (None, ("logging.runs_dir=mine",), "mine/.utnet"),
        (None, ("dataset.index_dir=there",), "there"),
    ],
)
def test_an_index_is_made_where_the_command_line_or_the_data_has_its_place(
    tmp_path: Path, made: str | None, given: tuple[str, ...], place: str | None
) -> None:
    """Beside the data by default; but a folder that only a checkpoint names is not written to."""
    data = tmp_path / "data"
    data.mkdir()
    if made == "folder":
        (data / ".utnet").mkdir()
    if made == "link":
        (data / ".utnet").symlink_to(tmp_path)
    path = write(tmp_path / "best.pt", {"dataset": {"root_dir": str(data), "index_dir": None}})
    settings = command_settings(None, [text.format(data=data) for text in given], evaluate=path)
    assert settings.config.dataset.index_dir == (None if place is None else Path(place))
    if place == "runs/.utnet":
        assert "; what is made of the data goes to 'runs/.utnet'" in str(settings.origin)


def test_a_named_file_wins_over_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is not read for settings then. Without one, as for --resume auto, the default file says what is
    meant.
    """
    path, file = write(tmp_path / "best.pt", {"of": "others"}), tmp_path / "mine.yaml"
    file.write_text("name: mine\nseed: 1\ndataset: {index_dir: my/index}\n")
    wanted = Settings(load_config(file, ["seed=2"]))
    assert command_settings(file, ["seed=2"], evaluate=path) == wanted
    assert command_settings(file, ["seed=2"], resume=str(path)) == wanted
    monkeypatch.setattr("src.training.checkpoints.settings.DEFAULT_CONFIG", file)
    assert [command_settings(None, ["seed=2"], resume=r) for r in (None, "auto")] == [wanted] * 2


def test_a_damaged_last_checkpoint_is_stood_for_by_the_one_that_goes_on(tmp_path: Path) -> None:
    """--resume PATH goes on from another file and must not stop at the settings; --evaluate must."""
    last = write(tmp_path / "checkpoints" / "last.pt")
    shutil.copy(last, last.with_name("best.pt"))
    last.write_bytes(last.read_bytes()[:-9])
    settings = command_settings(None, [], resume=str(last))
    assert settings.config.seed == 7
    assert f"kept in {last.with_name('best.pt')}: " in str(settings.origin)
    assert last.exists(), "ranks that come later must find what this one found"
    with pytest.raises(AssetError, match=r"last\.pt is no whole file.*Whole ones beside it"):
        command_settings(None, [], evaluate=last)


@pytest.mark.parametrize(
    ("kept", "given", "message"),
    [
        (
            {"dataset": {"rot_dir": "x"}},
            [],
            r"checkpoint .*best\.pt: dataset\.rot_dir: unknown key.*Name a configuration with --config FILE$",
        ),
        ({"name": {"a": {"b": 1}}}, [], r"checkpoint .*best\.pt: name\.a: name is a value"),
        ({"seed": "7"}, [], r"best\.pt is not what this program writes: config is not a configuration"),
        (SENT, ["sed=2"], r"^command line: sed: unknown key, did you mean seed\?$"),
    ],
)
def test_settings_that_are_none_are_a_line(tmp_path: Path, kept: Any, given: list[str], message: str) -> None:
    """A checkpoint of another program is refused with what to do; a fault of the command line is not its."""
    with pytest.raises(UTNetError, match=message):
        command_settings(None, given, evaluate=write(tmp_path / "best.pt", kept))


def test_print_config_shows_the_settings_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a command would work with can be looked at before it works."""
    path, shown = write(tmp_path / "a.pt", {"name": "theirs"}), tmp_path / "shown.yaml"
    assert train.main(["seed=3", "--evaluate", str(path), "--print-config"]) == 0
    shown.write_text(capsys.readouterr().out)
    assert load_config(shown) == RunConfig(name="theirs", seed=3)
