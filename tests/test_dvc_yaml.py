"""The project's own dvc.yaml: every stage names exactly the code that it is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from ruamel.yaml import YAML

from flows.closure import code_dependencies, is_code
from tasks.params import Params

RUNS = "python -m tasks "
GRAPH: dict[str, Any] = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
STAGES = {name: entry.get("do", entry) for name, entry in GRAPH.items()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_it_imports(name: str) -> None:
    stage = STAGES[name]
    assert stage["cmd"].startswith(RUNS)
    listed = sorted(path for path in stage["deps"] if is_code(path))
    needed = code_dependencies(PROJECT, stage["cmd"])
    paste = "\n".join(f"      - {path}" for path in needed)
    assert listed == needed, f"stage {name} of dvc.yaml should list this code (see `flows.closure`):\n{paste}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_parameters_it_reads(name: str) -> None:
    stage = STAGES[name]
    declared = {key.split(".")[0] for key in stage.get("params", [])}
    declared |= {
        section for section in Params.model_fields if f"${{{section}." in f"{stage['deps']}{GRAPH[name].get('foreach')}"
    }
    module = stage["cmd"].removeprefix(RUNS).split()[0]
    sources = [f"tasks/{module}.py"] + ["tasks/report_text.py"] * (module == "report")
    read = {key for path in sources for key in re.findall(r"\bparams\.(\w+)", (PROJECT / path).read_text())}
    # where a run is recorded changes no output; train and sample read their model's own section by its name
    assert (read & set(Params.model_fields)) - {"tracking", "sample"} <= declared


def test_helpers_of_helpers_and_imports_inside_functions_count(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    files = {
        "stage": "import numpy\nfrom tasks import helper\nfrom tasks.errors import UserError\n",
        "helper": "def f():\n    from .deep import g\n    return g\n",
        "deep": "from diffusion_core.nets import joint\nimport tasks.stage\n",
        "unused": "",
        "errors": "",
    }
    for name, text in files.items():
        (tmp_path / f"tasks/{name}.py").write_text(text)
    expected = ["diffusion_core", "tasks/deep.py", "tasks/helper.py", "tasks/stage.py"]
    assert code_dependencies(tmp_path, "python -m tasks stage poses") == expected
