"""UTNet is not installed with pip: `pip install .` and its like end here, with what to do instead.

It is a program that runs from its folder: its packages are named `src` and `dataloader`, which would stand at
the top of everybody's site-packages. `[build-system]` of pyproject.toml names this module; whatever hook pip,
build or uv asks it for, it has the same answer.
"""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    """Asked for a hook, say what to do."""
    raise SystemExit(
        "UTNet is no package for pip: it runs from its own folder, and its modules would take names such as "
        "src and dataloader from everybody. Nothing was installed. Run `make setup` there (an environment in "
        ".venv), or `pip install -r requirements.txt` into one of yours, and start train.py in that folder"
    )
