"""What a newcomer meets first: the README's ten lines, and the names that the package exports."""

import ast
import re
import subprocess
import sys

import torch

import diffusion_core
from tests.support.project import PROJECT


def readme_lines() -> str:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = text.split("## diffusion_core in ten lines", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, flags=re.S)
    assert code is not None
    return code.group(1)


def test_the_ten_lines_of_the_readme_train_and_sample():
    code = readme_lines()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    scope: dict[str, torch.Tensor] = {}
    exec(compile(code, "README.md", "exec"), scope)
    x0, samples = scope["x0"], scope["samples"]
    assert samples.shape == (500, 2)
    untrained = 0.25  # the error of a model that returns independent coordinates is 0.2 or more
    assert float((torch.cov(samples.T) - torch.cov(x0.T)).abs().max()) < 0.4 * untrained


def test_every_exported_name_is_typed_and_resolves():
    tree = ast.parse((PROJECT / "diffusion_core/__init__.py").read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_core.")
        for alias in node.names
    }
    assert set(typed) == set(diffusion_core.__all__)
    for name, module in typed.items():
        value = getattr(diffusion_core, name)
        assert value is getattr(sys.modules[module], name)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffusion_core; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "False"
