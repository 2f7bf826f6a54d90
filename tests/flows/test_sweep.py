"""Sweeps: what the file may say, and real DVC experiments by the flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import dvc_graph
from flows.private_server import Server
from flows.sweep import wait
from flows.sweep_file import override, read
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.registry.tracking import Store
from tests.support.dvc_project import dvc
from tests.support.workspaces import small_project, write_params


def _file(root: Path, content: Any) -> Path:
    path = root / "sweep.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    write_params(tmp_path)
    grid = {"poses.recipe": ["ddpm", "edm"], "sample.poses.sampler": ["ddim", "unipc", "heun"]}
    sweep = read(tmp_path, _file(tmp_path, {"grid": grid, "workers": 2}))
    assert len(sweep.variations) == 6 and sweep.variations[1] == {
        "poses.recipe": "ddpm",
        "sample.poses.sampler": "unipc",
    }
    runs = [{"poses.seed": 1}, {"poses.seed": 2, "poses.recipe": "sd3"}]
    assert read(tmp_path, _file(tmp_path, {"runs": runs})).variations == runs


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"grid": {"poses.recipe": ["ddpm"]}, "runs": [{"poses.seed": 1}]},
        {"grid": {"poses.recipe": []}},
        {"grid": {"poses.recipe": ["edm", "dppm"]}},
        {"grid": {"poses.recipe": ["edm"], "poses.target": [None, "v"]}},
        {"grid": {"poses.nonsense": [1]}},
        {"grid": {"poses.seed": [1]}, "workers": 0},
        {"grid": {"poses.seed": list(range(300))}},
    ],
)
def test_a_file_that_cannot_work_is_one_sentence(content: dict[str, Any], tmp_path: Path) -> None:
    write_params(tmp_path)
    with pytest.raises(UserError) as caught:
        read(tmp_path, _file(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_values_have_the_syntax_of_hydra() -> None:
    assert override("poses.recipe", "ddpm") == 'poses.recipe="ddpm"'
    assert override("poses.target", None) == "poses.target=null"
    assert override("poses.options", {"edm": {"p_mean": -0.5, "p_std": "auto"}}) == (
        'poses.options={edm:{p_mean:-0.5,p_std:"auto"}}'
    )
    assert override("poses.power_averages", [0.1, 0.2]) == "poses.power_averages=[0.1,0.2]"


def test_a_stopped_sweep_does_not_wait_for_what_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment that no worker has begun stays queued for ever."""
    monkeypatch.setattr(dvc_graph, "queue_state", lambda root, name: "Queued")
    stopped = threading.Event()
    waiting = threading.Thread(target=lambda: states.append(wait.fn("one", tmp_path, stopped)), daemon=True)
    states: list[Any] = []
    waiting.start()
    stopped.set()
    waiting.join(10)
    assert [state.is_failed() for state in states] == [True]


def _commit(root: Path) -> None:
    for command in (
        ["config", "user.name", "n"],
        ["config", "user.email", "n@localhost"],
        ["add", "-A"],
        ["commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)


@pytest.mark.slow
def test_experiments_run_side_by_side(workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small project, whose stages write the parameter into their outputs."""
    from flows.sweep import sweep

    monkeypatch.chdir(workspace)
    _commit(workspace)
    file = _file(workspace, {"grid": {"poses.seed": [5, 6]}, "workers": 2})
    assert sweep(str(file), return_state=True).is_completed()
    shown = json.loads(dvc(workspace, "exp", "show", "--json"))
    experiments = [one["revs"][0]["data"] for one in shown[1]["experiments"]]
    seeds = sorted(one["params"]["params.yaml"]["data"]["poses"]["seed"] for one in experiments)
    assert seeds == [5, 6]


@pytest.mark.slow
def test_two_recipes_and_two_samplers_on_the_real_pipeline(tmp_path: Path) -> None:
    """As a user does it: a run, a commit, a sweep with two workers, and the comparison of its experiments."""
    root = small_project(tmp_path / "contrapposto", poses__images=512)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=root, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    call("flows", "train-poses")
    _commit(root)
    grid = {"poses.recipe": ["ddpm", "edm"], "sample.poses.sampler": ["ddim", "unipc"]}
    output = call("flows", "sweep", str(_file(root, {"workers": 2, "grid": grid})))
    shown = json.loads(dvc(root, "exp", "show", "--json"))
    found = {}
    for one in shown[1]["experiments"]:
        name, data = one["name"], one["revs"][0]["data"]
        params = data["params"]["params.yaml"]["data"]
        metrics = data["metrics"]["reports/summary/metrics.json"]["data"]
        found[params["poses"]["recipe"], params["sample"]["poses"]["sampler"]] = name
        assert any(key.endswith("poses.loss") for key in _flat(metrics)), metrics
    assert set(found) == {(recipe, sampler) for recipe in ("ddpm", "edm") for sampler in ("ddim", "unipc")}
    assert all(name in output for name in found.values())
    apart = {key: name for key, name in found.items() if key != ("edm", "unipc")}  # which is the run before the sweep
    assert f"{found['edm', 'unipc']} has no run of its own" in output
    assert sorted(output.split("contrapposto compare ")[1].split("\n")[0].split()) == sorted(apart.values())
    compared = call("flows", "compare", *apart.values())
    assert "Differences beyond the intervals" in compared and "poses.recipe" in compared
    two = [found["ddpm", "ddim"], found["edm", "ddim"]]
    curves = json.loads(dvc(root, "plots", "diff", "--json", "--split", *two))["data"]["training loss"][0]
    assert {point["rev"] for point in curves["anchor_definitions"]["<DVC_METRIC_DATA>"]} == set(two)
    trained = Counter(
        run.data.params["poses.recipe"] for run in Store(load(root / paths.PARAMS).tracking, root).trainings()
        if run.data.tags["contrapposto.model"] == "poses"
    )  # fmt: skip
    assert trained["edm"] == 1  # by the run before the sweep: another sampler trains nothing
    assert trained["ddpm"] in (1, 2)  # the workers may begin both of its experiments at once


def _flat(metrics: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in metrics.items():
        names += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names
