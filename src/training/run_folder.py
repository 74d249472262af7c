"""The folder of a run: made new, or found again by --resume; the same on every rank."""

from __future__ import annotations

import time
from pathlib import Path

from src.config import RunConfig
from src.errors import AssetError, ConfigError
from src.runtime.distributed import DistContext
from src.runtime.log import get_logger
from src.training.checkpoint import find_last

_log = get_logger("run folder")


def open_run_folder(config: RunConfig, context: DistContext, resume: str | None) -> tuple[Path | None, Path]:
    """(checkpoint to go on from or None, run folder): decided by rank 0, the same on every rank."""

    def decide() -> tuple[Path | None, Path]:
        source = None if resume in (None, "auto") else Path(str(resume))
        if resume == "auto":
            source = find_last(config.logging.runs_dir, config.name)
            if source is None:
                _log.info(
                    f"--resume auto: no run called {config.name} in {config.logging.runs_dir}: a new one"
                )
        if source is not None and not source.is_file():
            raise AssetError(f"--resume {source}: no such file. Give the path of a checkpoint, or auto")
        if source is not None and source.parent.name == "checkpoints":
            return source, source.parent.parent
        return source, new_run_dir(config)

    decided = context.together("making the run folder", lambda: decide() if context.is_main else None)
    source, run_dir = context.broadcast_object(decided)
    return source, run_dir


def new_run_dir(config: RunConfig) -> Path:
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
                f"({error.strerror}). Name a folder that this user may write to"
            ) from None
        return folder
