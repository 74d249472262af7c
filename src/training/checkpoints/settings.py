"""The settings kept in a checkpoint, for a command that is given no --config.

They say what is read, and a line says what they say. Where anything is written (`config_file.WRITTEN_TO`) is
decided by the command line, by a file named on it or by the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from src.config import DERIVED_FOLDER, RunConfig
from src.config_file import WRITTEN_TO, config_from_dict, config_to_dict, load_config
from src.errors import AssetError, ConfigError
from src.runtime.log import get_logger
from src.training.checkpoints.checkpoint import load_checkpoint
from src.training.checkpoints.folder import instead_of, open_checkpoint

DEFAULT_CONFIG = Path("config/config.yaml")
"""Of a command that names neither a configuration nor a checkpoint."""
_log = get_logger("settings")


@dataclass(frozen=True)
class Settings:
    """What a command works with, and where it is from."""

    config: RunConfig
    origin: str | None = None
    """What was taken from a checkpoint, in a line; None: nothing was."""

    def log(self) -> None:
        """Say it."""
        if self.origin is not None:
            _log.info(self.origin)


def command_settings(
    config_file: Path | None,
    overrides: Sequence[str],
    *,
    evaluate: Path | None = None,
    resume: str | None = None,
) -> Settings:
    """The settings of a command, each named or left out on its command line.

    Args:
        config_file: --config, which wins over a checkpoint's own settings.
        overrides: `section.key=value`; they win over all others.
        evaluate: checkpoint that is to be looked at; it is read only where no --config is given.
        resume: `auto`, or the checkpoint that is to be gone on from; nothing is renamed here.

    Raises:
        AssetError: the checkpoint cannot be read.
        ConfigError: as of `load_config`; what is wrong in the checkpoint names it.
    """
    path = evaluate if resume in (None, "auto") else Path(str(resume))
    if config_file is not None or path is None:
        return Settings(load_config(config_file or DEFAULT_CONFIG, overrides))
    try:
        state = open_checkpoint(path, mapped=True) if evaluate else load_checkpoint(path, mapped=True)
    except AssetError as error:
        if evaluate:
            raise
        path = instead_of(path, error).path
        state = load_checkpoint(path, mapped=True)
    kept = state["config"]
    origin = f"checkpoint {path}"
    try:
        config = config_from_dict(kept, origin, overrides)
    except ConfigError as error:
        remedy = ". Name a configuration with --config FILE" if origin in str(error) else ""
        raise ConfigError(f"{error}{remedy}") from None
    config = _with_own_index(config, overrides)
    return Settings(config, _origin(kept, config, path, overrides))


def _with_own_index(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """What is made of data that the checkpoint alone names goes where the command writes, unless a folder for
    it stands there already: whoever sends a checkpoint would choose where folders are made.
    """
    data, named = config.dataset, any(o.partition("=")[0].strip() == "dataset.root_dir" for o in overrides)
    beside = data.root_dir / DERIVED_FOLDER
    has_one = beside.is_dir() and not beside.is_symlink()
    if data.index_dir is not None or named or has_one or data.root_dir == RunConfig().dataset.root_dir:
        return config
    return replace(config, dataset=replace(data, index_dir=config.logging.runs_dir / DERIVED_FOLDER))


def _origin(kept: Mapping[str, Any], config: RunConfig, path: Path, overrides: Sequence[str]) -> str:
    """One line: the paths that are used, what the command line changed, what was not taken."""
    now = config_to_dict(config)
    text = f"No --config: the settings are those kept in {path}: " + ", ".join(_paths(config))
    if overrides:
        text += f"; by the command line {', '.join(overrides)}"
    given = {override.partition("=")[0].strip() for override in overrides}
    if config.dataset.index_dir is not None and "dataset.index_dir" not in given:
        text += f"; what is made of the data goes to {str(config.dataset.index_dir)!r}"
    left = []
    for key in sorted(set(WRITTEN_TO) - given):
        section, _, name = key.partition(".")
        there = kept.get(section)
        was, value = there.get(name) if isinstance(there, Mapping) else None, now[section][name]
        if was is not None and was != value:
            left.append(f"{key}={was!r} (here {value!r})")
    if left:
        text += f"; not taken, because it says where is written: {', '.join(left)}"
    return text


def _paths(config: RunConfig) -> Iterator[str]:
    """`key=value` of each file or folder that a configuration names for reading."""
    for section in fields(config):
        values = getattr(config, section.name)
        for name, value in vars(values).items() if hasattr(values, "__dataclass_fields__") else ():
            key = f"{section.name}.{name}"
            if isinstance(value, Path) and key not in WRITTEN_TO:
                yield f"{key}={str(value)!r}"
