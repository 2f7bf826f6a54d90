"""What code a stage is made of: the project's own modules that it imports, however deep.

A changed helper that no `deps` names would go unseen by DVC. A test compares `dvc.yaml` with `code_dependencies`, and
`python -m flows.closure` writes it.
"""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

# `params.py` reads what DVC tracks as parameters, `errors.py` and `__main__.py` change no output,
# and `__init__.py` is empty.
NO_EFFECT = frozenset({"__init__.py", "__main__.py", "errors.py", "params.py"})
SETTINGS = "tasks/settings/"  # the sections of params.py
CORE = "diffusion_core"  # counts as one dependency: the folder


def code_dependencies(root: Path, command: str) -> list[str]:
    """The code under `deps` of a stage whose command is `python -m tasks STAGE ...`, as paths below `root`, sorted.

    Imports are read from the source, those inside functions too; a module that is only named in a string, to be run
    by another process, is not seen.
    """
    stage = command.removeprefix("python -m tasks ").split()[0]
    found: set[str] = set()
    waiting = [f"tasks/{stage}.py"]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path != CORE:
            waiting += _imports(root, path)
    return sorted(path for path in found if Path(path).name not in NO_EFFECT and not path.startswith(SETTINGS))


def _imports(root: Path, path: str) -> list[str]:
    """The project's modules that one file of `tasks` imports itself, as paths."""
    found = []
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"), filename=path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "tasks." * (node.level == 1)
            module = f"{package}{node.module or ''}".rstrip(".")
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == CORE:
                found.append(CORE)
            elif name.startswith("tasks.") and (root / (file := name.replace(".", "/") + ".py")).is_file():
                found.append(file)
    return found


def is_code(path: str) -> bool:
    """Whether a dependency of a stage is the project's code, and not data."""
    return path == CORE or path.endswith(".py")


def write(path: Path) -> None:
    """Put every stage's code under its `deps` in a dvc.yaml, before its data; comments are kept."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    for entry in document["stages"].values():
        stage = entry.get("do", entry)  # `foreach`: one for each part
        data = [dependency for dependency in stage["deps"] if not is_code(str(dependency))]
        stage["deps"] = [*code_dependencies(path.parent, stage["cmd"]), *data]
    text = StringIO()
    yaml.dump(document, text)
    path.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    write(Path.cwd() / "dvc.yaml")
