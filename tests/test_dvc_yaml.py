"""The project's own dvc.yaml: every stage depends on the folders of code that can change its output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.__main__ import COMMANDS, STAGES
from tasks.config.params import Params
from tests.support.imports import OBSERVERS, closure, imports
from tests.support.project import PROJECT

RUNS = "sh stage.sh "
GRAPH: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
ENTRIES = {name: entry.get("do", entry) for name, entry in GRAPH.items()}

# The parameters are tracked by DVC themselves; paths name what dvc.yaml names.
NO_EFFECT = ("tasks/config", "tasks/paths.py", "tasks/__init__.py")


def module(stage: dict[str, Any]) -> str:
    """The module whose `run` a stage calls."""
    return STAGES[stage["cmd"].removeprefix(RUNS).split()[0]]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_code_of_a_stage_lies_in_its_dependencies(name: str) -> None:
    stage = ENTRIES[name]
    folders = tuple(f"{path}/" for path in stage["deps"])
    # What the checking of parameters imports changes no output either.
    code = closure(PROJECT / (module(stage).replace(".", "/") + ".py"), PROJECT, (*OBSERVERS, "tasks/config"))
    paths = {path.relative_to(PROJECT).as_posix() for path in code}
    body = module(stage).replace(".", "/")
    observed = () if body.startswith(OBSERVERS) else OBSERVERS
    missing = {p for p in paths if not p.startswith((*folders, *NO_EFFECT, *observed))}
    assert not missing


@pytest.mark.parametrize("name", ENTRIES)
def test_a_stage_depends_on_no_observer_but_its_own_package(name: str) -> None:
    stage = ENTRIES[name]
    body = module(stage).replace(".", "/")
    if not body.startswith(OBSERVERS):
        assert not set(stage["deps"]) & set(OBSERVERS)


def test_code_outside_the_dependencies_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tasks/common").mkdir(parents=True)
    files = {
        "stage": "import numpy\nfrom tasks import helper\nfrom tasks.common import deep\n",
        "helper": "def f():\n    from tasks.common.deeper import g\n    return g\n",
        "common/deep": "import tasks.stage\n",
        "common/deeper": "",
        "unused": "",
    }
    for name, text in files.items():
        (tmp_path / f"tasks/{name}.py").write_text(text)
    found = {path.relative_to(tmp_path / "tasks").as_posix() for path in closure(tmp_path / "tasks/stage.py", tmp_path)}
    assert found == {"stage.py", "helper.py", "common/deep.py", "common/deeper.py"}
    without = closure(tmp_path / "tasks/stage.py", tmp_path, ("tasks/common",))
    assert {path.name for path in without} == {"stage.py", "helper.py"}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_stage_depends_on_the_parameters_it_reads(name: str) -> None:
    stage = ENTRIES[name]
    declared = {key.split(".")[0] for key in stage.get("params", [])}
    declared |= {
        section for section in Params.model_fields if f"${{{section}." in f"{stage['deps']}{GRAPH[name].get('foreach')}"
    }
    body = PROJECT / (module(stage).replace(".", "/") + ".py")
    sources = [body]
    if stage["cmd"] == f"{RUNS}report":
        sources += [PROJECT / "tasks/report" / name for name in ("page.py", "results.py")]
    read = {key for path in sources for key in re.findall(r"\bparams\.(\w+)", path.read_text())}
    # where a run is recorded changes no output; train and sample read their model's own section by its name
    assert (read & set(Params.model_fields)) - {"tracking", "sample"} <= declared


@pytest.mark.parametrize("name", ENTRIES)
def test_parameters_are_in_params_yaml(name: str) -> None:
    """DVC stops at a parameter that is not written down, also if it has a default."""
    for key in ENTRIES[name].get("params", []):
        key = key.partition(".${")[0]  # what is below has an entry for each stage
        node = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
        for section in key.split("."):
            assert section in node, key
            node = node[section]


@pytest.mark.parametrize("name", STAGES | COMMANDS)
def test_every_stage_and_command_has_its_function(name: str) -> None:
    path = PROJECT / ((STAGES | COMMANDS)[name].replace(".", "/") + ".py")
    assert re.search(r"^def run\(\s*params: Params, root: Path", path.read_text(), re.M)


def test_packages_have_no_import_cycles() -> None:
    """`flows` imports `tasks`, `tasks` imports `diffusion_core`, and the packages inside `tasks` form a tree of layers."""
    edges: dict[str, set[str]] = {}
    for top in ("flows", "tasks", "diffusion_core"):
        for path in (PROJECT / top).rglob("*.py"):
            mine = _package(path)
            edges.setdefault(mine, set()).update(_package(target) for target in imports(path, PROJECT))
            edges[mine].discard(mine)
    assert not {"flows"} & set().union(*(edges[name] for name in edges if name != "flows"))
    assert edges["diffusion_core"] == set()
    order: list[str] = []
    while edges:
        free = sorted(name for name, needs in edges.items() if not needs - set(order))
        assert free, f"these packages import each other in a circle: {sorted(edges)}"
        order += free
        for name in free:
            del edges[name]


def _package(path: Path) -> str:
    """`flows`, `diffusion_core`, or the package (or module) inside `tasks` that a file belongs to."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "tasks" else parts[0]
