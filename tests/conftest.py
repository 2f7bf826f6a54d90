"""What the tests share: a small DVC project and one Prefect server a session. Nobody pays for what he does not ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import Server, past_the_proxy
from flows.server import start as start_server

past_the_proxy()
COMMANDS_OWN = {"WDS_SECURE", "DO_NOT_TRACK", "GOMP_SPINCOUNT"}  # what `python -m tasks` sets for its process

PROJECT = Path(__file__).resolve().parent.parent

# The shape of the real graph with commands that take no time. Every stage says in runs.log that it ran.
GRAPH = """\
stages:
  mannequin:
    cmd: echo mannequin >> runs.log; mkdir -p data/raw/mannequin; echo ${mannequin.seed} > data/raw/mannequin/a
    params: [mannequin]
    outs: [{data/raw/mannequin: {cache: false}}]
  extract:
    foreach: ${raw.parts}
    do:
      cmd: >-
        echo extract@${key} >> runs.log; env > stage.env; mkdir -p data/poses/${key}; cat ${item}/* > data/poses/${key}/poses
      deps: ["${item}"]
      params: [extract.min_side]
      outs: ["data/poses/${key}"]
  curate:
    cmd: echo curate >> runs.log; cat data/poses/*/* > dataset
    deps: [data/poses]
    params: [curate.seed]
    outs: [dataset]
  train_poses:
    cmd: echo train_poses >> runs.log; cat dataset > weights; echo ${poses.seed} >> weights
    deps: [dataset]
    params: [poses.seed]
    outs: [weights]
  sample_poses:
    cmd: echo sample_poses >> runs.log; cp weights samples
    deps: [weights]
    outs: [samples]
  report:
    cmd: >-
      echo report >> runs.log; mkdir -p reports/summary; cp samples reports/report.html;
      echo '{"metrics": {"persons": 3.0}, "rows": [["persons kept", 3]]}' > reports/summary/summary.json
    deps: [dataset, samples]
    outs: [reports/summary, reports/report.html]
  promote:
    cmd: echo promote >> runs.log; cp weights promoted; mkdir -p reports/promote; \
echo '{"promote":true,"reasons":[]}' > reports/promote/promote.json
    deps: [weights]
    outs: [promoted]
"""
STAGES = ["mannequin", "extract@mannequin", "curate", "train_poses", "sample_poses", "report", "promote"]


def dvc(root: Path, *arguments: str) -> str:
    """What DVC prints, run by hand in a workspace."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def ran(root: Path) -> list[str]:
    """The stages that ran since this was last asked."""
    log = root / "runs.log"
    stages = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return stages


def set_command(root: Path, stage: str, command: str) -> None:
    """Give a stage of a workspace another command."""
    lines = (root / "dvc.yaml").read_text().splitlines()
    lines[lines.index(f"  {stage}:") + 1] = f"    cmd: {json.dumps(command)}"
    (root / "dvc.yaml").write_text("\n".join(lines))


def rename_stage(root: Path, stage: str, name: str) -> None:
    """Give a stage of a workspace another name; DVC has not seen it then."""
    graph = root / "dvc.yaml"
    graph.write_text(graph.read_text().replace(f"\n  {stage}:", f"\n  {name}:"))


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in set(os.environ) - COMMANDS_OWN - {"PYTEST_CURRENT_TEST"}}


@pytest.fixture(autouse=True)
def _environment_is_left_as_it_was() -> Iterator[None]:
    """What one test leaves behind another, which happens to run in the same process, trips over."""
    before = _environment()
    yield
    assert _environment() == before


@pytest.fixture(scope="session")
def made_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DVC project that was made by plain `dvc repro`: never change it, see `workspace`."""
    root = tmp_path_factory.mktemp("made") / "workspace"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    dvc(root, "init", "--quiet")
    shutil.copy(PROJECT / ".dvc/config", root / ".dvc/config")
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, root / name)
    (root / "dvc.yaml").write_text(GRAPH)
    dvc(root, "repro")
    return root


@pytest.fixture
def workspace(made_workspace: Path, tmp_path: Path) -> Path:
    """A copy of a small DVC project in which everything is up to date."""
    root = tmp_path / "workspace"
    shutil.copytree(made_workspace, root, symlinks=True)
    ran(root)
    return root


@pytest.fixture(scope="session")
def standing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server with all its services."""
    server = start_server(tmp_path_factory.mktemp("prefect"))
    server.wait()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prefect_server(standing_server: Server) -> Iterator[Server]:
    """The same, with this process's Prefect talking to it."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    here = {PREFECT_API_URL: standing_server.api_url, PREFECT_HOME: standing_server.home}
    with temporary_settings(updates=here):
        yield standing_server
