"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.runtime.files import atomic_directory, atomic_write


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A run killed while it saves must find its previous checkpoint whole."""
    path = tmp_path / "deep" / "last.pt"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_failed_folder_is_not_there(tmp_path: Path) -> None:
    """Half a data set under its final name would be trained on."""
    target = tmp_path / "set"

    def fail() -> None:
        with atomic_directory(target) as folder:
            (folder / "a").write_text("1")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own, without text
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
    assert (target / "a").read_text() == "1"
