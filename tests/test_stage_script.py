"""`stage.sh`, the command of every stage: it finds the project's Python, or says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PROJECT

WITHOUT_PACKAGES = "#!/bin/sh\nexit 1\n"
SHOWS_ARGUMENTS = '#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho "$0" "$@"\nexit 3\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "stage.sh", tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def _python(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", "stage.sh", "train", "poses"]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder / "bin")}, capture_output=True, text=True)


def test_without_the_packages_it_says_what_to_do(folder: Path) -> None:
    assert (_run(folder).returncode, _run(folder).stdout) == (2, "")
    _python(folder / "bin/python", WITHOUT_PACKAGES)
    result = _run(folder)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("contrapposto: ") and "make setup" in result.stderr and result.stderr.count("\n") == 1
    )


def test_the_environment_of_the_project_is_used_without_activating_it(folder: Path) -> None:
    _python(folder / "bin/python", WITHOUT_PACKAGES)
    _python(folder / ".venv/bin/python", SHOWS_ARGUMENTS)
    result = _run(folder)
    assert (result.returncode, result.stdout) == (3, ".venv/bin/python -m tasks train poses\n")


def test_an_active_environment_comes_first(folder: Path) -> None:
    _python(folder / "bin/python", SHOWS_ARGUMENTS)
    _python(folder / ".venv/bin/python", WITHOUT_PACKAGES)
    assert _run(folder).stdout.endswith("bin/python -m tasks train poses\n")


def test_this_python_has_the_packages() -> None:
    environment = {"PATH": str(Path(sys.executable).parent)}
    command = ["/bin/sh", "stage.sh", "--help"]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "usage: python -m tasks" in result.stdout
