"""The documentation names only files, symbols, commands and options that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from flows import cli
from tests.support.project import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
PLACE = re.compile(r"`((?:benchmarks|diffusion_core|flows|tasks|tests)/[\w/]+\.py)(?::(\w+))?`")


def places() -> list[tuple[Path, str, str]]:
    """Page, file and symbol (or nothing) of every `path.py` and `path.py:symbol` in the documentation."""
    return [(page, m[1], m[2] or "") for page in PAGES for m in PLACE.finditer(page.read_text(encoding="utf-8"))]


def defined(path: Path) -> set[str]:
    """The names that a module binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_files_and_symbols_exist() -> None:
    assert len(places()) > 20
    missing = [
        f"{page.name}: {file}:{symbol}"
        for page, file, symbol in places()
        if not (PROJECT / file).is_file() or (symbol and symbol not in defined(PROJECT / file))
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_tree_in_the_readme_names_every_package() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    packages = {
        path.parent.relative_to(PROJECT).parts[-1]
        for top in ("flows", "tasks", "diffusion_core")
        for path in (PROJECT / top).rglob("__init__.py")
    }
    assert not {name for name in packages if f"{name}/" not in readme}


def test_commands_and_their_options_exist() -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined] # it is a group
    wrong = []
    for page, name, rest in command_lines(r"(?<!create role )\bcontrapposto ([a-z][a-z-]+)"):
        parameters = commands[name].params if name in commands else []
        known = {"--help", *(option for parameter in parameters for option in parameter.opts)}
        if name not in commands or not set(OPTION.findall(rest)) <= known:
            wrong.append(f"{page.name}: contrapposto {name}{rest}")
    assert not wrong


def test_benchmarks_and_their_options_exist() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in PROJECT.glob("benchmarks/*.py")}
    wrong = []
    for page, name, rest in command_lines(r"\bpython -m benchmarks\.(?!NAME)(\w+)"):
        source = sources.get(name, "")
        known = source + "".join(text for other, text in sources.items() if f"benchmarks.{other} import" in source)
        if not source or not all(f'"{option}"' in known for option in OPTION.findall(rest)):
            wrong.append(f"{page.name}: python -m benchmarks.{name}{rest}")
    assert not wrong


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def command_lines(pattern: str) -> list[tuple[Path, str, str]]:
    """Page, name and arguments of the commands in the documentation, each up to the end of its code or line."""
    command = re.compile(pattern + r"([^`\n|#;&]*)")
    return [(page, m[1], m[2]) for page in PAGES for m in command.finditer(page.read_text(encoding="utf-8"))]
