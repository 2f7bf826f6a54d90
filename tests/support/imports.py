"""Which files of the project a file imports."""

from __future__ import annotations

import ast
from pathlib import Path

OBSERVERS = ("tasks/plots", "tasks/registry", "tasks/report")  # they show or record what other packages computed


def imports(path: Path, root: Path) -> set[Path]:
    """The project's files that one file imports, also inside functions."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: write imports in full"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = root / (name.replace(".", "/") + ".py")
            if name.split(".")[0] in ("tasks", "diffusion_core") and file.is_file():
                found.add(file)
    return found


def closure(path: Path, root: Path, outside: tuple[str, ...] = ()) -> set[Path]:
    """The file and all it imports, however deep; not what lies in `outside`, nor what only that imports."""
    found, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [f for f in imports(file, root) if not f.relative_to(root).as_posix().startswith(outside)]
    return found
