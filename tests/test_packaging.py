"""What an installation brings: the command `contrapposto`, and every library that the packages import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from itertools import chain
from pathlib import Path

import pytest

from flows import cli
from tests.support.project import PROJECT

PACKAGES = ("flows", "tasks", "diffusion_core")


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="contrapposto")
    assert script.load() is cli.main
    command = [str(Path(sys.executable).parent / "contrapposto"), "--help"]
    assert "certify" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_library_that_is_imported_is_declared(package: str) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: libraries for name, libraries in project["optional-dependencies"].items() if name != "dev"}
    declared = {_name(line) for line in chain(project["dependencies"], *extras.values())}
    providers = packages_distributions()
    missing = {
        module
        for module in set(_imported(PROJECT / package))
        if not {_name(name) for name in providers[module]} & declared
    }
    assert missing == set()


def _name(requirement: str) -> str:
    """The normalised name of a distribution, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def _imported(folder: Path) -> Iterator[str]:
    """The top-level modules of libraries that the files of a package import, anywhere in a file."""
    own = {*sys.stdlib_module_names, *PACKAGES}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            yield from (top for top in (name.partition(".")[0] for name in names) if top not in own)
