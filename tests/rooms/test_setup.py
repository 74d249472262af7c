"""What a newcomer meets first: `make setup`, and pip, which is not how this program is installed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rooms.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FIRST, LAST = (int(minor) for minor in re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"]))
NEED = f"UTNet needs Python 3.{FIRST} to 3.{LAST - 1}"
HOOKS = [
    f"{kind}{what}"
    for what in ("sdist", "wheel", "editable")
    for kind in ("build_", "get_requires_for_build_")
]
CHECK = ".ci/check_python"
NOT_FOR_PIP = "UTNet is no package for pip"


class Machine:
    """A copy of what `make setup` needs, and a PATH of made-up commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder / "utnet", folder / "bin"
        self.commands.mkdir()
        for name in ("sh", "sed"):
            (self.commands / name).symlink_to(shutil.which(name) or name)
        for name in (
            "Makefile",
            "pyproject.toml",
            "requirements.txt",
            "requirements-dev.txt",
            ".ci/check_python",
        ):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)

    def python(self, name: str, version: str, *, environments: bool = True, at: Path | None = None) -> None:
        """A command that says it is this Python, and goes no further than the look at it."""
        path = (at or self.commands) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *version_info*) echo "utnet {version}" ;;\n'
            f"*ensurepip*|*--version*) exit {int(not environments)} ;;\n"
            '*) echo "goes on with: $*"; exit 7 ;; esac\n'
        )
        path.chmod(0o755)

    def setup(self, *variables: str) -> str:
        """What `make setup` says; the echo of commands that went on is part of it."""
        done = subprocess.run(
            [shutil.which("make") or "make", "setup", *variables],
            cwd=self.folder,
            env={"PATH": str(self.commands)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2  # make's own, whatever failed
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_python_that_does_not_run_is_answered_with_one_that_does(machine: Machine) -> None:
    """`Use: make PYTHON=python3.12 setup` was the answer to `make PYTHON=python3.12 setup`."""
    (machine.commands / "python3.12").write_text(
        "#!/bin/sh\necho 'shim: python3.12: not found' >&2\nexit 127\n"
    )
    (machine.commands / "python3.12").chmod(0o755)
    (machine.commands / "locked").write_text("#!/bin/sh\n")
    (machine.commands / "locked").chmod(0o644)
    (machine.commands / "silent").write_text("#!/bin/sh\n")
    (machine.commands / "silent").chmod(0o755)
    machine.python("python3.11", "3.11")
    machine.python("python3", "3.10")
    why = {
        "python3.12": "does not run here (shim: python3.12: not found)",
        "nowhere/python": "does not run here (there is no such command)",
        "silent": "does not run here (it says nothing)",
        str(machine.commands / "locked"): "does not run here (",
        str(machine.folder): "does not run here (",
        "": "PYTHON is empty",
    }
    for command, said in why.items():
        answer = machine.setup(f"PYTHON={command}")
        assert said in answer
        assert NEED in answer
        assert "Use: make PYTHON=python3.11 setup\n" in answer
        assert "goes on with" not in answer


@pytest.mark.parametrize("version", [f"3.{FIRST - 1}", "2.7", f"3.{LAST}", "4.12"])
def test_a_python_out_of_bounds_is_not_used(machine: Machine, version: str) -> None:
    """An environment of a Python that no wheel is made for ends in pages of a compiler's errors."""
    machine.python("python3", version)
    answer = machine.setup()
    assert f"{NEED}; python3 is {version}. No other Python 3.{FIRST} to 3.{LAST - 1} is on the PATH" in answer
    machine.python(f"python3.{LAST - 1}", f"3.{LAST - 1}")
    assert f"{NEED}; python3 is {version}. Use: make PYTHON=python3.{LAST - 1} setup\n" in machine.setup()


def test_a_python_without_ensurepip_says_what_to_install(machine: Machine) -> None:
    """Debian keeps it in a package of its own; the environment was left half made, and stayed so."""
    machine.python("python3", "3.12", environments=False)
    machine.python("python3.13", "3.13", environments=False)
    answer = machine.setup()
    assert "python3 is 3.12 but cannot make an environment" in answer
    assert "apt-get install python3.12-venv" in answer
    assert "No other Python" in answer
    assert not (machine.folder / ".venv").exists()


@pytest.mark.parametrize("version", [f"3.{FIRST}", f"3.{LAST - 1}"])
def test_a_python_that_fits_goes_on(machine: Machine, version: str) -> None:
    """The bounds themselves are inside; a half-made environment is made anew."""
    machine.python("python3", version)
    (machine.folder / ".venv" / "bin").mkdir(parents=True)
    (machine.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    answer = machine.setup()
    assert "goes on with: -m venv --clear .venv" in answer
    assert NEED not in answer


def test_an_old_environment_is_not_kept(machine: Machine) -> None:
    """The new Python fits, the environment that is there does not: pip would fail in it."""
    machine.python("python3", "3.12")
    machine.python("python", "3.9", at=machine.folder / ".venv" / "bin")
    assert f"{NEED}; .venv is of 3.9. Remove it: make clean\n" in machine.setup()


def test_an_environment_that_is_there_does(machine: Machine) -> None:
    """Made with PYTHON=..., once: new requirements must not ask again, where python3 is another one."""
    machine.python("python3", "3.9")
    machine.python("python", "3.12", at=machine.folder / ".venv" / "bin")
    assert "goes on with: -m pip install" in machine.setup()
    assert f"{NEED}; python3 is 3.9. " in machine.setup("PYTHON=python3")  # asked for by name


def test_readme_names_the_versions_that_are_checked() -> None:
    """One place says them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"Python (3\.\d+ to 3\.\d+)", text)) == {f"3.{FIRST} to 3.{LAST - 1}"}


def test_pip_installs_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    """It spread config.py, models/ and tools/ over everybody's site-packages, and called that a success."""
    given = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*given, "--target", str(tmp_path / "there"), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count(NOT_FOR_PIP) == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("there/*"))


@pytest.mark.parametrize("hook", HOOKS)
def test_no_other_way_of_building_is_open(hook: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`pip install -e`, `pip wheel`, a source distribution: every hook of PEP 517 and 660 answers so."""
    build = PROJECT["build-system"]
    assert build["requires"] == []  # the answer must not need the network
    path = ROOT / build["backend-path"][0] / f"{build['build-backend']}.py"
    spec = importlib.util.spec_from_file_location("backend", path)
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    with pytest.raises(SystemExit, match=rf"{NOT_FOR_PIP}.*make setup.*pip install -r requirements\.txt"):
        getattr(backend, hook)
