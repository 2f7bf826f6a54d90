"""The command `contrapposto`: complete, documented, and in step with the functions that it calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows import method_page
from flows.cli import app, main
from flows.param_changes import parse, values
from flows.run_here import FLOWS
from tasks.__main__ import COMMANDS, STAGES
from tasks.common.errors import UserError
from tests.support.project import PROJECT

COMMAND: Any = typer.main.get_command(app)


def _subcommand(name: str) -> Any:
    """The subcommand that runs a stage or command of `tasks`."""
    group = COMMAND.commands["stage"] if name in STAGES else COMMAND
    return group.commands[name if name in STAGES else name.replace("_", "-")]


def test_every_flow_stage_and_command_is_there_with_help() -> None:
    assert set(FLOWS) <= set(COMMAND.commands)
    assert set(COMMAND.commands["stage"].commands) == set(STAGES)
    assert {name.replace("_", "-") for name in COMMANDS} <= set(COMMAND.commands)
    runner = CliRunner()
    for names in [[name] for name in COMMAND.commands] + [["stage", name] for name in STAGES]:
        result = runner.invoke(app, [*names, "--help"])
        assert result.exit_code == 0 and "Usage:" in result.output, result.output
    undocumented = [name for name, command in COMMAND.commands.items() if not command.help]
    assert undocumented == []


# `generate` takes its arguments from params.yaml; at the top level its name belongs to the flow.
@pytest.mark.parametrize("name", sorted(set(STAGES | COMMANDS) - {"generate"}))
def test_arguments_are_those_of_the_function(name: str) -> None:
    path = PROJECT / ((STAGES | COMMANDS)[name].replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    plain = [argument.arg for argument in run.args.args[2:]]
    optional = plain[len(plain) - len(run.args.defaults) :] if run.args.defaults else []
    expected = [(argument, argument not in optional) for argument in plain]
    expected += [(run.args.vararg.arg, True)] if run.args.vararg else []
    declared = [(p.name, p.required) for p in _subcommand(name).params if p.param_type_name == "argument"]
    assert declared == expected


def test_arguments_reach_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    calls = []

    def run(params: object, root: Path, *arguments: str) -> None:
        calls.append((root, arguments))

    monkeypatch.setattr("tasks.__main__.body", lambda name: run)
    assert main(["stage", "train", "poses"]) == 0
    assert main(["compare", "champion", "challenger"]) == 0
    assert main(["extract-slice", "a", "0", "3"]) == 0
    expected: list[tuple[str, ...]] = [("poses",), ("champion", "challenger"), ("a", "0", "3")]
    assert calls == [(tmp_path, arguments) for arguments in expected]
    assert main(["stage", "train", "nonsense"]) == 2
    assert main(["train", "poses", "--folds", "2"]) == 2 and len(calls) == 3
    monkeypatch.setattr("tasks.__main__.body", lambda name, folded: run if (name, folded) == ("train", True) else None)
    assert main(["train", "poses", "--folds", "3"]) == main(["stage", "train", "poses", "--folds", "4"]) == 0
    assert [arguments for _, arguments in calls[3:]] == [("poses", "3"), ("poses", "4")]


@pytest.mark.parametrize("module", ["flows", "flows.cli"])
def test_exit_codes_and_sentences(tmp_path: Path, module: str) -> None:
    for arguments, message in ((["status"], "contrapposto: "), (["nope"], "nope")):
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "mlflow", "prefect", "dvc"}
    code = f"import sys; from flows.cli import main; main(['stage', '--help']); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_shell_completion_lists_the_flows(tmp_path: Path) -> None:
    words = {"_CONTRAPPOSTO_COMPLETE": "complete_bash", "COMP_WORDS": "contrapposto tr", "COMP_CWORD": "1"}
    code = "import os; " + "".join(f"os.environ[{k!r}] = {v!r}; " for k, v in words.items())
    code += "from flows.cli import main; main([])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert set(result.stdout.split()) == {"train-poses", "train-motion", "train-video", "train"}, result.stderr


def test_set_takes_yaml_values_and_refuses_what_does_not_fit() -> None:
    changes = parse(["poses.seed=3", "raw.folder=null", "generate.pose={nose: [0, 1, 2]}"])
    assert values(changes) == {"poses.seed": 3, "raw.folder": None, "generate.pose": {"nose": [0, 1, 2]}}
    for wrong in ("poses.seed", "poses.nope=1", "poses.images=0", "poses.seed={", "poses.seed=1.5"):
        with pytest.raises(UserError):
            parse([wrong])
    with pytest.raises(UserError):
        parse(["poses=1", "poses.seed=2"])
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse(["=3"])


def test_set_reaches_sections_that_are_one_of_several_forms() -> None:
    assert values(parse(["poses.keep={ema: 0.07}"])) == {"poses.keep.ema": 0.07}
    assert values(parse(["pictures.keep.ema=0.07"])) == {"pictures.keep.ema": 0.07}


@pytest.mark.parametrize("key", ["raw.parts.studio=data/raw/studio", "generate.pose.nose=[0, 1, 2]"])
def test_set_does_not_replace_a_whole_mapping_by_one_of_its_entries(key: str) -> None:
    with pytest.raises(
        UserError, match=r"can only be set as a whole, as in '(raw\.parts=\{studio|generate\.pose=\{nose): "
    ):
        parse([key])


def test_methods_are_listed_with_call_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    tables = method_page.tables(method_page.PAGE.read_text(encoding="utf-8"))
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)
    assert main(["methods", "heun", "edm"]) == 0
    out = capsys.readouterr().out
    assert main(["methods", "heun", "nothing of the kind"]) == 2
    assert "nothing of the kind" in capsys.readouterr().err
    assert main(["methods", "Reflow"]) == 0
    assert "…" not in capsys.readouterr().out
    assert re.search(r"Heun, with churn \(EDM\), h.*heun\(\) .*2206\.00364", out) and "LMS" not in out
