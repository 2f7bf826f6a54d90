"""The layout of the tests: they mirror the packages, and share code through tests/support only."""

from __future__ import annotations

import ast

import pytest

from tests.support.project import PROJECT

FILES = sorted(path for path in (PROJECT / "tests").rglob("test_*.py"))
MIRRORED = [path for path in FILES if path.parent != PROJECT / "tests"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PROJECT / "tests").as_posix())
def test_no_test_file_imports_another(path):
    modules = [
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
    ]
    assert not [name for name in modules if name.rpartition(".")[2].startswith("test_")]


@pytest.mark.parametrize("path", MIRRORED, ids=lambda path: path.relative_to(PROJECT / "tests").as_posix())
def test_the_folder_of_a_test_is_a_package_of_the_project(path):
    assert (PROJECT / path.parent.relative_to(PROJECT / "tests") / "__init__.py").is_file()
