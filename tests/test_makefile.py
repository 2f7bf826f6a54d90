"""The Makefile: setting up after failed attempts, and arguments with quotes and dollar signs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PROJECT

# A Python 3.10: it runs, and it is too old.
OLD_PYTHON = '#!/bin/sh\ncase "$1" in -c) exit 1;; esac\n'
# Debian's Python without the package python3-venv: `-m venv` fails and leaves an environment without pip.
PYTHON_WITHOUT_VENV = f"""\
#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then {sys.executable} -m venv --without-pip .venv; exit 1; fi
exec {sys.executable} "$@"
"""
PRINTS_ARGUMENTS = '#!/bin/sh\nfor argument in "$@"; do printf "%s\\n" "$argument"; done\n'


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "RAW"}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "Anna's project (1)"
    root.mkdir()
    shutil.copy(PROJECT / "Makefile", root)
    (root / "pyproject.toml").touch()
    (root / "constraints.txt").touch()
    return root


def _usable(folder: Path) -> bool:
    python = folder / ".venv/bin/python"
    code = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def test_an_old_python_is_refused_and_its_environment_is_replaced(folder: Path, tmp_path: Path) -> None:
    old = _script(tmp_path / "old", OLD_PYTHON)
    result = _make(folder, "venv", f"PYTHON={old}")
    assert result.returncode == 2 and "not Python 3.11 or newer" in result.stderr
    assert not (folder / ".venv").exists()
    _script(folder / ".venv/bin/python", OLD_PYTHON)
    assert _make(folder, "venv", f"PYTHON={sys.executable}").returncode == 0
    assert _usable(folder)


def test_an_environment_without_pip_is_not_left_behind_and_is_repaired(folder: Path, tmp_path: Path) -> None:
    broken = _script(tmp_path / "broken", PYTHON_WITHOUT_VENV)
    result = _make(folder, "venv", f"PYTHON={broken}")
    assert result.returncode == 2 and "python3-venv" in result.stderr
    assert not (folder / ".venv").exists()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=folder, check=True)
    (folder / ".venv/kept").touch()
    assert _make(folder, "venv", f"PYTHON={sys.executable}").returncode == 0
    assert _usable(folder) and (folder / ".venv/kept").exists()


@pytest.mark.parametrize("name", ["100%", "why?"])
def test_a_folder_in_which_mlflow_cannot_work_is_refused_before_anything_is_installed(folder: Path, name: str) -> None:
    odd = folder.rename(folder.with_name(name))
    result = _make(odd, "venv", f"PYTHON={sys.executable}")
    assert result.returncode == 2 and "move this project" in result.stderr
    assert not (odd / ".venv").exists()


def _installed(folder: Path, python: str = PRINTS_ARGUMENTS) -> None:
    """A complete installation as make sees it, whose Python prints its arguments."""
    (folder / "models").mkdir()
    _script(folder / ".venv/bin/python", python)
    (folder / ".venv/bin/.installed").write_text(f"{folder.resolve()}\n")
    (folder / "models/pose_landmarker_full.task").touch()


@pytest.mark.parametrize("raw", ["Anna's photos", 'a "b" c', "$HOME/$(x)/${y}", "a;b&c|d", "-x", "a  b", "mannequin"])
def test_raw_reaches_the_command_unchanged(folder: Path, raw: str) -> None:
    _installed(folder)
    result = _make(folder, "train-poses", f"RAW={raw}")
    assert result.stdout.splitlines() == ["-m", "flows", "train-poses", f"--raw={raw}"], result.stderr
    assert _make(folder, "train-poses").stdout.splitlines() == ["-m", "flows", "train-poses"]


def test_a_moved_project_is_installed_again(folder: Path) -> None:
    _installed(folder)
    assert _make(folder, "--question", "setup").returncode == 0
    moved = folder.rename(folder.with_name("moved"))
    assert _make(moved, "--question", "setup").returncode == 1
