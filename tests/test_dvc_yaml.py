"""The project's own dvc.yaml: every stage names exactly the code that it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT

from flows.closure import CORE, code_dependencies

RUNS = "python -m tasks "
STAGES: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_it_imports(name: str) -> None:
    stage = STAGES[name]
    assert stage["cmd"].startswith(RUNS)
    listed = sorted(path for path in stage["deps"] if path == CORE or path.endswith(".py"))
    needed = code_dependencies(PROJECT, stage["cmd"])
    paste = "\n".join(f"      - {path}" for path in needed)
    assert listed == needed, f"stage {name} of dvc.yaml should list this code under deps:\n{paste}"


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
