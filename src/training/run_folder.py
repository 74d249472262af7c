"""The folder of a run: made new, or found again by --resume; the same on every rank."""

from __future__ import annotations

import time
from pathlib import Path

from src.config import RunConfig
from src.errors import ConfigError
from src.runtime import log
from src.runtime.distributed import DistContext
from src.training.checkpoint_folder import FOLDER, find_last, to_go_on_from

_log = log.get_logger("run folder")


def open_run_folder(config: RunConfig, context: DistContext, resume: str | None) -> tuple[Path | None, Path]:
    """(checkpoint to go on from or None, run folder): decided by rank 0, the same on every rank.

    From here on the log is also kept in the run folder.

    Args:
        config: of the run.
        context: ranks.
        resume: None, `auto`, or the path of a checkpoint.

    Raises:
        AssetError: the checkpoint cannot be read, and no other may take its place.
        ConfigError: logging.runs_dir cannot be written to.
    """

    def decide() -> tuple[Path | None, Path, str | None]:
        asked = None if resume is None else Path(resume)
        if resume == "auto":
            asked = find_last(config.logging.runs_dir, config.name)
            if asked is None:
                _log.info(
                    f"--resume auto: no run called {config.name} in {config.logging.runs_dir}: a new one"
                )
        if asked is None:
            return None, new_run_dir(config), None
        source, warning = to_go_on_from(asked)
        return source, source.parent.parent if source.parent.name == FOLDER else new_run_dir(config), warning

    decided = context.together("making the run folder", lambda: decide() if context.is_main else None)
    source, run_dir, warning = context.broadcast_object(decided)
    log.configure(rank=context.rank, log_file=run_dir / "log.txt")
    if warning is not None and context.is_main:
        _log.warning(warning)
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
